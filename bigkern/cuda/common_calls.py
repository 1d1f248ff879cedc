"""The calls that cubins are compiled ahead for: one function per op, `<op>(tensor)`, that calls the op as users do.

`tensor(*shape, dtype=None, requires_grad=False)` makes tensors of the floating dtype in question on the meta device;
nothing is computed. Add a call wherever a launcher of bigkern/cuda chooses another build.
"""

import torch

import bigkern

from ..ops.grad_norm import clip_grads_step


def quantize(tensor):
    # Few long rows, many short ones, columns, one scale for all, groups.
    for shape, axis in (((64, 131072), 0), ((8192, 1024), 0), ((4096, 4096), 1), ((4096, 4096), None)):
        input = tensor(*shape)
        for symmetric in (True, False):
            qinput, scale, zero_point = bigkern.quantize(input, axis, symmetric=symmetric)
            bigkern.dequantize(qinput, scale, zero_point, axis, dtype=input.dtype)
    qinput, scale, _ = bigkern.quantize(tensor(4096, 4096), group_size=128)
    bigkern.dequantize(qinput, scale, dtype=tensor().dtype)


def cross_entropy(tensor):
    for shape in ((4096, 10), (4096, 1000), (8192, 32000), (2048, 131072), (16, 131072), (8, 32, 256, 256)):
        target = tensor(shape[0], *shape[2:], dtype=torch.int64)
        for weight in (None, tensor(shape[1])):
            for label_smoothing in (0.0, 0.1):
                for reduction in ("mean", "none"):
                    loss = bigkern.cross_entropy(
                        tensor(*shape, requires_grad=True),
                        target,
                        weight,
                        reduction=reduction,
                        label_smoothing=label_smoothing,
                    )
                    loss.sum().backward()
    bigkern.cross_entropy(tensor(4096, 1000, requires_grad=True), tensor(4096, 1000, requires_grad=True)).backward()


def linear_act(tensor):
    for M, N, K in (
        (1, 4096, 4096),
        (16, 4096, 4096),
        (128, 1024, 1024),
        (512, 3072, 768),
        (8192, 8192, 8192),
        (333, 777, 555),
    ):
        for activation in ("relu", "gelu"):
            input, weight = tensor(M, K, requires_grad=True), tensor(N, K, requires_grad=True)
            bigkern.linear_act(input, weight, tensor(N, requires_grad=True), activation).sum().backward()


def int8_linear(tensor):
    for M, N, K in (
        (1, 4096, 4096),
        (16, 4096, 4096),
        (128, 1024, 1024),
        (512, 3072, 768),
        (8192, 8192, 8192),
        (333, 777, 555),
        (64, 256, 16384),
    ):
        qweight, weight_scale = tensor(N, K, dtype=torch.int8), tensor(N, dtype=torch.float32)
        for activation in ("none", "gelu"):
            bigkern.int8_linear(tensor(M, K), qweight, weight_scale, tensor(N), activation)


def attention(tensor):
    for head_dim in (32, 64, 96, 128, 192, 256):
        for len_q, len_k in ((1, 4096), (4096, 4096)):
            query = tensor(4, 32, len_q, head_dim, requires_grad=True)
            key, value = (tensor(4, 8, len_k, head_dim, requires_grad=True) for _ in range(2))
            for is_causal in (False, True):
                output = bigkern.attention(query, key, value, is_causal=is_causal, enable_gqa=True)
                # a gradient that is stored, and the one that output.sum() sends
                for grad_output in (tensor(*output.shape), tensor().expand(output.shape)):
                    torch.autograd.grad(output, (query, key, value), grad_output, retain_graph=True)
    mask = tensor(4, 32, 1024, 1024, requires_grad=True)
    for head_dim in (64, 128, 192, 256):
        query, key, value = (tensor(4, 32, 1024, head_dim, requires_grad=True) for _ in range(3))
        bigkern.attention(query, key, value, mask, dropout_p=0.1).sum().backward()


def grad_norm(tensor):
    grads = [tensor(4096, 1024), tensor(1000)]
    clip_grads_step(grads, bigkern.grad_norm(grads, 1.0)[1])


# Rows of a warp, of a block, and longer than shared memory.
NORM_SHAPES = ((8192, 768), (8192, 4096), (1024, 131072))


def layer_norm(tensor):
    for rows, columns in NORM_SHAPES:
        input, weight, bias = (
            tensor(*shape, requires_grad=True) for shape in ((rows, columns), (columns,), (columns,))
        )
        bigkern.layer_norm(input, (columns,), weight, bias).sum().backward()


def rms_norm(tensor):
    for rows, columns in NORM_SHAPES:
        input, weight = tensor(rows, columns, requires_grad=True), tensor(columns, requires_grad=True)
        bigkern.rms_norm(input, (columns,), weight).sum().backward()


def add_layer_norm(tensor):
    for rows, columns in NORM_SHAPES:
        input, residual = (tensor(rows, columns, requires_grad=True) for _ in range(2))
        weight, bias = (tensor(columns, requires_grad=True) for _ in range(2))
        for dropout_p in (0.0, 0.1):
            results = bigkern.add_layer_norm_with_sum(input, residual, (columns,), weight, bias, dropout_p=dropout_p)
            torch.autograd.backward(results, [tensor(rows, columns)] * 2)


def adam(tensor):
    for with_master in {False, tensor().dtype != torch.float32}:
        params, grads = ([tensor(4096, 1024), tensor(1000)] for _ in range(2))
        dtype = torch.float32 if with_master else None
        like = lambda dtype=dtype: [tensor(*p.shape, dtype=dtype or p.dtype) for p in params]  # noqa: E731, B023
        steps = [tensor(dtype=torch.float32) for _ in params]
        bigkern.adam(params, grads, like(), like(), [], steps, lr=1e-3, master_params=like() if with_master else [])


CALLS = {
    "adam": adam,
    "add_layer_norm": add_layer_norm,
    "attention": attention,
    "cross_entropy": cross_entropy,
    "grad_norm": grad_norm,
    "int8_linear": int8_linear,
    "layer_norm": layer_norm,
    "linear_act": linear_act,
    "quantize": quantize,
    "rms_norm": rms_norm,
}
