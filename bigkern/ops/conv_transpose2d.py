"""conv_transpose2d: the transpose of conv2d, which spreads every pixel over the places that its kernel reaches.

Its forward is the kernel of conv2d's grad_input, its grad_input that of conv2d's forward, and its grad_weight conv2d's
with input and grad_output exchanged. Each output pixel gathers what reaches it, so nothing is added twice to the same
place: the result does not depend on an order. Source: Zeiler et al., "Deconvolutional Networks" (2010).
"""

import torch
import torch.nn.functional as F

from ..conv_arguments import (
    check_geometry,
    check_tensors,
    empty_image,
    leave_to_torch,
    memory_format,
    pair,
    torch_is_faster,
    transposed_size,
    triton_supports,
)
from ..registration import Kernel


def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """Transposed convolution of images, as `torch.nn.functional.conv_transpose2d`.

    Args:
        input: floating tensor [N, C, H, W] or [C, H, W].
        weight: [C, out_channels / groups, kernel_height, kernel_width], of input's dtype (any floating dtype but
            float64 under autocast).
        bias: [out_channels] or None.
        stride, dilation: an int, or (vertical, horizontal), in pixels of the output.
        padding: the same; so many pixels are cut from each side of the output.
        output_padding: the same; so many are added to its lower and right side. Less than stride or dilation.
        groups: the channels are cut into so many parts that do not meet.

    Returns:
        [N, out_channels, output_height, output_width] of input's dtype, in channels_last format where input or weight
        has it; output_height = (H - 1) * stride - 2 * padding + dilation * (kernel_height - 1) + output_padding + 1.
        Differentiable in input, weight and bias, any number of times.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes, options or devices do not go together.
    """
    op = "conv_transpose2d"
    check_tensors(op, input, weight, bias, groups, transposed=True)
    stride, padding, dilation = pair(stride, "stride", op), pair(padding, "padding", op), pair(dilation, "dilation", op)
    output_padding = pair(output_padding, "output_padding", op)
    check_geometry(op, stride, padding, dilation)
    for extra, s, d in zip(output_padding, stride, dilation, strict=True):
        if not 0 <= extra < max(s, d):
            raise ValueError(
                f"{op}: output_padding must be smaller than stride or dilation, got {output_padding} with stride "
                f"{stride} and dilation {dilation}"
            )
    size = [
        transposed_size(*numbers)
        for numbers in zip(input.shape[-2:], weight.shape[2:], stride, padding, output_padding, dilation, strict=True)
    ]
    if min(size) < 1:
        raise ValueError(f"{op}: padding {padding} leaves nothing of the output: its size would be {tuple(size)}")
    if leave_to_torch(op, input, weight, bias):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    batched = input if input.ndim == 4 else input.unsqueeze(0)
    output = conv_transpose2d_forward(batched, weight, bias, *stride, *padding, *output_padding, *dilation, groups)
    return output if input.ndim == 4 else output.squeeze(0)


# ---- backward --------------------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(
    grad_output,
    input,
    weight,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
):
    return (
        empty_image(input, input.shape, memory_format(input, weight)) if needs_input_grad else input.new_empty(0),
        torch.empty_like(weight, memory_format=torch.preserve_format) if needs_weight_grad else input.new_empty(0),
        weight.new_empty(weight.shape[1] * groups if needs_bias_grad else 0),
    )


def _backward_torch(
    grad_output,
    input,
    weight,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
):
    grads = torch.ops.aten.convolution_backward(
        grad_output,
        input,
        weight,
        [weight.shape[1] * groups],
        (stride_h, stride_w),
        (padding_h, padding_w),
        (dilation_h, dilation_w),
        True,
        (output_padding_h, output_padding_w),
        groups,
        (needs_input_grad, needs_weight_grad, needs_bias_grad),
    )
    return tuple(input.new_empty(0) if grad is None else grad for grad in grads)


def _torch_is_faster_backward(grad_output, input, *_):
    return torch_is_faster(input)


conv_transpose2d_backward = Kernel(
    "conv_transpose2d_backward(Tensor grad_output, Tensor input, Tensor weight, int stride_h, int stride_w, "
    "int padding_h, int padding_w, int output_padding_h, int output_padding_w, int dilation_h, int dilation_w, "
    "int groups, bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    module="conv_transpose2d",
    allocate=_allocate_backward,
    torch=_backward_torch,
    torch_is_faster=_torch_is_faster_backward,
    supports={"cpu": None, "triton": lambda grad_output, *_: triton_supports(grad_output)},
    recompute=True,
)


# ---- forward ---------------------------------------------------------------------------------------------------------


def _allocate_forward(
    input,
    weight,
    bias,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
):
    height = transposed_size(input.shape[2], weight.shape[2], stride_h, padding_h, output_padding_h, dilation_h)
    width = transposed_size(input.shape[3], weight.shape[3], stride_w, padding_w, output_padding_w, dilation_w)
    shape = (input.shape[0], weight.shape[1] * groups, height, width)
    return (empty_image(input, shape, memory_format(input, weight)),)


def _forward_torch(
    input,
    weight,
    bias,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
):
    stride, padding = (stride_h, stride_w), (padding_h, padding_w)
    output_padding, dilation = (output_padding_h, output_padding_w), (dilation_h, dilation_w)
    return (F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation),)


def _setup_forward(ctx, inputs, output):
    input, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(input, weight)


def _backward_forward(ctx, grad_output):
    needs = ctx.needs_input_grad[:3]
    grads = conv_transpose2d_backward(grad_output, *ctx.saved_tensors, *ctx.geometry, *needs)
    return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), *[None] * 9


conv_transpose2d_forward = Kernel(
    "conv_transpose2d_forward(Tensor input, Tensor weight, Tensor? bias, int stride_h, int stride_w, int padding_h, "
    "int padding_w, int output_padding_h, int output_padding_w, int dilation_h, int dilation_w, int groups) "
    "-> Tensor output",
    module="conv_transpose2d",
    allocate=_allocate_forward,
    torch=_forward_torch,
    torch_is_faster=lambda input, *_: torch_is_faster(input),
    supports={"cpu": None, "triton": lambda input, *_: triton_supports(input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast="lower_precision",
)
