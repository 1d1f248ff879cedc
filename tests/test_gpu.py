"""What only a GPU shows: tensors beyond 2^31 elements, CUDA graphs, other streams. Without a GPU the same checks run on
tiny tensors, interpreted and emulated, so that they are known to work when one is at hand."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

import bigkern
from tests.support import PLACES, assert_within_policy

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
HUGE = 2**31 if ON_GPU else 2**11
KERNEL_PLACES = [place for place in PLACES if place.backend in ("triton", "cuda") and place.device == DEVICE]
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")


@pytest.fixture(params=KERNEL_PLACES, ids=str)
def gpu_place(request):
    return request.param


@contextmanager
def memory(gibibytes):
    """Skips where the device lacks the memory, and gives it back afterwards."""
    if ON_GPU and torch.cuda.mem_get_info()[0] < gibibytes * 2**30:
        pytest.skip(f"needs {gibibytes} GiB of free device memory")
    yield
    if ON_GPU:
        torch.cuda.empty_cache()


def test_quantize_beyond_32_bit_offsets(gpu_place):
    columns = 4096 if ON_GPU else 64
    rows = HUGE // columns + 3
    with memory(8), gpu_place.use():
        input = torch.empty(rows, columns, dtype=torch.bfloat16, device=DEVICE).normal_()
        qinput, scale, _ = bigkern.quantize(input, axis=0)
        back = bigkern.dequantize(qinput[-4:], scale[-4:], axis=0)
    last = input[-4:].float()
    torch.testing.assert_close(scale[-4:], last.abs().amax(1) / 127, rtol=3e-7, atol=0)  # division may be approximate
    assert (back - last).abs().amax() <= scale[-4:].max() * 0.5001


def test_cross_entropy_beyond_32_bit_offsets(gpu_place):
    classes = 131072 if ON_GPU else 128
    rows = HUGE // classes + 3
    with memory(20), gpu_place.use():
        input = torch.empty(rows, classes, dtype=torch.bfloat16, device=DEVICE).normal_().requires_grad_()
        target = torch.randint(classes, (rows,), device=DEVICE)
        loss = bigkern.cross_entropy(input, target, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), input)
    last = input[-4:].detach().double().requires_grad_()
    expected = F.cross_entropy(last, target[-4:], reduction="none")
    (expected_grad,) = torch.autograd.grad(expected.sum(), last)
    same_dtype = last.detach().to(torch.bfloat16).requires_grad_()
    theirs = F.cross_entropy(same_dtype, target[-4:], reduction="none")
    (theirs_grad,) = torch.autograd.grad(theirs.sum(), same_dtype)
    assert_within_policy(loss[-4:], expected, theirs)
    assert_within_policy(grad[-4:], expected_grad, theirs_grad)


def test_linear_act_beyond_32_bit_offsets(gpu_place):
    features = 2**15 + 8 if ON_GPU else 40
    rows = HUGE // features + 3
    with memory(12), gpu_place.use():
        input = torch.randn(rows, 16, device=DEVICE).to(torch.bfloat16)
        weight = torch.randn(features, 16, device=DEVICE).to(torch.bfloat16)
        output = bigkern.linear_act(input, weight, None, "relu")
    expected = F.relu(input[-4:].double() @ weight.double().T)
    assert_within_policy(output[-4:], expected, F.relu(F.linear(input[-4:], weight)))


def test_attention_beyond_32_bit_offsets(gpu_place):
    length, head_dim = (128, 128) if ON_GPU else (16, 16)
    batch = HUGE // (length * head_dim) + 3
    with memory(24), gpu_place.use():
        query, key, value = (
            torch.empty(batch, 1, length, head_dim, dtype=torch.bfloat16, device=DEVICE).normal_() for _ in range(3)
        )
        output = bigkern.attention(query, key, value, is_causal=True)
    last = [t[-2:] for t in (query, key, value)]
    expected = F.scaled_dot_product_attention(*(t.double() for t in last), is_causal=True)
    assert_within_policy(output[-2:], expected, F.scaled_dot_product_attention(*last, is_causal=True))


def test_norms_beyond_32_bit_offsets(gpu_place):
    columns = 4096 if ON_GPU else 64
    rows = HUGE // columns + 3
    with memory(24), gpu_place.use():
        input = torch.empty(rows, columns, dtype=torch.bfloat16, device=DEVICE).normal_().requires_grad_()
        output = bigkern.rms_norm(input, (columns,))
        (grad,) = torch.autograd.grad(
            output, input, torch.ones((), device=DEVICE, dtype=output.dtype).expand_as(output)
        )
    last = input[-4:].detach()
    expected, theirs = (
        _with_gradient(F.rms_norm, leaf.requires_grad_(), (columns,)) for leaf in (last.double(), last.clone())
    )
    assert_within_policy(output[-4:], expected[0], theirs[0])
    assert_within_policy(grad[-4:], expected[1], theirs[1])


def _with_gradient(function, input, *options):
    output = function(input, *options)
    return output.detach(), torch.autograd.grad(output.sum(), input)[0]


CALLS = {
    "add_layer_norm": lambda x: bigkern.add_layer_norm(x, x, x.shape[1:], x[0], x[1]),
    "rms_norm": lambda x: bigkern.rms_norm(x, x.shape[1:], x[0]),
    "quantize": lambda x: bigkern.quantize(x, axis=0)[0],
    "linear_act": lambda x: bigkern.linear_act(x, x, None, "gelu"),
    "cross_entropy": lambda x: bigkern.cross_entropy(x, torch.zeros(len(x), dtype=torch.int64, device=x.device)),
    "attention": lambda x: bigkern.attention(*(x.view(1, 1, *x.shape) for _ in range(3))),
    "int8_linear": lambda x: bigkern.int8_linear(x, *bigkern.quantize(x, axis=0)[:2]),
}


@pytest.mark.parametrize("name", CALLS)
def test_repeated_calls_give_the_same_bits(gpu_place, name):
    x = torch.randn(48, 64, device=DEVICE).to(torch.float16)
    with gpu_place.use():
        assert torch.equal(CALLS[name](x), CALLS[name](x))


@needs_gpu
@pytest.mark.parametrize("name", CALLS)
def test_runs_in_a_cuda_graph(gpu_place, name):
    x = torch.randn(64, 64, device=DEVICE).to(torch.float16)
    with gpu_place.use():
        CALLS[name](x)  # compiles outside of the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = CALLS[name](x)
        x.copy_(torch.randn(64, 64, device=DEVICE))
        graph.replay()
        assert torch.equal(output, CALLS[name](x))


@needs_gpu
@pytest.mark.parametrize("name", CALLS)
def test_runs_on_the_current_stream(gpu_place, name):
    x = torch.randn(64, 64, device=DEVICE).to(torch.float16)
    stream = torch.cuda.Stream()
    with gpu_place.use():
        expected = CALLS[name](x + 1)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # what follows must wait for it, and for the sum
            output = CALLS[name](x + 1)
        stream.synchronize()
    assert torch.equal(output, expected)
