"""gated_act against F.silu(gate) * up and F.gelu(gate) * up, apart and in one matrix."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("gated_act",)


def _case(rows, columns, op="swiglu", packed=False, dtype=torch.float32):
    gate_of = F.silu if op == "swiglu" else F.gelu

    def inputs(device):
        if packed:
            return {"gate": torch.randn(rows, 2 * columns, device=device).to(dtype)}
        return {name: torch.randn(rows, columns, device=device).to(dtype) for name in ("gate", "up")}

    def apart(gate, up):
        return gate_of(gate) * up

    def together(gate):
        first, second = gate.chunk(2, -1)
        return gate_of(first) * second

    ours = getattr(bigkern, op)
    nbytes = rows * columns * dtype.itemsize
    return Case(
        f"{op} {rows}x{columns} {str(dtype).removeprefix('torch.')}{', packed' if packed else ''}",
        inputs,
        (lambda gate: ours(gate)) if packed else (lambda gate, up: ours(gate, up)),
        together if packed else apart,
        bytes=3 * nbytes,
        gradients=("gate",) if packed else ("gate", "up"),
        train_bytes=8 * nbytes,  # forward reads two and writes one; backward reads three and writes two
    )


CASES = [
    _case(32, 128),
    _case(512, 2816),
    _case(512, 11008),
    _case(512, 11008, packed=True),
    _case(512, 2816, "geglu"),
    _case(512, 11008, dtype=torch.bfloat16),
]

GPU_CASES = [
    _case(16384, 14336, dtype=torch.bfloat16),
    _case(16384, 14336, packed=True, dtype=torch.bfloat16),
    _case(16384, 8192, "geglu", dtype=torch.bfloat16),
]
TINY_CASES = [_case(5, 37, packed=True, dtype=torch.float16)]
