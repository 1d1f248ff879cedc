"""lstm against torch.lstm: one layer over whole sequences (length x batch x input x hidden)."""

from .recurrent import recurrent_cases

OPS = ("lstm",)
CASES, GPU_CASES, TINY_CASES = recurrent_cases("lstm", 4, 2)
