"""What several ops share: activations, tile sizes, and how a launcher finds out where it runs."""

import contextlib
import functools

import torch
import triton
import triton.language as tl

# True when TRITON_INTERPRET=1: kernels run as NumPy on CPU tensors.
INTERPRET = triton.knobs.runtime.interpret

# The architecture that tile choices assume for tensors that are not on a GPU; the ahead-of-time tests set it.
ARCH_WITHOUT_GPU = 80

# Triton 3.9 warns unless a launch says whether a * b + c may become one fused operation, and 3.10 changes the default.
COMPILE_OPTIONS = {"enable_fp_fusion": True}

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")


@functools.cache
def cuda_properties(device):
    """(10 * major + minor compute capability, number of multiprocessors) of a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def arch_of(device):
    """The architecture to choose tiles for, e.g. 90 for an H100."""
    return cuda_properties(device)[0] if device.type == "cuda" else ARCH_WITHOUT_GPU


def num_multiprocessors(device):
    """How many programs run side by side, at least; without a GPU, those of the architecture's data-centre chip."""
    if device.type == "cuda":
        return cuda_properties(device)[1]
    return {80: 108, 90: 132, 100: 148}.get(ARCH_WITHOUT_GPU, 64)


def shared_memory_of(arch):
    """Bytes of shared memory that one program may use (CUDA programming guide, table of compute capabilities)."""
    if arch in (90, 100, 103):
        return 227 * 1024
    if arch in (80, 87):
        return 163 * 1024
    return 99 * 1024 if arch >= 86 else 64 * 1024


def on_device_of(tensor):
    """Triton launches on the current CUDA device and its current stream: make that the tensor's own."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def block_size_for_row(num_cols, largest):
    """The power of two that holds `num_cols` columns, or `largest` columns at a time in a loop."""
    return min(triton.next_power_of_2(max(num_cols, 1)), largest)


def num_warps_for(num_elements):
    """Warps for a tile of a memory-bound kernel: 16 elements a thread keep enough loads in flight without spilling."""
    return min(max(triton.next_power_of_2(num_elements) // (32 * 16), 1), 16)


@triton.jit
def tanh(x):
    """tanh(x) within 4 ulp of fp32; libdevice's tanh does not exist in triton's interpreter."""
    # 1 - 2 / (exp(2|x|) + 1) loses all digits near 0, so small x takes an odd polynomial (minimax on |x| < 0.6).
    magnitude = tl.abs(x)
    large = 1.0 - 2.0 / (tl.exp(2.0 * magnitude) + 1.0)
    x2 = x * x
    polynomial = 0.020795967 + x2 * -0.0058951536
    polynomial = -0.05378383 + x2 * polynomial
    polynomial = 0.13331924 + x2 * polynomial
    polynomial = -0.333333 + x2 * polynomial
    small = x + x * (x2 * polynomial)
    return tl.where(magnitude < 0.6, small, tl.where(x < 0, -large, large))


@triton.jit
def apply_activation(x, ACTIVATION: tl.constexpr):
    """act(x) for fp32 x."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)  # a maximum would turn NaN into 0
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "sigmoid":
        x = tl.sigmoid(x)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return x


@triton.jit
def apply_activation_backward(grad_output, saved, ACTIVATION: tl.constexpr):
    """grad_output * act'(x), fp32; `saved` is act(x) for relu, sigmoid and tanh, and x for the others."""
    if ACTIVATION == "relu":
        grad = tl.where(saved <= 0, 0.0, grad_output)  # a product would turn inf * 0 into NaN
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(saved * 0.7071067811865476))
        pdf = 0.3989422804014327 * tl.exp(-0.5 * saved * saved)
        grad = grad_output * (cdf + saved * pdf)
    elif ACTIVATION == "gelu_tanh":
        saved2 = saved * saved
        tanh_inner = tanh(0.7978845608028654 * (saved + 0.044715 * saved * saved2))
        inner_slope = 0.7978845608028654 * (1.0 + 3 * 0.044715 * saved2)
        slope = 0.5 * (1.0 + tanh_inner) + 0.5 * saved * (1.0 - tanh_inner * tanh_inner) * inner_slope
        grad = grad_output * slope
    elif ACTIVATION == "silu":
        sigmoid = tl.sigmoid(saved)
        grad = grad_output * sigmoid * (1.0 + saved * (1.0 - sigmoid))
    elif ACTIVATION == "sigmoid":
        grad = grad_output * saved * (1.0 - saved)
    elif ACTIVATION == "tanh":
        grad = grad_output * (1.0 - saved * saved)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
        grad = grad_output
    return grad
