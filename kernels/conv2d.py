"""conv2d and its gradients; conv_transpose2d launches the same.

Every tensor comes with its strides, so that memory formats need no kernels of their own. The kernels themselves are in
conv_product.py and, for one channel to a group, in conv_depthwise.py.
"""

from .common import on_device_of
from .conv_axis import forward_axis, geometry_of, gradient_axes
from .conv_depthwise import launch_channel_sums, launch_depthwise, launch_depthwise_grad_weight
from .conv_product import launch_product, launch_product_grad_weight


def is_depthwise(weight, groups):
    return weight.shape[1] == 1 and weight.shape[0] == groups


def launch_conv(source, weight, result_dim, bias, activation, groups, axis_h, axis_w, result):
    """result = act(source * weight + bias) at the places that the axes name.

    result_dim: the dimension of weight, 0 or 1, that counts the result's channels.
    """
    if source.shape[0] * axis_h.positions * axis_w.positions == 0:
        return
    weight = weight[:, :, axis_h.first_tap :: axis_h.tap_by, axis_w.first_tap :: axis_w.tap_by]
    result = result[:, :, axis_h.first :: axis_h.spread, axis_w.first :: axis_w.spread]
    geometry = geometry_of(axis_h, axis_w)
    if is_depthwise(weight, groups):
        launch_depthwise(source, weight, bias, activation, geometry, result)
    else:
        launch_product(source, weight, result_dim, bias, activation, groups, geometry, result)


def launch_conv_forward(input, weight, bias, geometry, groups, activation, output):
    axes = [
        forward_axis(input.shape[2 + i], output.shape[2 + i], weight.shape[2 + i], *geometry[i::2]) for i in range(2)
    ]
    launch_conv(input, weight, 0, bias, activation, groups, *axes, output)


def launch_conv_grad_input(grad_output, weight, bias, geometry, groups, grad_input):
    along = [
        gradient_axes(grad_output.shape[2 + i], grad_input.shape[2 + i], weight.shape[2 + i], *geometry[i::2])
        for i in range(2)
    ]
    axes_w = list(along[1])
    for axis_h in along[0]:
        for axis_w in axes_w:
            launch_conv(grad_output, weight, 1, bias, "none", groups, axis_h, axis_w, grad_input)


def launch_conv_grad_weight(grad_output, input, geometry, groups, grad_weight):
    axes = [
        forward_axis(input.shape[2 + i], grad_output.shape[2 + i], grad_weight.shape[2 + i], *geometry[i::2])
        for i in range(2)
    ]
    if is_depthwise(grad_weight, groups):
        launch_depthwise_grad_weight(grad_output, input, geometry_of(*axes), grad_weight)
    else:
        launch_product_grad_weight(grad_output, input, groups, geometry_of(*axes), grad_weight)


def conv2d_forward(
    input,
    weight,
    bias,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    groups,
    activation,
    output,
):
    geometry = (stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w)
    with on_device_of(input):
        launch_conv_forward(input, weight, bias, geometry, groups, activation, output)


def conv2d_backward(
    grad_output,
    input,
    weight,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
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
            launch_conv_grad_input(grad_output, weight, None, geometry, groups, grad_input)
        if needs_weight_grad:
            launch_conv_grad_weight(grad_output, input, geometry, groups, grad_weight)
        if needs_bias_grad:
            launch_channel_sums(grad_output, grad_bias)
