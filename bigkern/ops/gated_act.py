"""gated_act: one half of a feed-forward layer opens the gate for the other: swiglu and geglu.

    output = act(gate) * up        grad_up = grad_output * act(gate)        grad_gate = grad_output * up * act'(gate)

One pass over memory forward and one backward, in which act(gate) is computed again instead of stored. gate and up may
be the two halves of one matrix, as a single linear layer gives them; the gradient is then one matrix too. Source:
Shazeer, "GLU Variants Improve Transformer" (2020).
"""

import torch
import torch.nn.functional as F

from ..norm_arguments import FLOATING, statistics_dtype, triton_supports
from ..registration import Kernel, too_small

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
# Below this many elements, a call is expected to cost more around its kernel than the kernel saves.
SMALL = 1 << 20
SMALL_REASON = f"PyTorch's own functions measured faster below {SMALL} elements"


def swiglu(gate, up=None) -> torch.Tensor:
    """silu(gate) * up: `gated_act` with "silu"."""
    return gated_act(gate, up, "silu")


def geglu(gate, up=None, approximate="none") -> torch.Tensor:
    """gelu(gate) * up: `gated_act` with "gelu", or "gelu_tanh" for approximate="tanh".

    Raises:
        RuntimeError: approximate is neither "none" nor "tanh".
    """
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return gated_act(gate, up, "gelu" if approximate == "none" else "gelu_tanh")


def gated_act(gate, up=None, activation="silu") -> torch.Tensor:
    """activation(gate) * up, element by element.

    Args:
        gate: floating [..., columns]; or, without `up`, [..., 2 * columns]: gate and then up.
        up: of gate's shape and dtype, or None.
        activation: "silu", "gelu" (with the error function) or "gelu_tanh".

    Returns:
        A contiguous tensor [..., columns] of gate's dtype. Differentiable in gate and up, any number of times.

    Raises:
        ValueError: an unknown activation; shapes differ, or without `up` the last dimension is odd or missing.
        RuntimeError: dtypes differ or are not floating; devices differ.
    """
    _check(gate, up, activation)
    columns = gate.shape[-1] if gate.ndim else 1
    if gate.numel() < SMALL and too_small("gated_act", SMALL_REASON, gate, *(() if up is None else (up,))):
        if up is None:
            gate, up = gate.chunk(2, -1)
        return _activate(gate, activation) * up
    rows = gate.reshape(-1, columns) if columns else gate.reshape(gate.shape[:-1].numel(), 0)
    output = gated_act_forward(rows, None if up is None else up.reshape(rows.shape), activation)
    return output.view(gate.shape if up is not None else (*gate.shape[:-1], columns // 2))


def _check(gate, up, activation):
    if activation not in ACTIVATIONS:
        raise ValueError(f"gated_act: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if gate.dtype not in FLOATING:
        raise RuntimeError(f"gated_act: gate must be floating, got {gate.dtype}")
    if up is None:
        if gate.ndim == 0 or gate.shape[-1] % 2:
            raise ValueError(
                f"gated_act: without up, gate's last dimension must be even, got shape {tuple(gate.shape)}"
            )
        return
    if up.shape != gate.shape:
        raise ValueError(f"gated_act: up has shape {tuple(up.shape)}, gate {tuple(gate.shape)}")
    if up.dtype != gate.dtype:
        raise RuntimeError(f"gated_act: up must be {gate.dtype} as gate, got {up.dtype}")
    if up.device != gate.device:
        raise RuntimeError(f"gated_act: up is on {up.device}, gate on {gate.device}")


def _activate(x, activation):
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


# ---- gated_act_backward ----------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, gate, up, activation):
    return gate.new_empty(gate.shape), gate.new_empty(0 if up is None else up.shape)


def _backward_torch(grad_output, gate, up, activation):
    dtype = statistics_dtype(gate.dtype)
    x, u = (gate.to(dtype).chunk(2, 1)) if up is None else (gate.to(dtype), up.to(dtype))
    grad = grad_output.to(dtype)
    grad_up = grad * _activate(x, activation)
    if activation == "silu":
        sigmoid = torch.sigmoid(x)  # PyTorch's silu_backward has no derivative of its own
        grad_gate = grad * u * (sigmoid * (1 + x * (1 - sigmoid)))
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        grad_gate = torch.ops.aten.gelu_backward(grad * u, x, approximate=approximate)
    if up is None:
        return torch.cat([grad_gate, grad_up], 1).to(gate.dtype), gate.new_empty(0)
    return grad_gate.to(gate.dtype), grad_up.to(gate.dtype)


gated_act_backward = Kernel(
    "gated_act_backward(Tensor grad_output, Tensor gate, Tensor? up, str activation) "
    "-> (Tensor grad_gate, Tensor grad_up)",
    module="gated_act",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, gate, *_: triton_supports(gate)},
    recompute=True,
)


# ---- gated_act_forward -----------------------------------------------------------------------------------------------


def _allocate_forward(gate, up, activation):
    return (gate.new_empty(gate.shape[0], gate.shape[1] // 2 if up is None else gate.shape[1]),)


def _forward_torch(gate, up, activation):
    dtype = statistics_dtype(gate.dtype)
    x, u = (gate.to(dtype).chunk(2, 1)) if up is None else (gate.to(dtype), up.to(dtype))
    return ((_activate(x, activation) * u).to(gate.dtype),)


def _setup_forward(ctx, inputs, output):
    gate, up, ctx.activation = inputs
    ctx.save_for_backward(gate, up)


def _backward_forward(ctx, grad_output):
    gate, up = ctx.saved_tensors
    grad_gate, grad_up = gated_act_backward(grad_output, gate, up, ctx.activation)
    return (
        grad_gate if ctx.needs_input_grad[0] else None,
        grad_up if up is not None and ctx.needs_input_grad[1] else None,
        None,
    )


gated_act_forward = Kernel(
    "gated_act_forward(Tensor gate, Tensor? up, str activation) -> Tensor output",
    module="gated_act",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda gate, *_: triton_supports(gate)},
    setup_context=_setup_forward,
    backward=_backward_forward,
)
