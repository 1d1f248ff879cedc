"""What the oracles of lstm, gru and rnn share."""

from .array_module import array_module


def sigmoid(x):
    xp = array_module(x)
    decay = xp.exp(-xp.abs(x))  # neither end overflows, and small results keep their digits
    return xp.where(x < 0, decay, 1) / (1 + decay)


def times(length, reverse):
    """The times of a sequence in the order of processing."""
    return range(length - 1, -1, -1) if reverse else range(length)


def active(lengths, time, state):
    """[batch, 1]: which sequences reach `time`."""
    xp = array_module(state)
    return xp.full((state.shape[0], 1), True) if lengths is None else (time < lengths)[:, None]
