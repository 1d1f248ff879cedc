import pytest
import torch

import bigkern
from bigkern.ops.lstm import lstm_forward
from tests.recurrent_tests import RecurrentTests


class TestLstm(RecurrentTests):
    name, module, num_gates, states = "lstm", "LSTM", 4, ("h", "c")

    def kernel_arguments(self, tensors, lengths):
        return [*tensors, lengths, False, True]

    def backward_arguments(self, grads, tensors, outputs, lengths):
        _, weight_hh, _, _, c0 = tensors
        return *grads, *outputs[3:], weight_hh, c0, lengths, False

    def test_a_forward_that_kept_nothing_is_repeated(self):
        tensors, _ = self.draw(torch.empty(0), 3, 2, 4)
        grads = []
        for save_gates in (True, False):
            leaves = [t.detach().requires_grad_() for t in tensors]
            output = lstm_forward(*leaves, None, False, save_gates)[0]
            grads.append(torch.autograd.grad(output.sum(), leaves))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_projection_is_refused():
    with pytest.raises(NotImplementedError, match="LSTM: proj_size must be 0, got 2"):
        bigkern.nn.LSTM(3, 4, proj_size=2)
