"""rnn against torch.rnn_tanh: one layer over whole sequences (length x batch x input x hidden)."""

from .recurrent import recurrent_cases

OPS = ("rnn",)
CASES, GPU_CASES, TINY_CASES = recurrent_cases("rnn_tanh", 1, 1)
