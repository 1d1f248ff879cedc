import pytest
import torch

import bigkern
from tests.recurrent_tests import RecurrentTests


class TestTanh(RecurrentTests):
    name, module, num_gates = "rnn", "RNN", 1

    def torch_layers(self):
        return torch.rnn_tanh

    def size_of_slope(self, output):
        return (1 + output**2) / (1 - output**2).clamp(min=1e-300)  # 1 - h^2 cancels where h is near 1

    def kernel_arguments(self, tensors, lengths):
        return [*tensors, lengths, False, self.options.get("nonlinearity", "tanh")]

    def backward_arguments(self, grads, tensors, outputs, lengths):
        return *grads, outputs[0], tensors[1], lengths, False, self.options.get("nonlinearity", "tanh")


class TestRelu(TestTanh):
    options = module_options = {"nonlinearity": "relu"}  # noqa: RUF012

    def size_of_slope(self, output):
        return 1

    def torch_layers(self):
        return torch.rnn_relu

    def draw(self, *arguments, **options):
        # Where rounding turns a sum's sign, the gradient jumps, be it ours or PyTorch's: keep sums away from 0.
        (gates_input, weight_hh, *rest), grads = super().draw(*arguments, **options)
        return [gates_input + 8 * gates_input.sign(), weight_hh * 0.1, *rest], grads


def test_unknown_nonlinearity_is_an_error():
    with pytest.raises(ValueError, match="rnn: unknown nonlinearity 'gelu'; one of tanh, relu"):
        bigkern.rnn(torch.ones(1, 1, 1), torch.ones(1, 1), nonlinearity="gelu")
    with pytest.raises(ValueError, match=r"Unknown nonlinearity 'gelu'\. Select from 'tanh' or 'relu'\."):
        bigkern.nn.RNN(3, 4, nonlinearity="gelu")
