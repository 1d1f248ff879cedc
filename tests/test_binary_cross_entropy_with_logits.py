import pytest
import torch
import torch.nn.functional as F

import bigkern
from bigkern import nn
from tests.pointwise_loss_tests import PointwiseLossTests, periods


class TestBinaryCrossEntropyWithLogits(PointwiseLossTests):
    op = "binary_cross_entropy_with_logits"

    def kernel_arguments(self, shape, reduction, weight=None, pos_weight=None):
        return (*periods(shape, weight, pos_weight), reduction)

    def test_weights(self, place):
        for shape, weight, pos_weight in (
            ((3, 7), (7,), None),
            ((3, 7), (3, 1), (7,)),
            ((2, 5, 9), None, (5, 1)),
            ((2, 5, 9), (2, 5, 9), ()),
            ((2, 3000 if not place.slow else 5), (1,), (1, 1)),
        ):
            for dtype in place.dtypes:
                sizes = {"weight": weight, "pos_weight": pos_weight}
                settings = {name: (torch.rand(size) * 3).to(dtype) for name, size in sizes.items() if size is not None}
                for reduction in self.reductions:
                    self.check(place, *self.draw(shape, dtype), reduction, **settings)

    def test_sure_predictions_keep_their_digits(self, place):
        input = torch.tensor([[30.0, -30, 17, -100, 1e4, -1e4]]).expand(2, 6)
        target = torch.tensor([[1.0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]])
        self.check(place, input[:1], target[:1], "none")
        self.check(place, input, target, "none")

    def test_infinite_logits_are_torchs(self, place):
        input = torch.tensor([float("inf"), float("-inf"), float("nan"), 0], device=place.device)
        for target in (0.0, 1.0, 0.5):
            t = torch.full((4,), target, device=place.device)
            with place.use():
                loss = bigkern.binary_cross_entropy_with_logits(input, t, reduction="none")
            theirs = F.binary_cross_entropy_with_logits(input, t, reduction="none")
            torch.testing.assert_close(loss, theirs, equal_nan=True)

    def test_module_is_torchs(self):
        options = {"weight": torch.rand(4), "pos_weight": torch.rand(4), "reduction": "sum"}
        module, theirs = nn.BCEWithLogitsLoss(**options), torch.nn.BCEWithLogitsLoss(**options)
        module.load_state_dict(theirs.state_dict())
        input, target = self.draw((3, 4))
        torch.testing.assert_close(module(input, target), theirs(input, target))

    def test_weights_that_do_not_fit(self):
        x = torch.rand(3, 4)
        loss = bigkern.binary_cross_entropy_with_logits
        with pytest.raises(ValueError, match=r"^Target size \(torch\.Size\(\[3\]\)\) must be the same as input size"):
            loss(x, x[:, 0])
        with pytest.raises(RuntimeError, match=r"pos_weight of shape \[2, 3, 4\] does not broadcast to \[3, 4\]$"):
            loss(x, x, pos_weight=torch.rand(2, 3, 4))
        with pytest.raises(RuntimeError, match=r"not differentiable with respect to weight$"):
            loss(x, x, weight=x.clone().requires_grad_())
