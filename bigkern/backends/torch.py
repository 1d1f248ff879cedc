"""PyTorch's own operators, composed in each op's file (attention's in torch_attention.py): the declared choice where no
kernel of ours applies."""

import torch


def unavailable() -> str | None:
    return None


def run(kernel, args):
    # Under autocast a composition would round its own intermediates; the op has cast its inputs already.
    with torch.no_grad(), torch._C._DisableAutocast():
        outputs = kernel.torch(*args)
    return () if outputs is None else outputs
