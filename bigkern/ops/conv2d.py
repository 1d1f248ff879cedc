"""conv2d: the convolution of images, act(conv2d(input, weight) + bias), as a product that never stores its operand.

With the kernel's taps (i, j) side by side, a convolution is a product: weights [out_channels, channels * taps] times
the values of the image that each output pixel meets. The kernels gather a tile of the latter at a time (implicit GEMM);
the whole of it would be taps times as large as the image. In the gradients,

    grad_input     is the same product over grad_output: for a stride s, s * s products that share no tap
    grad_weight    is a product over all pixels, in a fixed order
    grad_bias      is the sum over pixels

One channel to a group (depthwise) has no product in it, and takes kernels of its own. `conv_transpose2d` is the product
of grad_input as a forward. Source: Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning" (2014), section 3.1.
"""

import torch
import torch.nn.functional as F

from ..conv_arguments import (
    check_geometry,
    check_tensors,
    conv_size,
    empty_image,
    is_strided_depthwise,
    leave_to_torch,
    memory_format,
    pair,
    torch_is_faster_backward,
    torch_is_faster_forward,
    triton_supports,
)
from ..registration import Kernel

ACTIVATIONS = {"none": lambda z: z, "relu": F.relu}


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolution of images, as `torch.nn.functional.conv2d`.

    Args:
        input: floating tensor [N, C, H, W] or [C, H, W].
        weight: [out_channels, C / groups, kernel_height, kernel_width], of input's dtype (any floating dtype but
            float64 under autocast).
        bias: [out_channels] or None.
        stride, dilation: an int, or (vertical, horizontal), in pixels.
        padding: the same, pixels of zero on each side; or "valid" (none), or "same" (as many as keep the size; stride
            must be 1).
        groups: the channels are cut into so many parts that do not meet; groups = C is depthwise convolution.

    Returns:
        [N, out_channels, output_height, output_width] of input's dtype, in channels_last format where input or weight
        has it, with output_height = floor((H + 2 * padding - dilation * (kernel_height - 1) - 1) / stride) + 1.
        Differentiable in input, weight and bias, any number of times.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes, options or devices do not go together.
    """
    return _conv2d(input, weight, bias, stride, padding, dilation, groups, "none", "conv2d")


def conv2d_act(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, activation="relu"):
    """act(conv2d(...)) in one kernel.

    Args:
        activation: "none" or "relu". The others as in `conv2d`; so are results and errors.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"conv2d_act: unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
    return _conv2d(input, weight, bias, stride, padding, dilation, groups, activation, "conv2d_act")


def _conv2d(input, weight, bias, stride, padding, dilation, groups, activation, op):
    check_tensors(op, input, weight, bias, groups, transposed=False)
    stride, dilation = pair(stride, "stride", op), pair(dilation, "dilation", op)
    if isinstance(padding, str):
        input, padding = _named_padding(input, weight, stride, padding, dilation, op)
    else:
        padding = pair(padding, "padding", op)
    check_geometry(op, stride, padding, dilation)
    for size, kernel, p, d in zip(input.shape[-2:], weight.shape[2:], padding, dilation, strict=True):
        if size + 2 * p < d * (kernel - 1) + 1:
            raise ValueError(
                f"{op}: a kernel of {d * (kernel - 1) + 1} pixels does not fit into {size} with padding {p}"
            )
    gradient_is_ours = torch.is_grad_enabled() and is_strided_depthwise(weight, stride, groups)
    if not gradient_is_ours and leave_to_torch(op, input, weight, bias):
        output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return F.relu_(output) if activation == "relu" else output
    batched = input if input.ndim == 4 else input.unsqueeze(0)
    output = conv2d_forward(batched, weight, bias, *stride, *padding, *dilation, groups, activation)
    return output if input.ndim == 4 else output.squeeze(0)


