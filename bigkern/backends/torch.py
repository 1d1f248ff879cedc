"""PyTorch's own operators, composed in each op's file: the declared choice where no kernel of ours applies."""

import torch


def unavailable() -> str | None:
    return None


def run(kernel, args):
    with torch.no_grad():
        outputs = kernel.torch(*args)
    return outputs
