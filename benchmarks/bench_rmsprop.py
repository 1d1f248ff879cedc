"""One step of RMSprop against torch.optim's default and foreach; it has no fused one."""

from .optimizers import optimizer_cases

OPS = ("rmsprop",)
# Read parameter, gradient and average; write parameter and average.
CASES = optimizer_cases("RMSprop", 5, fused=False, lr=1e-6)
