"""What the benchmarks of lstm, gru and rnn share: one layer with its input's product, against PyTorch's own function.

torch.compile breaks its graph at torch.nn.LSTM, GRU and RNN and runs them as they are: that is what it is timed with.
"""

import torch

import bigkern.functional as F

from .common import Case


def recurrent_case(name, num_gates, states, length, batch, input_size, hidden, dtype=torch.float32, target=""):
    """`name`: of the function, in torch and in bigkern.functional; `states`: how many it starts from."""

    def inputs(device):
        width, scale = num_gates * hidden, hidden**-0.5
        shapes = {"weight_ih": (width, input_size), "weight_hh": (width, hidden)}
        shapes |= {"bias_ih": (width,), "bias_hh": (width,)}
        drawn = {key: (torch.rand(shape, device=device) * 2 - 1) * scale for key, shape in shapes.items()}
        drawn["input"] = torch.randn(length, batch, input_size, device=device)
        drawn = {key: tensor.to(dtype) for key, tensor in drawn.items()}
        zeros = [torch.zeros(1, batch, hidden, device=device, dtype=dtype) for _ in range(states)]
        return {**drawn, "hx": zeros if states > 1 else zeros[0]}

    def calling(function):
        def call(input, hx, weight_ih, weight_hh, bias_ih, bias_hh):
            params = [weight_ih, weight_hh, bias_ih, bias_hh]
            return function(input, hx, params, True, 1, 0.0, True, False, False)[0]

        return call

    flops = 2 * length * batch * num_gates * hidden * (input_size + hidden)
    return Case(
        f"{length}x{batch}x{input_size}x{hidden} {str(dtype).removeprefix('torch.')}",
        inputs,
        calling(getattr(F, name)),
        torch.compiler.disable(calling(getattr(torch, name))),
        flops=flops,
        peak=str(dtype).removeprefix("torch."),
        gradients=("input", "weight_ih", "weight_hh", "bias_ih", "bias_hh"),
        train_flops=3 * flops,
        target=target,
    )


def recurrent_cases(name, num_gates, states):
    """(CASES, GPU_CASES, TINY_CASES): length, batch, input, hidden."""
    make = lambda *arguments: recurrent_case(name, num_gates, states, *arguments)  # noqa: E731
    on_cpu = [
        make(50, 1, 128, 128),
        make(35, 20, 200, 200),
        make(64, 32, 256, 256),
        make(20, 64, 512, 512),
        make(64, 32, 256, 256, torch.bfloat16),
    ]
    on_gpu = [
        make(100, 64, 512, 512, torch.bfloat16),
        make(100, 64, 1024, 1024, torch.bfloat16),
        make(100, 64, 1024, 1024),
    ]
    return on_cpu, on_gpu, [make(2, 3, 4, 5, torch.float16)]
