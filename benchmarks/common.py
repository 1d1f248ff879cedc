"""How every benchmark measures: cases, timing, what the machine could do at best, and the record that is kept.

All candidates run in one process on the same random inputs, taking turns round by round, so that a slow minute of the
machine falls on all of them alike. A figure is the median of the rounds. On a CPU the inputs stay in whichever cache
holds them; on a GPU the second-level cache is overwritten before each call, and events measure.
"""

import datetime
import inspect
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bigkern import info

RESULTS = Path(__file__).with_name("results")
MIN_ROUNDS, MAX_ROUNDS = 5, 200
# A sample on the CPU covers as many calls as take this long: far above the clock's own cost.
SAMPLE_SECONDS = 2e-3
FLUSH_BYTES = 256 << 20  # more than any GPU's second-level cache


@dataclass(frozen=True)
class WithBackward:
    """A peer that can be differentiated: it is timed forward and backward too.

    Args:
        call: takes the inputs that it names.
        overwrites: names of inputs that its forward or backward writes into when they need gradients. It gets copies of
            its own, made afresh before each timed call; the copying is not counted.
    """

    call: Callable
    overwrites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One benchmark: inputs by name, the bigkern call and its peers, each taking the inputs that it names.

    Args:
        name: shape and what else sets the case apart.
        inputs: makes the inputs on a device; entries that no call names are allowed.
        bigkern, eager: the call and what a PyTorch user writes; `eager` is also timed under torch.compile.
        peers: further ways of doing the same, by name; a plain function is timed forward only.
        flops, bytes: arithmetic and compulsory memory traffic of the forward (0: no limit is shown).
        peak: whose matrix peak the arithmetic is held against: "float32", "bfloat16", "float16" or "int8".
        gradients: names of inputs; if any, forward and backward together are timed as well.
        train_flops, train_bytes: of forward and backward together.
        agreement: largest difference from `eager` at this size, relative to its largest value.
        target: the published figure to reach, with its source and chip.
    """

    name: str
    inputs: Callable[[str], dict]
    bigkern: Callable
    eager: Callable
    peers: dict[str, Callable | WithBackward] = field(default_factory=dict)
    flops: float = 0
    bytes: float = 0
    peak: str = "float32"
    gradients: tuple[str, ...] = ()
    train_flops: float = 0
    train_bytes: float = 0
    agreement: float = 0.02
    target: str = ""


# ---- timing ----------------------------------------------------------------------------------------------------------


def bind(call: Callable, inputs: dict) -> Callable[[], object]:
    """`call` with those of the inputs that it names."""
    names = inspect.signature(call).parameters
    chosen = {name: value for name, value in inputs.items() if name in names}
    return lambda: call(**chosen)


def _seconds_on_cpu(function, repeats) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def _seconds_on_cuda(function, flush) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def take_turns(
    candidates: dict[str, Callable], seconds: float, device="cpu", prepare: dict[str, Callable] | None = None
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, one figure a round, for about `seconds` in all.

    `prepare` has, for some candidates, what is to be done before each of their timed calls, outside of the time.
    """
    prepare = prepare or {}
    if device == "cpu":
        for function in candidates.values():
            function()  # allocations, thread start, compilation
        repeats = {
            name: 1 if name in prepare else max(1, round(SAMPLE_SECONDS / max(_seconds_on_cpu(function, 1), 1e-7)))
            for name, function in candidates.items()
        }
        sample = lambda name: _seconds_on_cpu(candidates[name], repeats[name])  # noqa: E731
    else:
        flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
        for function in candidates.values():
            for _ in range(3):
                function()
        sample = lambda name: _seconds_on_cuda(candidates[name], flush)  # noqa: E731
    order, times = list(candidates), {name: [] for name in candidates}
    stop = time.perf_counter() + seconds
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() > stop:
            break
        for name in order:
            if name in prepare:
                prepare[name]()
            times[name].append(sample(name))
        order.append(order.pop(0))  # nobody always runs after the same neighbour
    return times


