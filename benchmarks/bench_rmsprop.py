"""One step of RMSprop against torch.optim's default and foreach; it has no fused one."""

from .optimizers import MLP_SHAPES, optimizer_case, optimizer_cases

OPS = ("rmsprop",)
# Read parameter, gradient and average; write parameter and average.
CASES = optimizer_cases("RMSprop", 5, fused=False, lr=1e-6)
TINY_CASES = [optimizer_case("MLP, 4 tensors", "RMSprop", MLP_SHAPES, 5, fused=False, lr=1e-6)]
