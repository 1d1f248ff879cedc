"""Cases of attention_varlen."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case

STARTS_Q = (0, 17, 18, 58)
STARTS_K = (0, 33, 40, 80)


def _inputs():
    return {
        "query": torch.randn(STARTS_Q[-1] + 2, 4, 24),
        "key": torch.randn(STARTS_K[-1], 2, 24),
        "value": torch.randn(STARTS_K[-1], 2, 40),
    }


def _ours(is_causal):
    def call(query, key, value):
        starts = (torch.tensor(starts, dtype=torch.int32, device=query.device) for starts in (STARTS_Q, STARTS_K))
        return bigkern.attention_varlen(
            query, key, value, *starts, max_seqlen_q=40, max_seqlen_k=40, is_causal=is_causal
        )

    return call


def _theirs(is_causal):
    """A loop over the sequences; rows of no sequence are zeros."""

    def call(query, key, value):
        outputs = []
        for s in range(len(STARTS_Q) - 1):
            rows, keys = slice(*STARTS_Q[s : s + 2]), slice(*STARTS_K[s : s + 2])
            one = (tensor.transpose(0, 1)[None] for tensor in (query[rows], key[keys], value[keys]))
            output = F.scaled_dot_product_attention(*one, is_causal=is_causal, enable_gqa=True)
            outputs.append(output[0].transpose(0, 1))
        outputs.append(query.new_zeros(len(query) - STARTS_Q[-1], 4, 40))
        return torch.cat(outputs)

    return call


ATTENTION_VARLEN = [
    Case("attention_varlen", name, _inputs, _ours(is_causal), _theirs(is_causal), ("query", "key", "value"))
    for name, is_causal in (("grouped 4/2", False), ("causal", True))
]