def _named_padding(input, weight, stride, padding, dilation, op):
    """(input, padding) for "same" and "valid"; an odd pixel of "same" is added at the end, to the input itself."""
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise ValueError(f"{op}: padding must be 'same', 'valid' or numbers, got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"{op}: padding='same' needs stride 1, got {stride}")
    total_h, total_w = (d * (kernel - 1) for d, kernel in zip(dilation, weight.shape[2:], strict=True))
    if total_h % 2 or total_w % 2:
        input = F.pad(input, (0, total_w % 2, 0, total_h % 2))
    return input, (total_h // 2, total_w // 2)


# ---- backward --------------------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, input, weight, *options):
    needs_input_grad, needs_weight_grad, needs_bias_grad = options[-3:]
    return (
        empty_image(input, input.shape, memory_format(input, weight)) if needs_input_grad else input.new_empty(0),
        torch.empty_like(weight, memory_format=torch.preserve_format) if needs_weight_grad else input.new_empty(0),
        weight.new_empty(weight.shape[0] if needs_bias_grad else 0),
    )


def _backward_torch(
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
):
    grads = torch.ops.aten.convolution_backward(
        grad_output,
        input,
        weight,
        [weight.shape[0]],
        (stride_h, stride_w),
        (padding_h, padding_w),
        (dilation_h, dilation_w),
        False,
        (0, 0),
        groups,
        (needs_input_grad, needs_weight_grad, needs_bias_grad),
    )
    return tuple(input.new_empty(0) if grad is None else grad for grad in grads)


def _torch_is_faster_backward(grad_output, input, weight, stride_h, stride_w, *options):
    groups, needs_input_grad, _, _ = options[4:]
    return torch_is_faster_backward(input, weight, (stride_h, stride_w), groups, needs_input_grad)


conv2d_backward = Kernel(
    "conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, int stride_h, int stride_w, int padding_h, "
    "int padding_w, int dilation_h, int dilation_w, int groups, bool needs_input_grad, bool needs_weight_grad, "
    "bool needs_bias_grad) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    module="conv2d",
    allocate=_allocate_backward,
    torch=_backward_torch,
    torch_is_faster=_torch_is_faster_backward,
    supports={"cpu": None, "triton": lambda grad_output, *_: triton_supports(grad_output)},
    recompute=True,
)


# ---- forward ---------------------------------------------------------------------------------------------------------


def _allocate_forward(
    input, weight, bias, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, activation
):
    height = conv_size(input.shape[2], weight.shape[2], stride_h, padding_h, dilation_h)
    width = conv_size(input.shape[3], weight.shape[3], stride_w, padding_w, dilation_w)
    shape = (input.shape[0], weight.shape[0], height, width)
    return (empty_image(input, shape, memory_format(input, weight)),)


def _forward_torch(
    input, weight, bias, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, activation
):
    strides, padding, dilation = (stride_h, stride_w), (padding_h, padding_w), (dilation_h, dilation_w)
    return (ACTIVATIONS[activation](F.conv2d(input, weight, bias, strides, padding, dilation, groups)),)


def _setup_forward(ctx, inputs, output):
    input, weight, _, *ctx.geometry, activation = inputs
    ctx.activation = activation
    ctx.save_for_backward(input, weight, output if activation == "relu" else None)


def _backward_forward(ctx, grad_output):
    input, weight, output = ctx.saved_tensors
    if ctx.activation == "relu":
        # One elementwise pass, which the gradients' products would otherwise repeat for every tap that they gather.
        grad_output = torch.ops.aten.threshold_backward(grad_output, output, 0)
    needs = ctx.needs_input_grad[:3]
    grads = conv2d_backward(grad_output, input, weight, *ctx.geometry, *needs)
    return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), *[None] * 8


conv2d_forward = Kernel(
    "conv2d_forward(Tensor input, Tensor weight, Tensor? bias, int stride_h, int stride_w, int padding_h, "
    "int padding_w, int dilation_h, int dilation_w, int groups, str activation) -> Tensor output",
    module="conv2d",
    allocate=_allocate_forward,
    torch=_forward_torch,
    torch_is_faster=lambda input, weight, *options: torch_is_faster_forward(input, weight, options[-2]),
    supports={"cpu": None, "triton": lambda input, *_: triton_supports(input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast="lower_precision",
)
