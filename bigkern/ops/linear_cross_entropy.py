"""linear_cross_entropy: the loss of a classifier's last layer, without its logits ever being in memory together.

    logits = input @ linear_weight.T + linear_bias
    loss   = cross_entropy(logits, target)          (see bigkern.cross_entropy)

For N rows and C classes the logits are N x C numbers, as many again for their gradient: with a language model's
vocabulary, most of the memory of a training step. Here a tile of them goes into the row's running logsumexp as soon as
it is computed (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Where a gradient will be
wanted, the rows are taken in chunks: logits, loss, gradient of the logits and its products with input and
linear_weight, before the next chunk. A loss of one number has its gradients computed in the forward, up to the factor
that the backward brings: three products in all, as many as with the logits kept.
"""

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from ..registration import Kernel, autocast_enabled, cast_floating, too_small
from .cross_entropy import FLOATING, REDUCTIONS, cross_entropy
from .linear_act import apply_linear

SMALL = 1 << 23
SMALL_REASON = (
    f"below {SMALL} multiplications PyTorch's own functions measured faster (benchmarks/bench_linear_cross_entropy.py)"
)

AFFORDABLE = 1 << 25


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
    options=None,
):
    """The cross entropy between `input @ linear_weight.T + linear_bias` and target classes, as
    `torch.nn.functional.linear_cross_entropy`.

    Args:
        input: floating [in_features] or [N, in_features].
        linear_weight: [C, in_features], or [C, d1, ..., in_features] for a loss at each of d1 x ... positions; of
            input's dtype (any floating dtype but float64 under autocast).
        target: int64 or uint8 class indices [] , [N] or [N, d1, ...]; or floating probabilities [C], [N, C] or
            [N, C, d1, ...]. Probabilities are as large as the logits: those are then computed as a whole.
        linear_bias: [C] or [C, d1, ...], or None.
        weight: floating [C], a factor for each class; or None.
        reduction: "none", "mean" or "sum".
        ignore_index: index targets of this value count for nothing; None stands for -100.
        label_smoothing: the share, 0 to 1, of the target that is spread evenly over all classes.
        options: PyTorch's LinearCrossEntropyOptions say how to cut the work into chunks; the kernels choose theirs
            themselves, and this argument changes nothing.

    Returns:
        The loss, of input's dtype (float32 under autocast): [] for "mean" and "sum", one number per target for "none".
        Differentiable in input, linear_weight and linear_bias, any number of times.

    Raises:
        IndexError: an index target is neither a class nor ignore_index. (On a GPU, where looking would stall it, the
            loss is NaN instead.)
        RuntimeError, ValueError: a shape, dtype, device or reduction does not fit.
    """
    del options
    _check(input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing)
    classes, *positions = linear_weight.shape[:-1]
    logits_shape = (*input.shape[:-1], classes, *positions)
    if target.shape == logits_shape:
        flat_bias = None if linear_bias is None else linear_bias.flatten()
        logits = apply_linear(input, linear_weight.flatten(0, -2), flat_bias, "none", "linear_cross_entropy")
        return cross_entropy(
            logits.view(logits_shape), target, weight, reduction=reduction, label_smoothing=label_smoothing
        )
    ignore_index = -100 if ignore_index is None else ignore_index
    loss_shape = target.shape
    work = input.numel() * (linear_weight.numel() // max(linear_weight.shape[-1], 1))
    if not positions and input.ndim == 2 and work < SMALL:
        given = [tensor for tensor in (input, linear_weight, linear_bias, weight) if tensor is not None]
        same_dtype = all(tensor.dtype == input.dtype for tensor in given)
        if same_dtype and too_small("linear_cross_entropy", SMALL_REASON, *given, target):
            logits = F.linear(input, linear_weight, linear_bias)
            return F.cross_entropy(
                logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
            )
    dtype = input.dtype
    if autocast_enabled(input.device.type):
        to = torch.get_autocast_dtype(input.device.type)
        input, linear_weight, linear_bias = (
            cast_floating(tensor, to) for tensor in (input, linear_weight, linear_bias)
        )
        dtype = _accumulate_dtype(dtype)  # as PyTorch's cross_entropy under autocast
    if input.ndim == 1:
        input, target = input.unsqueeze(0), target.reshape(1)
    target = target.to(torch.int64)
    arguments = (weight, ignore_index, label_smoothing)
    if positions:
        loss = _loss_at_positions(input, linear_weight, linear_bias, target, *arguments, reduction)
    else:
        loss = _loss(input, linear_weight, linear_bias, target, *arguments, reduction)
    loss = loss.to(dtype)
    return loss.view(loss_shape) if reduction == "none" else loss


def _loss(input, linear_weight, linear_bias, target, weight, ignore_index, label_smoothing, reduction):
    needs = (False, False, False)
    # "none" has a factor for each row, which only the backward knows. In float16 gradients without the factor that
    # scales the loss would fall below the smallest number. PyTorch's formulas serve forward-mode derivatives.
    one_factor = reduction != "none" and input.dtype != torch.float16
    if one_factor and torch.is_grad_enabled() and forward_ad._current_level < 0:
        needs = tuple(t is not None and t.requires_grad for t in (input, linear_weight, linear_bias))
    options = (ignore_index, reduction, label_smoothing)
    return linear_cross_entropy_forward(input, linear_weight, linear_bias, target, weight, *options, *needs)[0]


def _loss_at_positions(input, linear_weight, linear_bias, target, weight, ignore_index, label_smoothing, reduction):
    """The loss of a linear layer per position: the positions' logits do not meet in memory either."""
    classes, features = linear_weight.shape[0], linear_weight.shape[-1]
    linear_weight = linear_weight.reshape(classes, -1, features)
    linear_bias = None if linear_bias is None else linear_bias.reshape(classes, -1)
    targets = target.reshape(target.shape[0], linear_weight.shape[1])
    losses = [
        _loss(
            input,
            linear_weight[:, place],
            None if linear_bias is None else linear_bias[:, place],
            targets[:, place],
            weight,
            ignore_index,
            label_smoothing,
            "none",
        )
        for place in range(linear_weight.shape[1])
    ]
    losses = torch.stack(losses, 1) if losses else input.new_empty(targets.shape, dtype=_accumulate_dtype(input.dtype))
    if reduction == "none":
        return losses
    loss = losses.sum()
    return loss / _total_weight(targets, weight, ignore_index, loss.dtype) if reduction == "mean" else loss


def _check(input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing):
    if input.dtype not in FLOATING:
        raise RuntimeError(f"linear_cross_entropy: input must be floating, got {input.dtype}")
    if input.ndim not in (1, 2):
        raise RuntimeError(f"expected input with dimensionality 1 or 2, got {input.ndim}")
    if linear_weight.ndim < 2:
        raise RuntimeError(f"expected linear_weight with dimensionality at least 2, got {linear_weight.ndim}")
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), "
            f"got {input.shape[-1]} and {linear_weight.shape[-1]}, respectively"
        )
    casts = autocast_enabled(input.device.type)
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is None or (tensor.dtype == input.dtype and tensor.device == input.device):
            continue
        if tensor.dtype != input.dtype and not (
            casts and tensor.dtype in FLOATING and torch.float64 not in (input.dtype, tensor.dtype)
        ):
            raise RuntimeError(f"linear_cross_entropy: {name} must be {input.dtype} as input, got {tensor.dtype}")
        if tensor.device != input.device:
            raise RuntimeError(f"linear_cross_entropy: {name} is on {tensor.device}, input on {input.device}")
    classes, *positions = linear_weight.shape[:-1]
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise RuntimeError(
            f"expected linear_bias shape {tuple(linear_weight.shape[:-1])}, got {tuple(linear_bias.shape)}"
        )
    if positions and input.ndim == 1:
        raise RuntimeError(
            f"K-dimensional loss defined by linear_weight shape {tuple(linear_weight.shape)} requires batched input, "
            f"(N, {input.shape[-1]}), got unbatched input with shape {tuple(input.shape)}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"linear_cross_entropy: {name} is on {tensor.device}, input on {input.device}")
    if target.shape == (*input.shape[:-1], classes, *positions):
        if ignore_index is not None:
            raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
        return  # cross_entropy checks the rest
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(
            f"linear_cross_entropy: target must be int64 or uint8 class indices, or floating probabilities; got "
            f"{target.dtype} of shape {list(target.shape)}"
        )
    expected = [*input.shape[:-1], *positions]
    if list(target.shape) != expected and not (input.ndim == 1 and target.shape == (1,)):
        raise ValueError(f"Expected target size {expected}, got {list(target.shape)}")
    if weight is not None:
        if weight.dtype not in FLOATING:
            raise RuntimeError(f"linear_cross_entropy: weight must be floating, got {weight.dtype}")
        if weight.shape != (classes,):
            raise RuntimeError(
                f"linear_cross_entropy: weight tensor should be defined either for all {classes} classes or no classes "
                f"but got weight tensor of shape: {list(weight.shape)}"
            )
        if weight.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "linear_cross_entropy: not differentiable with respect to weight where targets are class indices"
            )


