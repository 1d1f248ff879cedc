"""Triton kernels: one file per op, each with `<op>_forward` and `<op>_backward` launchers that fill given outputs."""
