"""conv_transpose2d with conv2d's kernels: input and output change places."""

from .common import on_device_of
from .conv2d import launch_conv_forward, launch_conv_grad_input, launch_conv_grad_weight
from .conv_depthwise import launch_channel_sums


def conv_transpose2d_forward(
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
    output,
):
    geometry = (stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w)
    with on_device_of(input):
        launch_conv_grad_input(input, weight, bias, geometry, groups, output)


def conv_transpose2d_backward(
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
    grad_input,
    grad_weight,
    grad_bias,
):
    geometry = (stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w)
    with on_device_of(input):
        if needs_input_grad:
            launch_conv_forward(grad_output, weight, None, geometry, groups, "none", grad_input)
        if needs_weight_grad:
            launch_conv_grad_weight(input, grad_output, geometry, groups, grad_weight)
        if needs_bias_grad:
            launch_channel_sums(grad_output, grad_bias)
