import warnings

import pytest
import torch
import torch.nn.functional as F

import bigkern
from bigkern import nn
from tests.pointwise_loss_tests import PointwiseLossTests

MEAN_WARNING = "reduction: 'mean' divides the total loss by both the batch size and the support size"


@pytest.mark.filterwarnings("ignore:reduction. .mean. divides")
class TestKlDiv(PointwiseLossTests):
    op = "kl_div"
    reductions = ("none", "batchmean", "sum", "mean")
    settings = ({}, {"log_target": True})

    def draw(self, shape, dtype=torch.float32, log_target=False):
        input, target = -torch.rand(shape) * 5 - 0.1, torch.rand(shape) + 1e-3
        return input.to(dtype), (target.log() if log_target else target).to(dtype)

    def kernel_arguments(self, shape, reduction, log_target=False):
        if reduction == "batchmean" and len(shape) == 0:
            reduction = "sum"
        return (reduction, log_target)

    def test_a_target_of_zero_is_no_loss(self, place):
        input = torch.tensor([[-1.0, -2, -3]], requires_grad=True)
        target = torch.tensor([[0.0, 0.25, 1e-40]])
        with place.use():
            loss = bigkern.kl_div(input.to(place.device), target.to(place.device), reduction="none").cpu()
        torch.testing.assert_close(loss, F.kl_div(input, target, reduction="none"))
        assert loss[0, 0] == 0
        log_target = torch.tensor([[-float("inf"), -1.0, -2]])
        with place.use():
            (grad,) = torch.autograd.grad(bigkern.kl_div(input, log_target, "sum", log_target=True), input)
        assert grad[0, 0] == 0

    def test_broadcasts_as_torch(self):
        for input, target in (
            (torch.rand(1, 4), torch.rand(3, 4)),
            (torch.rand(3, 1), torch.rand(4)),
            (torch.rand(()), torch.rand(2)),
        ):
            for reduction in self.reductions:
                with bigkern.use_backend("cpu"):
                    loss = bigkern.kl_div(input, target, reduction)
                torch.testing.assert_close(loss, F.kl_div(input, target, reduction=reduction))

    def test_mean_warns_as_torch(self):
        input, target = self.draw((2, 3))
        with pytest.warns(UserWarning, match=MEAN_WARNING):
            bigkern.kl_div(input, target)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bigkern.kl_div(input, target, "batchmean")

    def test_module_is_torchs(self):
        options = {"reduction": "batchmean", "log_target": True}
        input, target = self.draw((4, 3), log_target=True)
        torch.testing.assert_close(nn.KLDivLoss(**options)(input, target), torch.nn.KLDivLoss(**options)(input, target))
