"""Losses that treat every element alone: one kernel forward and one backward, with the formula as a constexpr."""

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, on_device_of

BLOCK = 2048  # elements of a program: 16 a thread
NUM_WARPS = 4


@triton.jit
def log1p_exp_minus(magnitude):
    """log(1 + exp(-magnitude)) for magnitude >= 0: what 1 + u rounds off is put back by the quotient."""
    u = tl.exp(-magnitude)
    rounded = (1.0 + u) - 1.0
    return tl.where(rounded == 0, u, tl.log(1.0 + u) * (u / tl.where(rounded == 0, 1.0, rounded)))


@triton.jit
def load_weight(weight_ptr, period, offsets, mask):
    """The weights of elements, from the vector that they repeat; 1 where there is none."""
    weight = tl.full(offsets.shape, 1.0, dtype=tl.float32)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + offsets % period, mask=mask, other=0).to(tl.float32)
    return weight


@triton.jit
def loss_of_elements(x, t, weight, pos_weight, KIND: tl.constexpr):
    """The losses, fp32."""
    if KIND == "mse":
        loss = (x - t) * (x - t)
    elif KIND == "binary_cross_entropy":
        softplus = log1p_exp_minus(tl.abs(x)) + tl.where(x < 0, -x, 0.0)  # log(1 + exp(-x))
        loss = weight * ((1.0 - t) * x + (1.0 + (pos_weight - 1.0) * t) * softplus)
    elif KIND == "kl_log":
        loss = tl.exp(t) * (t - x)
    else:
        tl.static_assert(KIND == "kl", "unknown loss")
        loss = tl.where(t == 0, 0.0, t * tl.log(tl.where(t == 0, 1.0, t))) - t * x
    return loss


@triton.jit
def slopes_of_elements(x, t, weight, pos_weight, KIND: tl.constexpr):
    """(d loss / d input, d loss / d target), fp32."""
    if KIND == "mse":
        slope = 2.0 * (x - t)
        target_slope = -slope
    elif KIND == "binary_cross_entropy":
        decay = tl.exp(-tl.abs(x))
        smaller = decay / (1.0 + decay)
        larger = 1.0 / (1.0 + decay)
        of_plus = tl.where(x < 0, smaller, larger)  # sigmoid(x)
        of_minus = tl.where(x < 0, larger, smaller)
        slope = weight * ((1.0 - t) * of_plus - pos_weight * t * of_minus)
        softplus = log1p_exp_minus(tl.abs(x)) + tl.where(x < 0, -x, 0.0)
        target_slope = weight * ((pos_weight - 1.0) * softplus - x)
    elif KIND == "kl_log":
        slope = -tl.exp(t)
        target_slope = tl.exp(t) * (t - x + 1.0)
    else:
        tl.static_assert(KIND == "kl", "unknown loss")
        slope = -t
        target_slope = tl.where(t > 0, tl.log(tl.where(t > 0, t, 1.0)) + 1.0 - x, float("nan"))
    return slope, target_slope


@triton.jit
def pointwise_loss_kernel(
    input_ptr,
    target_ptr,
    weight_ptr,
    pos_weight_ptr,
    loss_ptr,
    num_elements,
    weight_period,
    pos_weight_period,
    KIND: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The losses, or their sum over each program's elements (SUM)."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < num_elements
    x = tl.load(input_ptr + offsets, mask=mask, other=0).to(tl.float32)
    t = tl.load(target_ptr + offsets, mask=mask, other=0).to(tl.float32)
    weight = load_weight(weight_ptr, weight_period, offsets, mask)
    pos_weight = load_weight(pos_weight_ptr, pos_weight_period, offsets, mask)
    loss = loss_of_elements(x, t, weight, pos_weight, KIND)
    if SUM:
        tl.store(loss_ptr + tl.program_id(0), tl.sum(tl.where(mask, loss, 0.0), axis=0))
    else:
        tl.store(loss_ptr + offsets, loss, mask=mask)


@triton.jit
def pointwise_loss_backward_kernel(
    grad_loss_ptr,
    input_ptr,
    target_ptr,
    weight_ptr,
    pos_weight_ptr,
    grad_input_ptr,
    grad_target_ptr,
    num_elements,
    weight_period,
    pos_weight_period,
    share,
    KIND: tl.constexpr,
    PER_ELEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < num_elements
    x = tl.load(input_ptr + offsets, mask=mask, other=0).to(tl.float32)
    t = tl.load(target_ptr + offsets, mask=mask, other=0).to(tl.float32)
    weight = load_weight(weight_ptr, weight_period, offsets, mask)
    pos_weight = load_weight(pos_weight_ptr, pos_weight_period, offsets, mask)
    if PER_ELEMENT:
        grad_loss = tl.load(grad_loss_ptr + offsets, mask=mask, other=0).to(tl.float32)
    else:
        grad_loss = tl.load(grad_loss_ptr).to(tl.float32) * share
    slope, target_slope = slopes_of_elements(x, t, weight, pos_weight, KIND)
    tl.store(grad_input_ptr + offsets, grad_loss * slope, mask=mask)
    if grad_target_ptr is not None:
        tl.store(grad_target_ptr + offsets, grad_loss * target_slope, mask=mask)


def share_of_element(input, reduction):
    """By what the sum of the losses is multiplied."""
    divisor = {"mean": input.numel(), "batchmean": input.shape[0]}.get(reduction, 1)
    return 1.0 / divisor if divisor else float("nan")


def period_of(weight):
    return 1 if weight is None else max(weight.numel(), 1)


def launch_forward(input, target, weight, pos_weight, reduction, kind, loss):
    count = input.numel()
    num_programs = triton.cdiv(count, BLOCK)
    per_element = reduction == "none"
    with on_device_of(input):
        partial = loss if per_element else torch.empty(num_programs, dtype=torch.float32, device=input.device)
        if count > 0:
            pointwise_loss_kernel[(num_programs,)](
                input,
                target,
                weight,
                pos_weight,
                partial,
                count,
                period_of(weight),
                period_of(pos_weight),
                KIND=kind,
                SUM=not per_element,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
                **COMPILE_OPTIONS,
            )
        if not per_element:
            loss.copy_(partial.sum() * share_of_element(input, reduction))  # one order of summation, unlike atomics


def launch_backward(
    grad_loss, input, target, weight, pos_weight, reduction, kind, needs_target_grad, grad_input, grad_target
):
    count = input.numel()
    if count == 0:
        return
    with on_device_of(input):
        pointwise_loss_backward_kernel[(triton.cdiv(count, BLOCK),)](
            grad_loss,
            input,
            target,
            weight,
            pos_weight,
            grad_input,
            grad_target if needs_target_grad else None,
            count,
            period_of(weight),
            period_of(pos_weight),
            share_of_element(input, reduction),
            KIND=kind,
            PER_ELEMENT=reduction == "none",
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            **COMPILE_OPTIONS,
        )
