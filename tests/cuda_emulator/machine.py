"""The emulator as a `Machine`: builds csrc/cuda/<source>.cu for the CPU and runs each launch in a process of its own."""

import fcntl
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from bigkern.cuda.machine import SHARED_MEMORY, Addresses, Build, Machine, TensorMap

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KERNELS = ROOT / "csrc/cuda"
CACHE = ROOT / "build/cuda_emulator"

COMPILER = os.environ.get("CXX", "g++").split()
FLAGS = ["-std=c++17", "-g1", "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-ffp-contract=off"]
FLAGS += ["-Wno-attributes", "-Wno-unknown-pragmas", "-fmax-errors=5"]


class Kind(NamedTuple):
    """What a build looks for: flags for kernels, for the emulator itself, and for linking."""

    kernels: tuple[str, ...]
    runtime: tuple[str, ...]
    link: tuple[str, ...]


# Kernels are compiled with -Og: that takes a third of the time of -O1, and their own code is not what launches wait for.
# -fsanitize=alignment (in undefined) is what finds 16-byte accesses at other addresses. "race" takes only the calls that
# -fsanitize=thread inserts: race.cpp has the functions, and addresses must fit 32 bits.
RACES = ("-DEMULATOR_RACES", "-fno-pie")
KINDS = {
    "address": Kind(
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-Og"),
        ("-fsanitize=address", "-fno-omit-frame-pointer", "-O2"),
        ("-fsanitize=address,undefined",),
    ),
    "race": Kind(("-fsanitize=thread", *RACES, "-Og"), (*RACES, "-O2"), ("-no-pie",)),
}
# Forward with copies done at once, then backward, each warp as far as it can, with copies as late as allowed.
SEEDS = (0, 1)
SECONDS_PER_LAUNCH = 200

POINTER, INTEGER, FLOAT, TENSOR_MAP, ADDRESSES = range(5)


class EmulatorError(RuntimeError):
    """A kernel did what it must not, or could not be built; the message is the whole report."""


def unavailable() -> str | None:
    """Why nothing can be emulated here; None if it can."""
    return None if shutil.which(COMPILER[0]) else f"no C++ compiler {COMPILER[0]!r}"