def _accumulate_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _total_weight(target, weight, ignore_index, dtype):
    """What "mean" divides by, []."""
    counted = target != ignore_index
    if weight is None:
        return counted.sum(dtype=dtype)
    legal = counted & (target >= 0) & (target < weight.shape[0])
    return weight.to(dtype)[target.where(legal, 0)].where(legal, 0).sum()


def _empty_gradients(input, linear_weight, needs_input_grad, needs_weight_grad, needs_bias_grad):
    return (
        input.new_empty(input.shape if needs_input_grad else 0),
        input.new_empty(linear_weight.shape if needs_weight_grad else 0),
        input.new_empty(linear_weight.shape[0] if needs_bias_grad else 0),
    )


def _bfloat16_is_faster_in_torch(input, linear_weight, wants_gradient):
    size = input.shape[0] * linear_weight.shape[0]
    if (
        wants_gradient
        and input.is_cpu
        and input.dtype == torch.bfloat16
        and input.shape[0] >= 64
        and size <= AFFORDABLE
    ):
        return (
            f"PyTorch's bfloat16 products measured faster from 64 rows on; up to {AFFORDABLE} logits are worth their "
            "memory (benchmarks/bench_linear_cross_entropy.py)"
        )
    return None


def _gpu_supports(input):
    return "float64 is left to PyTorch on a GPU" if input.dtype == torch.float64 else None


