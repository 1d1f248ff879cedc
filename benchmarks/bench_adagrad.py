"""One step of Adagrad against torch.optim's default, foreach and fused."""

from .optimizers import MLP_SHAPES, optimizer_case, optimizer_cases

OPS = ("adagrad",)
# Read parameter, gradient and sum; write parameter and sum.
CASES = optimizer_cases("Adagrad", 5, lr=1e-6)
TINY_CASES = [optimizer_case("MLP, 4 tensors", "Adagrad", MLP_SHAPES, 5, lr=1e-6)]
