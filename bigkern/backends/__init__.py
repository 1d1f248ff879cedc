"""The families of kernels: how each is found, loaded and called.

Every backend module has the same two functions:

- `unavailable() -> str | None`: why none of its kernels can run in this process, or None.
- `run(kernel, args) -> tuple of tensors`: runs `kernel` (a `bigkern.registration.Kernel`) on schema-ordered arguments.
"""

from . import cpu, cuda, reference, torch, triton

BACKENDS = {"reference": reference, "cpu": cpu, "triton": triton, "cuda": cuda, "torch": torch}