# ---- linear_cross_entropy_forward ------------------------------------------------------------------------------------


def _allocate_forward(
    input, linear_weight, linear_bias, target, weight, ignore_index, reduction, label_smoothing, *needs
):
    loss = input.new_empty(target.shape if reduction == "none" else (), dtype=_accumulate_dtype(input.dtype))
    return loss, *_empty_gradients(input, linear_weight, *needs)


def _compose(input, linear_weight, linear_bias, target, weight, ignore_index, reduction, label_smoothing):
    # float16 has no room for the sum over the classes that label smoothing takes.
    logits = F.linear(input, linear_weight, linear_bias).to(_accumulate_dtype(input.dtype))
    weight = None if weight is None else weight.to(logits.dtype)
    return F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def _forward_torch(input, linear_weight, linear_bias, target, weight, ignore_index, reduction, label_smoothing, *needs):
    rest = (target, weight, ignore_index, reduction, label_smoothing)
    if not any(needs):
        return _compose(input, linear_weight, linear_bias, *rest), *(input.new_empty(0) for _ in range(3))
    tensors = [
        None if tensor is None else tensor.detach().requires_grad_(need)
        for tensor, need in zip((input, linear_weight, linear_bias), needs, strict=True)
    ]
    with torch.enable_grad():
        loss = _compose(*tensors, *rest)
        found = iter(torch.autograd.grad(loss, [t for t, need in zip(tensors, needs, strict=True) if need]))
    return loss.detach(), *(next(found) if need else input.new_empty(0) for need in needs)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.ignore_index, ctx.reduction, ctx.label_smoothing, _, _, _ = inputs
    ctx.precomputed = inputs[8:]
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_loss, *_):
    needs = tuple(ctx.needs_input_grad[:3])
    grads = (None, None, None)
    if grad_loss is not None:
        *tensors, grad_input, grad_weight, grad_bias = ctx.saved_tensors
        # What the forward computed is a constant to autograd: a second derivative goes through the kernel below.
        if ctx.precomputed == needs and not torch.is_grad_enabled():
            grads = [grad * grad_loss for grad in (grad_input, grad_weight, grad_bias)]
        else:
            options = (ctx.ignore_index, ctx.reduction, ctx.label_smoothing)
            grads = linear_cross_entropy_backward(grad_loss, *tensors, *options, *needs)
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 8