class Emulator(Machine):
    """Runs kernels on CPU tensors.

    Args:
        arch: 80 (mma.sync and cp.async) or 90 (warpgroups, too).
        seeds: the orders of threads and copies in which each launch runs; all must give the same bytes. 0 is forward
            and at once, 1 backward, each warp as far as it can, and as late as allowed, others are random.
        kind: "address" (AddressSanitizer and UBSan) or "race" (accesses that no barrier orders).
        folder: where the sources lie; what they include comes from there, too, or from csrc/cuda.
    """

    def __init__(self, arch: int = 80, seeds: tuple[int, ...] = SEEDS, kind: str = "address", folder: Path = KERNELS):
        self.arch = arch
        self.shared_memory = SHARED_MEMORY[arch]
        # Few, so that persistent kernels go around their loops.
        self.num_multiprocessors = 3
        self._seeds = seeds
        self._kind = kind
        self._folder = folder

    def prebuild(self, builds: Iterable[Build]) -> None:
        """Compiles what is missing, side by side."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda build: executable(build, self._kind, self._folder), builds))

    def launch(self, build, kernel, grid, block, args, shared_bytes=0):
        grid = (grid,) if isinstance(grid, int) else tuple(grid)
        if shared_bytes > self.shared_memory:
            raise EmulatorError(f"{kernel}: {shared_bytes} bytes of shared memory, there are {self.shared_memory}")
        program = executable(build, self._kind, self._folder)
        buffers = Buffers()
        arguments = [buffers.argument(arg) for arg in args]
        request = b"".join(
            [
                _text(kernel),
                _ints(*grid, *[1] * (3 - len(grid)), block, 1, 1, shared_bytes),
                _ints(len(self._seeds), *self._seeds),
                _ints(len(buffers.views)),
                *buffers.contents(),
                _ints(len(arguments)),
                *arguments,
            ]
        )
        done = subprocess.run([program], input=request, capture_output=True, timeout=SECONDS_PER_LAUNCH)
        if done.returncode != 0:
            raise EmulatorError(f"{build}: {kernel}\n{_with_places(done.stderr.decode(errors='replace'), program)}")
        buffers.write_back(done.stdout)

    def tensor_map(self, tensor, box, swizzle_bytes):
        """Packs tensor_map.h's TensorDescription, with the driver's checks of cuTensorMapEncodeTiled."""
        rank, element = tensor.dim(), tensor.element_size()
        strides = [stride * element for stride in tensor.stride()]
        row = box[-1] * element if len(box) == rank > 0 else 0
        problems = {
            f"box {box} for {rank} dimensions": len(box) != rank or not 1 <= rank <= 5,
            f"the last stride is {tensor.stride()[-1:]}": tensor.stride()[-1:] != (1,),
            "the address is no multiple of 16": tensor.data_ptr() % 16,
            f"strides of {strides[:-1]} bytes are no multiples of 16": any(stride % 16 for stride in strides[:-1]),
            f"box {box} has a side beyond 1 to 256": not all(1 <= side <= 256 for side in box),
            f"rows of {row} bytes in the box are no multiple of 16": row % 16,
            f"swizzle of {swizzle_bytes} bytes": swizzle_bytes not in (0, 32, 64, 128),
            # The driver takes less; where the copy engine then puts the rows is not modelled.
            f"rows of {row} bytes in a swizzle of {swizzle_bytes}": swizzle_bytes and row != swizzle_bytes,
            "an empty tensor": tensor.numel() == 0,
        }
        for problem, present in problems.items():
            if present:
                raise EmulatorError(f"tensor_map: {problem}")
        pad = [0] * (5 - rank)
        opaque = struct.pack(
            "<qii5q5q5iiq",
            *(0, rank, element),  # the runner fills in the address
            *(*reversed(tensor.shape), *pad),
            *(*reversed(strides), *pad),
            *(*reversed(box), *pad),
            *(swizzle_bytes, 0),
        )
        return TensorMap(opaque, tensor)


def _with_places(report: str, program: Path) -> str:
    """The report of a race with places in the source for addresses in the program."""
    place = lambda match: _run(["addr2line", "-e", program, match[1]]).strip()  # noqa: E731
    return re.sub(r"@(0x[0-9a-f]+)", place, report)


# ---- a launch as bytes, see runner.cpp ----


def _ints(*values) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def _text(text: str) -> bytes:
    return _ints(len(text)) + text.encode()


class Buffers:
    """The whole storages of a launch's tensors, each once."""

    def __init__(self):
        self.views: list[torch.Tensor] = []
        self._positions: dict[int, int] = {}

    def _position(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._positions:
            self._positions[storage.data_ptr()] = len(self.views)
            self.views.append(torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)))
        return self._positions[storage.data_ptr()]

    def _place(self, tensor: torch.Tensor | None) -> bytes:
        if tensor is None or tensor.untyped_storage().nbytes() == 0:
            return _ints(-1, 0)
        return _ints(self._position(tensor), tensor.storage_offset() * tensor.element_size())

    def argument(self, arg) -> bytes:
        if arg is None or isinstance(arg, torch.Tensor):
            return _ints(POINTER) + self._place(arg)
        if isinstance(arg, TensorMap):
            return _ints(TENSOR_MAP) + self._place(arg.tensor) + arg.opaque
        if isinstance(arg, Addresses):
            return _ints(ADDRESSES, len(arg.tensors)) + b"".join(map(self._place, arg.tensors))
        if isinstance(arg, float):
            return _ints(FLOAT) + struct.pack("<f", arg)
        return _ints(INTEGER, int(arg))

    def contents(self) -> Iterable[bytes]:
        for view in self.views:
            yield _ints(view.data_ptr() % 256, view.numel())
            yield view.numpy().tobytes()

    def write_back(self, results: bytes) -> None:
        start = 0
        for view in self.views:
            result = torch.frombuffer(bytearray(results[start : start + view.numel()]), dtype=torch.uint8)
            start += view.numel()
            if not torch.equal(view, result):
                view.copy_(result)


