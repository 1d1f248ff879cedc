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


def test_auto_leaves_bfloat16_of_several_sequences_to_pytorch_and_says_so():
    for batch, chosen in ((4, "cpu"), (8, "torch")):
        states = [torch.zeros(1, batch, 5, dtype=torch.bfloat16) for _ in range(2)]
        params = [torch.randn(20, size, dtype=torch.bfloat16) for size in (3, 5)]
        input = torch.randn(2, batch, 3, dtype=torch.bfloat16)
        arguments = (input, states, params, False, 1, 0.0, False, False, False)
        *_, decision = bigkern.explain(bigkern.functional.lstm, *arguments)
        assert decision.chosen == chosen
        assert chosen == "cpu" or "measured" in decision.reasons["cpu"]
        assert bigkern.functional.lstm(*arguments)[0].shape == (2, batch, 5)