_OPTIONS = "int ignore_index, str reduction, float label_smoothing"
_NEEDS = "bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad"
_GRADIENTS = "Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias"

linear_cross_entropy_forward = Kernel(
    "linear_cross_entropy_forward(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, "
    f"Tensor? weight, {_OPTIONS}, {_NEEDS}) -> (Tensor loss, {_GRADIENTS})",
    module="linear_cross_entropy",
    allocate=_allocate_forward,
    torch=_forward_torch,
    torch_is_faster=lambda input, linear_weight, *rest: _bfloat16_is_faster_in_torch(
        input, linear_weight, any(rest[-3:])
    ),
    supports={"cpu": None, "triton": lambda input, *_: _gpu_supports(input)},
    setup_context=_setup_context,
    backward=_backward,
)


# ---- linear_cross_entropy_backward -----------------------------------------------------------------------------------


def _allocate_backward(
    grad_loss,
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    *needs,
):
    return _empty_gradients(input, linear_weight, *needs)


def _backward_torch(
    grad_loss,
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
):
    acc = _accumulate_dtype(input.dtype)
    p = torch.softmax(F.linear(input, linear_weight, linear_bias).to(acc), 1)
    counted = target != ignore_index
    own = F.one_hot(target.where(counted, 0), linear_weight.shape[0]).to(acc)
    mass = own * (1 - label_smoothing) + label_smoothing / max(linear_weight.shape[0], 1)
    if weight is not None:
        mass = mass * weight.to(acc)
    scale = grad_loss * counted
    if reduction == "mean":
        scale = (scale / _total_weight(target, weight, ignore_index, acc)).where(counted, 0)
    grad_logits = (scale[:, None] * (p * mass.sum(1, keepdim=True) - mass)).to(input.dtype)
    return (
        grad_logits @ linear_weight if needs_input_grad else input.new_empty(0),
        grad_logits.t() @ input if needs_weight_grad else input.new_empty(0),
        grad_logits.sum(0) if needs_bias_grad else input.new_empty(0),
    )


linear_cross_entropy_backward = Kernel(
    "linear_cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor linear_weight, Tensor? linear_bias, "
    f"Tensor target, Tensor? weight, {_OPTIONS}, {_NEEDS}) -> ({_GRADIENTS})",
    module="linear_cross_entropy",
    allocate=_allocate_backward,
    torch=_backward_torch,
    torch_is_faster=lambda grad_loss, input, linear_weight, *_: _bfloat16_is_faster_in_torch(
        input, linear_weight, True
    ),
    supports={"cpu": None, "triton": lambda grad_loss, input, *_: _gpu_supports(input)},
    recompute=True,
)
