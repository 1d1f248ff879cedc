"""distillation_loss: how far a student's softened distribution is from its teacher's, from the logits of both.

    p = softmax(teacher / T)        q = softmax(student / T)        loss = T^2 * sum_c p_c (log p_c - log q_c)
    grad_student = T (q - p) grad_loss

The factor T^2 keeps the gradient's size when the temperature T is changed. Source: Hinton, Vinyals and Dean,
"Distilling the Knowledge in a Neural Network" (2015). Both softmaxes and the sum take one kernel, and nothing of the
logits' size is stored but the gradient.
"""

import torch
import torch.nn.functional as F

from ..pointwise_loss import accumulate_dtype, check_reduction, check_tensors
from ..registration import Kernel

# The loss is what a difference leaves, of about 1 / temperature^2. Triton's kernel, which sums in float32, was seen to
# exceed the numerical policy above this.
TRITON_TEMPERATURE = 2.5


def distillation_loss(student, teacher, temperature=1.0, reduction="mean"):
    """The Kullback-Leibler divergence of softmax(student / temperature) from softmax(teacher / temperature), times
    temperature^2.

    Args:
        student: floating logits [..., C].
        teacher: floating logits of student's shape; a constant, which gets no gradient.
        temperature: above 0; the higher, the softer both distributions.
        reduction: "mean" over the rows (for [N, C] what kl_div calls "batchmean"), "sum" or "none".

    Returns:
        The loss, of the wider of the dtypes (float32 under autocast): [], or [...] for "none". Differentiable in
        student, any number of times. Classes where the teacher's logit is -inf count for nothing.

    Raises:
        RuntimeError: a tensor is not floating or on another device, the shapes differ, or teacher requires a gradient.
        ValueError: reduction is unknown or temperature not above 0.
    """
    op = "distillation_loss"
    check_tensors(op, student=student, teacher=teacher)
    check_reduction(reduction)
    if teacher.shape != student.shape or student.ndim == 0:
        raise RuntimeError(
            f"{op}: student and teacher must have one shape [..., C], got {list(student.shape)} and "
            f"{list(teacher.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"{op}: temperature must be above 0, got {temperature}")
    if teacher.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{op}: not differentiable with respect to teacher; pass teacher.detach()")
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    rows_shape, classes = student.shape[:-1], student.shape[-1]
    student, teacher = (logits.to(dtype).reshape(rows_shape.numel(), classes) for logits in (student, teacher))
    arguments = (student.contiguous(), teacher.contiguous(), float(temperature), reduction)
    loss, _ = distillation_loss_forward(*arguments)
    return loss.view(rows_shape) if reduction == "none" else loss


def _composed(student, teacher, temperature, reduction):
    """What a user without the op writes."""
    log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    losses = temperature**2 * F.kl_div(log_q, p, reduction="none").sum(-1)
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


def _triton_supports(student):
    return "float64 is left to PyTorch on a GPU" if student.dtype == torch.float64 else None


def _triton_supports_forward(student, teacher, temperature, reduction):
    if student.dtype == torch.float32 and temperature > TRITON_TEMPERATURE:
        return f"above a temperature of {TRITON_TEMPERATURE} float32 sums lose too much of their difference"
    return _triton_supports(student)


# ---- distillation_loss_backward --------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _backward_torch(grad_loss, student, teacher, statistics, temperature, reduction):
    acc = statistics.dtype
    q = torch.softmax(student.to(acc) / temperature, 1)
    share = grad_loss.to(acc) * temperature
    share = share[:, None] if reduction == "none" else share / (student.shape[0] if reduction == "mean" else 1)
    return ((share * (q - torch.softmax(teacher.to(acc) / temperature, 1))).to(student.dtype),)


distillation_loss_backward = Kernel(
    "distillation_loss_backward(Tensor grad_loss, Tensor student, Tensor teacher, Tensor statistics, "
    "float temperature, str reduction) -> Tensor",
    module="distillation_loss",
    allocate=lambda grad_loss, student, *_: (student.new_empty(student.shape),),
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_loss, student, *_: _triton_supports(student)},
    recompute=True,
)


# ---- distillation_loss_forward ---------------------------------------------------------------------------------------


def _allocate_forward(student, teacher, temperature, reduction):
    rows = student.shape[0]
    statistics = student.new_empty((rows, 4), dtype=accumulate_dtype(student.dtype))
    return student.new_empty((rows,) if reduction == "none" else ()), statistics


def _forward_torch(student, teacher, temperature, reduction):
    acc = accumulate_dtype(student.dtype)
    scaled = [logits.to(acc) / temperature for logits in (student, teacher)]
    loss = _composed(*(logits.to(acc) for logits in (student, teacher)), temperature, reduction)
    if student.shape[1] == 0:
        return loss.to(student.dtype), loss.new_zeros(student.shape[0], 4)
    columns = []
    for logits in scaled:
        largest = logits.amax(1, keepdim=True)
        columns += [largest * temperature, (logits - largest).exp().sum(1, keepdim=True)]
    return loss.to(student.dtype), torch.cat(columns, 1)


def _setup_context(ctx, inputs, output):
    student, teacher, ctx.temperature, ctx.reduction = inputs
    ctx.save_for_backward(student, teacher, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_loss, _grad_statistics):
    if grad_loss is None:
        return (None,) * 4
    arguments = (*ctx.saved_tensors, ctx.temperature, ctx.reduction)
    return distillation_loss_backward(grad_loss.contiguous(), *arguments), None, None, None


distillation_loss_forward = Kernel(
    "distillation_loss_forward(Tensor student, Tensor teacher, float temperature, str reduction) "
    "-> (Tensor loss, Tensor statistics)",
    module="distillation_loss",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": _triton_supports_forward},
    setup_context=_setup_context,
    backward=_backward,
    autocast="float32",
)
