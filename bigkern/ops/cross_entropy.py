"""cross_entropy: how many nats a softmax over logits misses its targets by.

    log p  = input - logsumexp(input)       per row, over the classes
    mass_c = weight_c * (q_c * (1 - label_smoothing) + label_smoothing / C)
    loss   = -sum_c mass_c * log p_c

q is the target: given as probabilities, or 1 at the class of an index target and 0 elsewhere. "mean" divides the sum by
the weights of the index targets that are not ignored, or by the number of rows of probabilities. Label smoothing:
Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2015).

The kernels read the logits once and keep one number a row (lse, the logsumexp), from which the backward makes the
gradient in one more pass; no softmax is ever stored.
"""

import torch

from ..registration import Kernel, short_way, too_small

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
REDUCTIONS = ("none", "mean", "sum")
# From FEW logits on (from none on where a gradient is wanted) and below SMALL, PyTorch's own function is faster.
FEW, SMALL = 1 << 10, 1 << 18
SMALL_REASON = (
    f"PyTorch's own function measured faster below {SMALL} logits, but for fewer than {FEW} without gradients "
    "(benchmarks/bench_overhead.py)"
)


def cross_entropy(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The cross entropy loss between logits and target classes, as `torch.nn.functional.cross_entropy`.

    Args:
        input: floating logits [C], [N, C] or [N, C, d1, ...].
        target: int64 or uint8 class indices [] (or [1]), [N] or [N, d1, ...]; or floating probabilities of input's
            shape, which may require grad.
        weight: floating [C], a factor for each class; or None. Any floating dtype, unlike PyTorch.
        ignore_index: index targets of this value count for nothing; it need not be a class.
        reduction: "none", "mean" or "sum".
        label_smoothing: the share, 0 to 1, of the target that is spread evenly over all classes.

    Returns:
        The loss: [] for "mean" and "sum", one number per target for "none". Its dtype is input's (with probability
        targets: the widest of input, target and weight). "mean" is NaN where every target is ignored.

    Raises:
        IndexError: an index target is neither a class nor ignore_index. (On a GPU, where looking would stall it, the
            loss is NaN instead.)
        ValueError: batch sizes differ, or reduction is unknown.
        RuntimeError: any other shape, dtype or device that does not fit; a weight that requires grad with index
            targets.
    """
    options = (ignore_index, reduction, label_smoothing)
    if short := short_way():
        loss = short.cross_entropy(torch.is_grad_enabled(), FEW, SMALL, input, target, weight, *options)
        if loss is True:
            return _small_cross_entropy(input, target, *options)
        if loss is not None:
            return loss
    has_probabilities = target.shape == input.shape
    _check(input, target, weight, *options, has_probabilities)
    wants_gradient = torch.is_grad_enabled() and (input.requires_grad or target.requires_grad)
    small = weight is None and (0 if wants_gradient else FEW) <= input.numel() < SMALL
    if small and too_small("cross_entropy", SMALL_REASON, input, target):
        return _small_cross_entropy(input, target, *options)
    if has_probabilities:
        dtype = torch.promote_types(input.dtype, target.dtype)
        if weight is not None:
            dtype = torch.promote_types(dtype, weight.dtype)
        input, target = input.to(dtype), target.to(dtype)
        loss_shape = (*input.shape[:1], *input.shape[2:]) if input.ndim > 1 else ()
    else:
        target = target.to(torch.int64)
        loss_shape = target.shape if input.ndim > 1 else ()
    logits, target = _kernel_layout(input, target, has_probabilities)
    loss, _, _ = cross_entropy_forward(logits, target, weight, *options)
    return loss.view(loss_shape) if reduction == "none" else loss


def _small_cross_entropy(input, target, ignore_index, reduction, label_smoothing):
    return torch.nn.functional.cross_entropy(
        input, target, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def _check(input, target, weight, ignore_index, reduction, label_smoothing, has_probabilities):
    if input.dtype not in FLOATING:
        raise RuntimeError(f"cross_entropy: input must be floating, got {input.dtype}")
    if input.ndim == 0:
        raise RuntimeError("cross_entropy: input must have a dimension of classes, got a scalar")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if target.device != input.device or (weight is not None and weight.device != input.device):
        devices = [str(t.device) for t in (input, target, weight) if t is not None]
        raise RuntimeError(f"cross_entropy: input, target and weight must be on one device, got {', '.join(devices)}")
    classes = input.shape[0] if input.ndim == 1 else input.shape[1]
    if weight is not None:
        if weight.dtype not in FLOATING:
            raise RuntimeError(f"cross_entropy: weight must be floating, got {weight.dtype}")
        if weight.shape != (classes,):
            raise RuntimeError(
                f"cross_entropy: weight tensor should be defined either for all {classes} classes or no classes but "
                f"got weight tensor of shape: {list(weight.shape)}"
            )
    if has_probabilities:
        if target.dtype not in FLOATING:
            raise RuntimeError(
                f"Expected floating point type for target with class probabilities, got {target.dtype} (a target of "
                "input's shape holds probabilities)"
            )
        if ignore_index >= 0:
            raise RuntimeError("ignore_index is not supported for floating point target")
        return
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(
            f"cross_entropy: target must be int64 or uint8 class indices, or floating probabilities of input's shape "
            f"{list(input.shape)}; got {target.dtype} of shape {list(target.shape)}"
        )
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("cross_entropy: not differentiable with respect to weight where targets are class indices")
    if input.ndim == 1:
        if target.shape not in ((), (1,)):
            raise ValueError(f"For 1D input, 1D target must have size 1, but got target size: {target.numel()}")
        return
    batch = target.shape[0] if target.ndim else 0
    if batch != input.shape[0]:
        raise ValueError(f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({batch}).")
    expected = [input.shape[0], *input.shape[2:]]
    if list(target.shape) != expected:
        raise RuntimeError(f"Expected target size {expected}, got {list(target.shape)}")


def _kernel_layout(input, target, has_probabilities):
    """(logits [N, C, D], target [N, D] or [N, C, D]): views in which classes, or else positions, lie side by side."""
    if input.ndim == 2 and input.stride(1) == 1:  # the common case, without what follows
        return input.unsqueeze(2), target.unsqueeze(-1)
    if input.ndim == 1:
        input = input.unsqueeze(0)
        target = target.unsqueeze(0) if has_probabilities else target.reshape(1)
    n, c = input.shape[:2]
    input = input.reshape(n, c, input.shape[2:].numel())
    d = input.shape[2]
    target = target.reshape(n, c, d) if has_probabilities else target.reshape(n, d)
    outer, classes, inner = input.stride()
    if d > 1 and classes == 1 and (n == 1 or outer == d * inner):  # channels last: rows of classes
        input = input.transpose(1, 2).reshape(n * d, c, 1)
        target = target.transpose(1, 2).reshape(n * d, c, 1) if has_probabilities else target.reshape(n * d, 1)
    elif d == 1 and n > 1 and outer == 1:  # transposed: the rows are positions
        input = input.transpose(0, 2)
        target = target.transpose(0, -1)
    return input, target


def _accumulate_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- cross_entropy_forward -------------------------------------------------------------------------------------------


def _allocate_forward(input, target, weight, ignore_index, reduction, label_smoothing):
    n, _, d = input.shape
    acc = _accumulate_dtype(input.dtype)
    return (
        input.new_empty((n, d) if reduction == "none" else ()),
        input.new_empty((n, d), dtype=acc),
        input.new_empty((), dtype=acc),
    )


def _forward_torch(input, target, weight, ignore_index, reduction, label_smoothing):
    x = input.to(_accumulate_dtype(input.dtype))
    if target.is_floating_point():
        target = target.to(x.dtype)
    if x.shape[2] == 1:  # PyTorch sums more precisely over a last dimension
        x, target = x.squeeze(2), target.squeeze(-1)
    weight = None if weight is None else weight.to(x.dtype)
    if x.shape[1] == 0:  # PyTorch raises for some of these
        loss = x.sum(1) if reduction == "none" else x.new_full((), float("nan") if reduction == "mean" else 0)
    else:
        loss = torch.nn.functional.cross_entropy(
            x, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
    lse = torch.logsumexp(x, 1)
    # The kernels' exp(x - lse) gives PyTorch's NaN for such rows.
    lse = lse.masked_fill(lse.isinf(), float("nan")).view(input.shape[0], input.shape[2])
    loss = loss.to(input.dtype)
    total_weight = _total_weight_torch(x, target, weight, ignore_index)
    return loss.view(lse.shape) if reduction == "none" else loss, lse, total_weight


def _total_weight_torch(x, target, weight, ignore_index):
    classes = x.shape[1]
    if classes == 0:
        return x.new_zeros(())
    if target.is_floating_point():
        return x.new_full((), x.numel() // classes)
    counted = target != ignore_index
    if weight is None:
        return counted.sum(dtype=x.dtype)
    return weight[target.where(counted, 0)].where(counted, 0).sum()


def _log_softmax_torch(x):
    return torch.log_softmax(x.squeeze(2), 1).unsqueeze(2) if x.shape[2] == 1 else torch.log_softmax(x, 1)


def _setup_context(ctx, inputs, output):
    input, target, weight, ctx.ignore_index, ctx.reduction, ctx.label_smoothing = inputs
    _, lse, total_weight = output
    ctx.save_for_backward(input, target, weight, lse, total_weight)
    ctx.mark_non_differentiable(lse, total_weight)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_loss, _grad_lse, _grad_total_weight):
    if grad_loss is None:
        return (None,) * 6
    input, target, weight, lse, total_weight = ctx.saved_tensors
    needs_input_grad, needs_target_grad, needs_weight_grad = ctx.needs_input_grad[:3]
    options = (ctx.ignore_index, ctx.reduction, ctx.label_smoothing)
    grad_input = grad_target = grad_weight = None
    if needs_input_grad or needs_target_grad:
        grad_input, grad_target = cross_entropy_backward(
            grad_loss, input, target, weight, lse, total_weight, *options, needs_target_grad
        )
    if needs_weight_grad:
        # Rare, and the same logarithms as PyTorch's own: composed.
        share = grad_loss / total_weight if ctx.reduction == "mean" else grad_loss
        share = share.expand(lse.shape).unsqueeze(1)
        q = target * (1 - ctx.label_smoothing) + ctx.label_smoothing / input.shape[1]
        grad_weight = -(share * q * torch.log_softmax(input, 1)).sum((0, 2)).to(weight.dtype)
    return grad_input, grad_target if needs_target_grad else None, grad_weight, None, None, None


cross_entropy_forward = Kernel(
    "cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction, "
    "float label_smoothing) -> (Tensor loss, Tensor lse, Tensor total_weight)",
    module="cross_entropy",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={
        "cpu": None,
        "triton": lambda input, *_: _gpu_supports(input),
        "cuda": lambda input, *_: _cuda_supports(input),
    },
    setup_context=_setup_context,
    backward=_backward,
    autocast="float32",
)


# ---- cross_entropy_backward ------------------------------------------------------------------------------------------


def _allocate_backward(
    grad_loss, input, target, weight, lse, total_weight, ignore_index, reduction, label_smoothing, needs_target_grad
):
    return (
        input.new_empty(input.shape),
        target.new_empty(target.shape) if needs_target_grad else input.new_empty(0),
    )


def _backward_torch(
    grad_loss, input, target, weight, lse, total_weight, ignore_index, reduction, label_smoothing, needs_target_grad
):
    if input.numel() == 0:
        return input.clone(), target.clone() if needs_target_grad else input.new_empty(0)
    # From the logits and not from lse, which autograd takes for a constant: this is what second derivatives go through.
    log_p = _log_softmax_torch(input.to(lse.dtype))
    classes = input.shape[1]
    weight = None if weight is None else weight.to(lse.dtype)[:, None]
    if target.is_floating_point():
        q = target.to(lse.dtype)
        row_share = torch.ones_like(lse)
    else:
        counted = target != ignore_index
        q = torch.nn.functional.one_hot(target.where(counted, 0), classes).movedim(-1, 1).to(lse.dtype)
        row_share = counted.to(lse.dtype)
    if reduction == "mean":
        row_share = (row_share / total_weight).where(row_share != 0, 0)
    mass = q * (1 - label_smoothing) + label_smoothing / classes
    if weight is not None:
        mass = mass * weight
    scale = (grad_loss.to(lse.dtype) * row_share)[:, None]
    grad_input = scale * (log_p.exp() * mass.sum(1, keepdim=True) - mass)
    if not needs_target_grad:
        return grad_input.to(input.dtype), input.new_empty(0)
    grad_target = scale * (label_smoothing - 1) * log_p
    if weight is not None:
        grad_target = grad_target * weight
    return grad_input.to(input.dtype), grad_target.to(target.dtype)


def _gpu_supports(input):
    return "float64 is left to PyTorch on a GPU" if input.dtype == torch.float64 else None


def _cuda_supports(input):
    # Within a row, the kernels count in 32 bits.
    return "more than 2^30 classes" if input.shape[1] > 1 << 30 else _gpu_supports(input)


cross_entropy_backward = Kernel(
    "cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight, Tensor lse, "
    "Tensor total_weight, int ignore_index, str reduction, float label_smoothing, bool needs_target_grad) "
    "-> (Tensor grad_input, Tensor grad_target)",
    module="cross_entropy",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={
        "cpu": None,
        "triton": lambda grad_loss, input, *_: _gpu_supports(input),
        "cuda": lambda grad_loss, input, *_: _cuda_supports(input),
    },
    recompute=True,
)
