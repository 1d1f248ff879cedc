"""gru against torch.gru: one layer over whole sequences (length x batch x input x hidden)."""

from .recurrent import recurrent_cases

OPS = ("gru",)
CASES, GPU_CASES, TINY_CASES = recurrent_cases("gru", 3, 1)
