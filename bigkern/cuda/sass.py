"""What a cubin holds, read from its machine code: registers, spills, shared memory and instructions of each kernel.

Read with cuobjdump and nvdisasm, which triton's package brings, and the CUDA toolkit.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Products of matrices: of one warp, of four (Hopper), of Blackwell's tensor memory.
MATRIX = r"[HIQ]MMA|[HIQ]GMMA|UTC\wMMA"
GLOBAL_LOAD, GLOBAL_STORE = r"(?:LDG|LDGSTS)\.", r"STG\."
# Bulk copies of the tensor memory accelerator; they count as the widest access.
BULK_LOAD, BULK_STORE = r"UTMALDG|UBLKCP", r"UTMASTG|UBLKCP"


class KernelCode(NamedTuple):
    """One kernel's machine code."""

    registers: int  # of each thread
    shared_bytes: int  # declared in the kernel
    opcodes: tuple[str, ...]

    @property
    def spills(self) -> int:
        """Accesses of local memory: what ptxas calls a spill, and arrays that are not in registers."""
        return sum(opcode.startswith(("STL", "LDL")) for opcode in self.opcodes)

    @property
    def matrix(self) -> list[str]:
        """The kinds of matrix instructions: ["HGMMA.64x256x16.F32.BF16"]."""
        return sorted({opcode for opcode in self.opcodes if re.match(MATRIX, opcode)})

    @property
    def load_bits(self) -> int:
        """What the widest load from global memory moves per thread."""
        return widest(GLOBAL_LOAD, self.opcodes)

    @property
    def store_bits(self) -> int:
        return widest(GLOBAL_STORE, self.opcodes)

    def count(self, pattern: str) -> int:
        """How many instructions match a regular expression from their beginning."""
        return sum(bool(re.match(pattern, opcode)) for opcode in self.opcodes)


def widest(pattern: str, opcodes) -> int:
    """Bits that the widest access among the opcodes matching `pattern` moves per thread (0: there is none)."""
    accesses = [opcode for opcode in opcodes if re.match(pattern, opcode)]
    return max((int(bits) for o in accesses for bits in re.findall(r"\.(\d+)\b", o) or ["32"]), default=0)


@cache
def tool(name: str) -> str | None:
    """The path of cuobjdump or nvdisasm."""
    triton = importlib.util.find_spec("triton")
    if triton:
        path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return str(path)
    return shutil.which(name)


def read_cubin(cubin: bytes) -> dict[str, KernelCode]:
    """{kernel: its code}.

    Raises:
        RuntimeError: cuobjdump or nvdisasm is missing.
    """
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if not cuobjdump or not nvdisasm:
        raise RuntimeError("cuda: machine code is read with cuobjdump and nvdisasm, which pip install triton brings")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output_of(cuobjdump, "-res-usage", file.name)
        text = _output_of(nvdisasm, "-c", file.name)
    # From Hopper on, cuobjdump adds the 1 KB that the system keeps to what kernels with shared memory declare.
    # nvdisasm names the architecture in one of two ways, depending on who made the file.
    arch = re.search(r"\.target\s+sm_(\d+)|EF_CUDA_SM(\d+)", text)
    reserved = 1024 if int(arch[1] or arch[2]) >= 90 else 0
    codes = {}
    for section in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        name = section[: section.index(":")]
        registers, shared_bytes = re.search(
            rf"Function {re.escape(name)}:\s+REG:(\d+).*?SHARED:(\d+)", usage, re.DOTALL
        ).groups()
        opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", section, re.MULTILINE)
        codes[name] = KernelCode(int(registers), max(int(shared_bytes) - reserved, 0), tuple(opcodes))
    return codes


def _output_of(*command) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
