"""The random state of dropout: drawn from torch's generator, the key of a counter-based one (reference/philox.py)."""

import torch


def draw_rng_state(device):
    """(seed, offset) int64 from torch's generator: stays on the device, so nothing waits for it."""
    return torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64, device=device)
