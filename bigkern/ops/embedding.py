"""embedding: rows of a table, picked by index.

    output[...] = weight[input[...]]        grad_weight[r] = sum over input == r of grad_output

The forward moves each row once. The backward first sorts the occurrences by row, stably; whoever owns a row of the
table then adds up its occurrences in the order in which they stand in the input, in float32 at least, and writes the
row once. The sum is the same in every run and with any number of threads.
"""

import torch
import torch.nn.functional as F

from ..dispatch import Unsupported, forced_backend, leave_to_torch
from ..norm_arguments import FLOATING, triton_supports
from ..registration import Kernel, too_small

INDICES = (torch.int32, torch.int64)
SMALL, WIDE = 1 << 16, 512
REASON = f"PyTorch's own measured faster without gradients, below {SMALL} elements, and for rows of {WIDE} or more"
SPARSE_REASON = "sparse gradients are PyTorch's"


def embedding(
    input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False
) -> torch.Tensor:
    """Rows of `weight` by index, as `torch.nn.functional.embedding`.

    Args:
        input: int32 or int64 indices of any shape.
        weight: floating [num_embeddings, embedding_dim].
        padding_idx: a row that gets no gradient; negative ones count from the end. None: every row gets one.
        max_norm: rows that are looked up and whose norm is larger are first scaled down to it, in place, by PyTorch's
            own operator. None: `weight` is left as it is.
        norm_type: the p of that norm.
        scale_grad_by_freq: divide the gradient of a row by the number of times that it occurs in `input`.
        sparse: the gradient is a sparse tensor. PyTorch's own function then runs, forward and backward.

    Returns:
        A contiguous tensor [*input.shape, embedding_dim] of weight's dtype. Differentiable in weight, any number of
        times, with the same bits in every run.

    Raises:
        IndexError: an index is no row of weight. (On a GPU, where looking would stall it, its row of the output is NaN
            and it has no gradient.)
        AssertionError: padding_idx is no row of weight.
        RuntimeError: another dtype, number of dimensions or device; or sparse, where a backend other than PyTorch's is
            forced.
    """
    padding_idx = check_table("embedding", input, weight, padding_idx)
    if max_norm is not None:
        with torch.no_grad():
            torch.embedding_renorm_(weight, input.contiguous(), max_norm, norm_type)
    differentiates = torch.is_grad_enabled() and weight.requires_grad
    left = not differentiates or input.numel() * weight.shape[1] < SMALL or weight.shape[1] >= WIDE
    if sparse or (left and input.is_cpu and too_small("embedding", REASON, weight, input)):
        if sparse:
            hand_over_sparse("embedding", weight)
        return F.embedding(
            input, weight, padding_idx if padding_idx >= 0 else None, None, 2.0, scale_grad_by_freq, sparse
        )
    output = embedding_forward(input.reshape(-1), weight, padding_idx, bool(scale_grad_by_freq))
    return output.view(*input.shape, weight.shape[1])


def check_table(op, input, weight, padding_idx) -> int:
    """padding_idx as a row of weight, -1 for none; raises where these do not go together."""
    if input.dtype not in INDICES:
        raise RuntimeError(f"{op}: input must be int32 or int64, got {input.dtype}")
    if weight.ndim != 2:
        raise RuntimeError(f"{op}: 'weight' must be 2-D, got {weight.ndim} dimensions")
    if weight.dtype not in FLOATING:
        raise RuntimeError(f"{op}: weight must be floating, got {weight.dtype}")
    if input.device != weight.device:
        raise RuntimeError(f"{op}: input is on {input.device}, weight on {weight.device}")
    if padding_idx is None:
        return -1
    rows = weight.shape[0]
    assert -rows <= padding_idx < rows, "Padding_idx must be within num_embeddings"
    return padding_idx + rows if padding_idx < 0 else padding_idx


def hand_over_sparse(op, weight):
    """Says for `explain` that PyTorch runs the call; raises where another backend was asked for."""
    if forced_backend() not in (None, "torch"):
        raise Unsupported(f"{op}: backend {forced_backend()!r} cannot run sparse=True: {SPARSE_REASON}")
    leave_to_torch(op, str(weight.device), SPARSE_REASON)


def occurrence_counts(input, num_embeddings, dtype):
    """How often the row of each index occurs in input: a tensor of input's shape and of `dtype`."""
    index = input.long()
    counts = torch.zeros(num_embeddings, dtype=dtype, device=input.device)
    return counts.index_add(0, index, torch.ones_like(index, dtype=dtype)).index_select(0, index)


# ---- embedding_backward ----------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, input, num_embeddings, padding_idx, scale_grad_by_freq):
    return (grad_output.new_empty(num_embeddings, grad_output.shape[1]),)


def _backward_torch(grad_output, input, num_embeddings, padding_idx, scale_grad_by_freq):
    wide = grad_output.to(torch.promote_types(grad_output.dtype, torch.float32))
    if scale_grad_by_freq:
        wide = wide / occurrence_counts(input, num_embeddings, wide.dtype)[:, None]
    if padding_idx >= 0:
        wide = wide.masked_fill((input == padding_idx)[:, None], 0)
    grad_weight = wide.new_zeros(num_embeddings, wide.shape[1]).index_add(0, input, wide)
    return (grad_weight.to(grad_output.dtype),)


embedding_backward = Kernel(
    "embedding_backward(Tensor grad_output, Tensor input, SymInt num_embeddings, int padding_idx, "
    "bool scale_grad_by_freq) -> Tensor grad_weight",
    module="embedding",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, *_: triton_supports(grad_output)},
    recompute=True,
)


# ---- embedding_forward -----------------------------------------------------------------------------------------------


def _allocate_forward(input, weight, padding_idx, scale_grad_by_freq):
    return (weight.new_empty(input.shape[0], weight.shape[1]),)


def _forward_torch(input, weight, padding_idx, scale_grad_by_freq):
    return (weight.index_select(0, input),)


def _setup_forward(ctx, inputs, output):
    input, weight, ctx.padding_idx, ctx.scale_grad_by_freq = inputs
    ctx.num_embeddings = weight.shape[0]
    ctx.save_for_backward(input)


def _backward_forward(ctx, grad_output):
    (input,) = ctx.saved_tensors
    grad_weight = embedding_backward(grad_output, input, ctx.num_embeddings, ctx.padding_idx, ctx.scale_grad_by_freq)
    return None, grad_weight, None, None


embedding_forward = Kernel(
    "embedding_forward(Tensor input, Tensor weight, int padding_idx, bool scale_grad_by_freq) -> Tensor output",
    module="embedding",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda input, weight, *_: triton_supports(weight)},
    setup_context=_setup_forward,
    backward=_backward_forward,
)
