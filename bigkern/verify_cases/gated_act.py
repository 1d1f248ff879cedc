"""Cases of gated_act: swiglu and geglu."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case


def _gated_act(name, ours, gate, columns=101, packed=False):
    def inputs():
        if packed:
            return {"gate": torch.randn(23, 2 * columns) * 2}
        return {"gate": torch.randn(23, columns) * 2, "up": torch.randn(23, columns)}

    def theirs(gate_, up=None):
        if packed:
            gate_, up = gate_.chunk(2, -1)
        return gate(gate_) * up

    return Case(
        "gated_act",
        name,
        inputs,
        ours,
        lambda gate, up=None: theirs(gate, up),
        ("gate",) if packed else ("gate", "up"),
    )


GATED_ACT = [
    _gated_act("swiglu", bigkern.swiglu, F.silu),
    _gated_act("swiglu of one matrix", bigkern.swiglu, F.silu, 77, packed=True),
    _gated_act("geglu", bigkern.geglu, F.gelu),
    _gated_act(
        "geglu by tanh",
        lambda gate, up: bigkern.geglu(gate, up, approximate="tanh"),
        lambda gate: F.gelu(gate, approximate="tanh"),
        1030,
    ),
]
