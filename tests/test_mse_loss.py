import pytest
import torch
import torch.nn.functional as F

import bigkern
from bigkern import nn
from tests.pointwise_loss_tests import PointwiseLossTests


class TestMseLoss(PointwiseLossTests):
    op = "mse_loss"

    def test_weights(self, place):
        input, target, weight = (torch.rand(3, 5, device=place.device, requires_grad=True) for _ in range(3))
        for reduction in self.reductions:
            with place.use():
                loss = bigkern.mse_loss(input, target, reduction, weight)
            theirs = (input - target) ** 2 * weight
            if reduction != "none":
                theirs = theirs.sum() / (weight.sum() if reduction == "mean" else 1)
            torch.testing.assert_close(loss, theirs)
            grads = [torch.autograd.grad(value.sum(), (input, target, weight)) for value in (loss, theirs)]
            for pair in zip(*grads, strict=True):
                torch.testing.assert_close(*pair)
        with pytest.raises(ValueError, match=r"^Weights and input must have the same size\.$"):
            bigkern.mse_loss(input, target, weight=weight[0])

    def test_broadcasts_with_a_warning(self, place):
        input, target = torch.rand(3, 1, device=place.device), torch.rand(4, device=place.device)
        for reduction in self.reductions:
            with pytest.warns(UserWarning, match="different to the input size"), place.use():
                loss = bigkern.mse_loss(input, target, reduction)
            with pytest.warns(UserWarning, match="different to the input size"):
                torch.testing.assert_close(loss, F.mse_loss(input, target, reduction=reduction))

    def test_module_is_torchs(self):
        input, target = self.draw((4, 3))
        assert torch.equal(nn.MSELoss(reduction="sum")(input, target), torch.nn.MSELoss(reduction="sum")(input, target))
