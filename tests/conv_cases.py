"""What the tests of conv2d and conv_transpose2d share: drawn tensors, and results and gradients of a call."""

import torch

NAMES = ("output", "grad_input", "grad_weight", "grad_bias")
LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "strided": lambda t: t.repeat_interleave(2, 1).repeat_interleave(3, 3)[:, ::2, :, ::3],
    "padded": lambda t: torch.nn.functional.pad(t, (1, 2, 0, 1))[:, :, :-1, 1:-2],
    "expanded": lambda t: t[:, :, :1].expand_as(t),
}


def drawn(place, shapes, dtype, seed=0):
    """Tensors of the shapes (None for None), about 1 in size, rounded to dtype."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [None if shape is None else draw(shape).to(place.device, dtype) for shape in shapes]


def with_gradients(function, input, weight, bias, grad_output):
    """[output, grad_input, grad_weight, grad_bias or nothing] of function(input, weight, bias)."""
    leaves = [t.detach().requires_grad_() for t in (input, weight, bias) if t is not None]
    output = function(*leaves, *([None] if bias is None else []))
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]
