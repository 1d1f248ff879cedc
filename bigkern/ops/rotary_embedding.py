"""rotary_embedding: turns pairs of the columns of queries and keys by angles that grow with their position.

    x' = x cos - y sin        y' = y cos + x sin

A pair is (i, pairs + i) in the half-split form (Llama, Hugging Face) and (2i, 2i + 1) in the interleaved form of the
paper; columns beyond the pairs stay as they are. The gradient is the rotation by the negative angle, by the same
kernel. Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
"""

import torch

from ..norm_arguments import FLOATING, statistics_dtype, triton_supports
from ..registration import Kernel
from .embedding import INDICES


def rotary_embedding(input, cos, sin, interleaved=False, position_ids=None, offset=0) -> torch.Tensor:
    """The rotation of queries or keys by their positions.

    Args:
        input: floating [batch, heads, length, head_dim], or without the first dimensions.
        cos, sin: floating [positions, pairs], or [1 or batch, positions, pairs]: one angle for each pair, with
            2 * pairs <= head_dim. Of a table that names every angle twice, as Hugging Face's, give the first half of
            the columns (in the interleaved form: every second). Any floating dtype; the rotation is computed in float32
            at least.
        interleaved: pairs are neighbours, (2i, 2i + 1), and not (i, pairs + i).
        position_ids: int32 or int64 [length] or [batch, length], rows of cos and sin; None: offset, offset + 1, ...
        offset: the position of the first row; not together with position_ids.

    Returns:
        A contiguous tensor of input's shape and dtype. Differentiable in input, any number of times; and, by PyTorch's
        own operators, in cos and sin.

    Raises:
        IndexError: a position is no row of cos and sin. (On a GPU, where looking would stall it, a row of position_ids
            that is none gives NaN.)
        ValueError: shapes do not go together, or both position_ids and an offset are given.
        RuntimeError: other dtypes or devices.
    """
    _check(input, cos, sin, position_ids, offset)
    shape, leading = input.shape, 4 - input.ndim
    query = input[(None,) * leading] if leading else input
    if cos.ndim == 2:
        cos, sin = cos[None], sin[None]
    batch, _, length, _ = query.shape
    if cos.shape[0] not in (1, batch):
        raise ValueError(f"rotary_embedding: cos is for {cos.shape[0]} batches, input has {batch}")
    if position_ids is not None:
        if position_ids.ndim > 2 or position_ids.shape not in ((length,), (1, length), (batch, length)):
            raise ValueError(
                f"rotary_embedding: position_ids must be [{length}] or [{batch}, {length}], got "
                f"{list(position_ids.shape)}"
            )
        position_ids = position_ids.expand(batch, length)
    elif offset < 0 or offset + length > cos.shape[1]:
        raise IndexError(
            f"rotary_embedding: positions {offset} to {offset + length - 1} are out of range for cos and sin of "
            f"{cos.shape[1]} positions"
        )
    turns_angles = torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad)
    rotation = _rotate_torch if turns_angles else rotary_embedding_forward
    output = rotation(query, cos, sin, position_ids, offset, bool(interleaved))
    return output.view(shape)


def _check(input, cos, sin, position_ids, offset):
    op = "rotary_embedding"
    if not 2 <= input.ndim <= 4:
        raise ValueError(f"{op}: input must be [batch, heads, length, head_dim], got {list(input.shape)}")
    for name, tensor in (("input", input), ("cos", cos), ("sin", sin)):
        if tensor.dtype not in FLOATING:
            raise RuntimeError(f"{op}: {name} must be floating, got {tensor.dtype}")
        if tensor.device != input.device:
            raise RuntimeError(f"{op}: {name} is on {tensor.device}, input on {input.device}")
    if cos.ndim not in (2, 3) or sin.shape != cos.shape:
        raise ValueError(
            f"{op}: cos and sin must both be [positions, pairs] or [batch, positions, pairs], "
            f"got {list(cos.shape)} and "
            f"{list(sin.shape)}"
        )
    if 2 * cos.shape[-1] > input.shape[-1]:
        raise ValueError(f"{op}: {cos.shape[-1]} pairs do not fit into a head_dim of {input.shape[-1]}")
    if position_ids is None:
        return
    if offset:
        raise ValueError(f"{op}: give position_ids or an offset, not both")
    if position_ids.dtype not in INDICES:
        raise RuntimeError(f"{op}: position_ids must be int32 or int64, got {position_ids.dtype}")
    if position_ids.device != input.device:
        raise RuntimeError(f"{op}: position_ids is on {position_ids.device}, input on {input.device}")


def _rotate_torch(input, cos, sin, position_ids, offset, interleaved, sign=1):
    """The kernels' function in PyTorch's operators, differentiable in input, cos and sin."""
    length, pairs = input.shape[2], cos.shape[2]
    if position_ids is None:
        cos, sin = cos[:, offset : offset + length], sin[:, offset : offset + length]
    else:
        index = position_ids.long()[..., None].expand(*position_ids.shape, pairs)
        cos, sin = (table.expand(len(index), *table.shape[1:]).gather(1, index) for table in (cos, sin))
    dtype = statistics_dtype(input.dtype)
    wide, cos, sin = input.to(dtype), cos.to(dtype)[:, None], sin.to(dtype)[:, None] * sign
    turned, rest = wide[..., : 2 * pairs], wide[..., 2 * pairs :]
    x, y = (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :pairs], turned[..., pairs:])
    turned = (x * cos - y * sin, y * cos + x * sin)
    turned = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat([turned, rest], -1).to(input.dtype)


def _allocate(input, cos, sin, position_ids, offset, interleaved):
    return (input.new_empty(input.shape),)


def _setup(ctx, inputs, output):
    _, cos, sin, position_ids, ctx.offset, ctx.interleaved = inputs
    ctx.save_for_backward(cos, sin, position_ids)


def _backward_backward(ctx, grad):
    _no_gradient_of_angles(ctx)
    return rotary_embedding_forward(grad, *ctx.saved_tensors, ctx.offset, ctx.interleaved), *(None,) * 5


def _backward_forward(ctx, grad_output):
    _no_gradient_of_angles(ctx)
    return rotary_embedding_backward(grad_output, *ctx.saved_tensors, ctx.offset, ctx.interleaved), *(None,) * 5


def _no_gradient_of_angles(ctx):
    if any(ctx.needs_input_grad[1:3]):
        raise RuntimeError(
            "rotary_embedding: the kernels have no gradient of cos and sin; call rotary_embedding itself"
        )


rotary_embedding_backward = Kernel(
    "rotary_embedding_backward(Tensor grad_output, Tensor cos, Tensor sin, Tensor? position_ids, SymInt offset, "
    "bool interleaved) -> Tensor grad_input",
    module="rotary_embedding",
    allocate=_allocate,
    torch=lambda *args: (_rotate_torch(*args, sign=-1),),
    supports={"cpu": None, "triton": lambda grad_output, *_: triton_supports(grad_output)},
    setup_context=_setup,
    backward=_backward_backward,
)

rotary_embedding_forward = Kernel(
    "rotary_embedding_forward(Tensor input, Tensor cos, Tensor sin, Tensor? position_ids, SymInt offset, "
    "bool interleaved) -> Tensor output",
    module="rotary_embedding",
    allocate=_allocate,
    torch=lambda *args: (_rotate_torch(*args),),
    supports={"cpu": None, "triton": lambda input, *_: triton_supports(input)},
    setup_context=_setup,
    backward=_backward_forward,
)
