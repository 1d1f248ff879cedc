"""What each kernel uses of a GPU, as a table: registers, shared memory, occupancy, matrix instructions."""

from concurrent.futures import ThreadPoolExecutor

from . import nvrtc
from .machine import arch_name
from .sass import KernelCode, read_cubin

# Of one multiprocessor (CUDA programming guide, table of compute capabilities): 32-bit registers, and for each
# architecture (warps, blocks, bytes of shared memory).
REGISTERS = 65536
LIMITS = {
    **{80: (64, 32, 164 * 1024), 86: (48, 16, 100 * 1024), 89: (48, 24, 100 * 1024)},
    **{90: (64, 32, 228 * 1024), 100: (64, 32, 228 * 1024), 120: (48, 24, 100 * 1024)},
}
# What the system keeps of each block's shared memory.
RESERVED_BYTES = 1024


def blocks_per_multiprocessor(arch: int, code: KernelCode, block: int, shared_bytes: int) -> int:
    """How many blocks of `block` threads run on one multiprocessor at a time (0: not even one fits)."""
    most_warps, most_blocks, most_shared = LIMITS[arch]
    warps = -(-block // 32)
    registers_per_warp = -(-code.registers * 32 // 256) * 256
    shared = -(-(shared_bytes + code.shared_bytes + RESERVED_BYTES) // 128) * 128
    return min(most_blocks, most_warps // warps, REGISTERS // (registers_per_warp * warps), most_shared // shared)


def occupancy(arch: int, code: KernelCode, block: int, shared_bytes: int) -> float:
    """The share of a multiprocessor's warps that are resident."""
    return blocks_per_multiprocessor(arch, code, block, shared_bytes) * -(-block // 32) / LIMITS[arch][0]


def markdown_table(launches, cubins) -> str:
    """The text of csrc/cuda/RESOURCES.md.

    Args:
        launches: {(op, arch): [Launch]}.
        cubins: {(build, arch name): cubin}.
    """
    with ThreadPoolExecutor() as pool:
        codes = dict(zip(cubins, pool.map(read_cubin, cubins.values()), strict=True))
    lines = [
        "# What each CUDA kernel uses",
        "",
        f"Read from the machine code that NVRTC {nvrtc.version()} makes of what the calls in",
        "`bigkern/cuda/common_calls.py` launch; nothing here was measured. Occupancy: the share of a multiprocessor's",
        "warps that fit at a time, by registers and shared memory. Written by",
        "`bigkern compile --arch sm_80,sm_90a,sm_100a --report csrc/cuda/RESOURCES.md`.",
        "",
        "| kernel | build | arch | threads | registers | spills | shared memory | occupancy | matrix instructions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = set()
    for (_, arch), found in launches.items():
        for build, kernel, block, dynamic, _ in found:
            if code := codes.get((build, arch_name(arch)), {}).get(kernel):
                share = occupancy(arch, code, block, dynamic)
                rows.add((kernel, str(build), arch, block, dynamic + code.shared_bytes, share, code))
    for kernel, build, arch, block, shared_bytes, share, code in sorted(rows, key=lambda row: row[:6]):
        macros = build.partition(" ")[2] or "-"
        lines.append(
            f"| `{kernel}` | {macros} | {arch_name(arch)} | {block} | {code.registers} | {code.spills} "
            f"| {shared_bytes} | {share:.0%} | {' '.join(code.matrix) or '-'} |"
        )
    return "\n".join(lines) + "\n"
