"""One step of Adagrad against torch.optim's default, foreach and fused."""

from .optimizers import optimizer_cases

OPS = ("adagrad",)
# Read parameter, gradient and sum; write parameter and sum.
CASES = optimizer_cases("Adagrad", 5, lr=1e-6)