def summary(times: list[float]) -> dict:
    return {"median_s": statistics.median(times), "min_s": min(times), "rounds": len(times)}


# ---- what the machine could do at best -------------------------------------------------------------------------------


class Limits:
    """Copy bandwidth and matrix peaks of one device, measured when first asked for, in the process of the benchmark."""

    def __init__(self, device="cpu", seconds=0.3, matrix_size=None):
        self.device, self.seconds = device, seconds
        self.matrix_size = matrix_size or (1024 if device == "cpu" else 8192)
        self.bandwidths: dict[int, float] = {}
        self.peaks: dict[str, float] = {}

    def _best_seconds(self, function) -> float:
        return min(take_turns({"it": function}, self.seconds, self.device)["it"])

    def bandwidth(self, working_set: float) -> float:
        """Bytes per second of a copy that reads and writes about as many bytes as the case touches: a case that fits in
        a cache is held against that cache."""
        size = min(max(1 << 16, 1 << round(working_set).bit_length()), 1 << 28)
        if size not in self.bandwidths:
            source = torch.randn(size // 8, device=self.device)
            target = torch.empty_like(source)
            self.bandwidths[size] = 2 * source.nbytes / self._best_seconds(lambda: target.copy_(source))
        return self.bandwidths[size]

    def peak(self, dtype: str) -> float:
        """Operations per second of the fastest matrix product that PyTorch has for `dtype`."""
        if dtype not in self.peaks:
            n = self.matrix_size
            products = _int8_products(n, self.device) if dtype == "int8" else _float_products(n, self.device, dtype)
            self.peaks[dtype] = 2 * n**3 / min(self._best_seconds(product) for product in products)
        return self.peaks[dtype]

    def seconds_for(self, flops, bytes, peak) -> tuple[float, str]:
        """(the least time that the machine's own limits allow, which limit that is)."""
        compute = flops / self.peak(peak) if flops else 0.0
        memory = bytes / self.bandwidth(bytes) if bytes else 0.0
        return (compute, "compute") if compute > memory else (memory, "memory")

    def record(self) -> dict:
        return {
            "peak_gflops": {name: round(peak / 1e9, 1) for name, peak in self.peaks.items()},
            "copy_gbps": {str(size): round(rate / 1e9, 1) for size, rate in sorted(self.bandwidths.items())},
        }


def _float_products(n, device, dtype):
    a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return [lambda: a @ b, lambda: a @ b.T]


def _int8_products(n, device):
    a, b = (torch.randint(-127, 128, (n, n), dtype=torch.int8, device=device) for _ in range(2))
    return [lambda: torch._int_mm(a, b), lambda: torch._int_mm(a, b.T)]


# ---- the record ------------------------------------------------------------------------------------------------------


def device_here() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_slug(device) -> str:
    """The folder under results/ for this machine: what it is, in file-name letters."""
    name = info.gpu()["name"] if device == "cuda" else f"{info.processor_name()} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _git(*arguments) -> str | None:
    """What git says about the checkout that this file is in; None for an installed package or a machine without git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str | None:
    revision = _git("rev-parse", "--short=12", "HEAD")
    # Results that were written a moment ago are no change of what is measured.
    changed = _git("status", "--porcelain", "--untracked-files=no", ":(top)", ":(top,exclude)benchmarks/results")
    return revision and revision + ("-dirty" if changed else "")


def environment_record(device) -> dict:
    """Where and when: kept beside every result."""
    record = info.environment()
    del record["backends"], record["cuda"]["cache"]  # the latter is a folder of this machine
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    return {"device": device, "date": date, "commit": commit(), "load_average": os.getloadavg()[0], **record}


def save(result: dict, folder: Path) -> Path:
    """Writes one suite's result to <folder>/<suite>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['suite']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