# ---- builds ----


@cache
def executable(build: Build, kind: str = "address", folder: Path = KERNELS) -> Path:
    """The program that runs the kernels of `build`, compiled unless it is there already."""
    source = _preprocessed(build, folder)
    objects = _runtime(kind)
    key = _hash(source.encode(), _compiler_version().encode(), *FLAGS, *KINDS[kind].kernels, objects.name)
    path = CACHE / f"{build.source}-{key}"
    with _locked(path):
        if not path.exists():
            _compile_kernels(source, kind, objects, path)
    return path


def _hash(*parts) -> str:
    return hashlib.sha256(b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)).hexdigest()[
        :24
    ]


@contextmanager
def _locked(path: Path):
    """One process at a time builds `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise EmulatorError(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


@cache
def _compiler_version() -> str:
    return _run([*COMPILER, "--version"])


def _preprocessed(build: Build, folder: Path) -> str:
    """The source with all that it includes, and the table of its kernels.

    Kernels lie in an unnamed namespace: static variables of templates then belong to this object file alone, as the
    others do, and stand in its .bss.
    """
    macros = [f"-D{name}={value}" for name, value in build.macros]
    with tempfile.TemporaryDirectory() as scratch:
        wrapper = Path(scratch) / f"{build.source}.cpp"
        wrapper.write_text(
            "#include <ptx.cuh>\n#include <warpgroup.cuh>\n#include <kernel_table.h>\n"
            f'namespace {{\n#include "{folder / build.source}.cu"\n}}\n'
        )
        text = _run([*COMPILER, *FLAGS, "-E", f"-I{HERE}", f"-I{folder}", f"-I{KERNELS}", *macros, wrapper]).replace(
            scratch, ""
        )
    kernels = re.findall(r'extern "C" +void +(?:\[\[emulator::launch_bounds\((.*?)\)\]\]\s*)?(\w+)\s*\(', text)
    if not kernels:
        raise EmulatorError(f"{build}: there is no kernel in it")
    rows = [f'emulator::kernel_entry<{name}>("{name}", {bounds or 0}),' for bounds, name in kernels]
    return text + 'extern "C" constexpr emulator::Kernel emulator_kernels[] = {' + "\n".join(rows) + "{}};\n"


def _compile_kernels(source: str, kind: str, objects: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        text, kernel, program = (Path(scratch) / name for name in ("kernel.ii", "kernel.o", "program"))
        text.write_text(source)
        _run([*COMPILER, *FLAGS, *KINDS[kind].kernels, "-c", text, "-o", kernel])
        _run(["objcopy", "--rename-section", ".bss=emulator_shared", kernel])
        _run([*COMPILER, *KINDS[kind].link, kernel, *sorted(objects.glob("*.o")), "-o", program])
        os.replace(program, path)


@cache
def _runtime(kind: str) -> Path:
    """The folder of the emulator's own object files."""
    sources = sorted(HERE.glob("*.cpp"))
    texts = [path.read_bytes() for path in [*sources, *sorted(HERE.glob("*.h"))]]
    path = CACHE / f"runtime-{_hash(*texts, _compiler_version(), *FLAGS, *KINDS[kind].runtime)}"
    with _locked(path):
        if not path.exists():
            scratch = Path(tempfile.mkdtemp(dir=CACHE))
            flags = [*COMPILER, *FLAGS, *KINDS[kind].runtime]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda source: _run([*flags, "-c", source, "-o", scratch / f"{source.stem}.o"]), sources))
            os.replace(scratch, path)
    return path
