"""`bigkern bench`: runs the bench_<suite>.py files of this folder, each only after its ops have passed `verify`."""

import functools
import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import click
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import bigkern
from bigkern import dispatch
from bigkern.backends import BACKENDS, triton
from bigkern.cuda.machine import use_machine
from bigkern.policy import max_error
from bigkern.verify import backends_here, verify

from .common import (
    RESULTS,
    Case,
    Limits,
    WithBackward,
    bind,
    device_here,
    device_slug,
    environment_record,
    save,
    summary,
    take_turns,
)

SUITES = (
    "quantize",
    "linear_act",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "linear_cross_entropy",
    "mse_loss",
    "binary_cross_entropy_with_logits",
    "kl_div",
    "distillation_loss",
    "layer_norm",
    "rms_norm",
    "add_layer_norm",
    "batch_norm_act",
    "group_norm",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "attention",
    "embedding",
    "embedding_bag",
    "embedding_layer_norm",
    "rotary_embedding",
    "gated_act",
    "lstm",
    "gru",
    "rnn",
    "attention_decode",
    "attention_varlen",
    "int8_linear",
    "weight_only_linear",
    "sgd",
    "adam",
    "rmsprop",
    "adagrad",
    "grad_norm",
    "mlp",
    "mixed",
    "overhead",
)
GPU_BACKENDS = ("cuda", "triton")
SECONDS, QUICK_SECONDS = 1.0, 0.1
BUSY_LOAD = 0.7


class Refused(Exception):
    """A benchmark of something that gives wrong results is not run."""


def require_green(ops, device):
    """Raises `Refused` where an op of the suite fails `bigkern verify` on a backend that could be timed."""
    pairs = [
        (backend, where)
        for backend, where in backends_here()
        if where == device and not (backend == "triton" and triton.interpreted())
    ]
    wrong = [row for row in verify(ops, pairs) if row.status == "fail"]
    if wrong:
        first = wrong[0]
        raise Refused(
            f"{first.op} fails `bigkern verify` ({len(wrong)} failures; the first: {first.case}, {first.dtype}, "
            f"{first.backend} {first.what} {first.message}): what is wrong is not timed"
        )


def first_tensor(result) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def require_agreement(case: Case, inputs: dict):
    """Raises `Refused` where bigkern and eager are far apart at the very size that is timed."""
    with torch.no_grad():
        ours, theirs = (first_tensor(bind(call, inputs)()).double() for call in (case.bigkern, case.eager))
    error, largest = max_error(ours, theirs), theirs.abs().max().item()
    if not error <= case.agreement * largest:
        raise Refused(f"{case.name}: differs from PyTorch by {error:.3g} where the largest value is {largest:.3g}")


def cases_of(module, device: str, tiny: bool = False) -> list[Case]:
    """The cases of a bench_<suite> module for a device; `tiny`: what an interpreter can run."""
    if tiny:
        return getattr(module, "TINY_CASES", [])
    return getattr(module, "GPU_CASES", module.CASES) if device == "cuda" else module.CASES


def families(case: Case, inputs: dict) -> dict[str, Callable]:
    """The call on each family of GPU kernels that can run it: what `auto` chooses from."""
    found = {}
    for backend in GPU_BACKENDS:

        def call(*args, backend=backend, **kwargs):
            with dispatch.use_backend(backend):
                return case.bigkern(*args, **kwargs)

        with dispatch.use_backend(backend):
            decisions = bigkern.explain(bind(case.bigkern, inputs))
        if all(decision.chosen for decision in decisions):
            found[f"bigkern {backend}"] = functools.wraps(case.bigkern)(call)
    return found


def training_step(call: Callable, inputs: dict, gradients: tuple[str, ...]) -> Callable[[], object]:
    """Forward and backward of `call`, for the gradients of the named inputs. A loss gets the gradient 1 that
    loss.backward() gives it: some libraries save a pass over memory then."""
    leaves = [inputs[name] for name in gradients]
    forward = bind(call, inputs)
    output = forward().detach()
    grad_output = torch.randn_like(output) if output.ndim else torch.ones_like(output)
    return lambda: torch.autograd.grad(forward(), leaves, grad_output)


@dataclass
class Candidates:
    """What to time, by name; what to do before a timed call, for some; why torch.compile or a peer is not timed."""

    calls: dict[str, Callable] = field(default_factory=dict)
    prepare: dict[str, Callable] = field(default_factory=dict)
    not_compiled: str = ""
    left_out: dict[str, str] = field(default_factory=dict)

    def add_peer(self, name: str, peer: Callable | WithBackward, inputs: dict, gradients: tuple[str, ...]):
        """A peer that fails on these inputs is left out: what other libraries refuse is theirs to say."""
        try:
            if gradients:
                own = {place: inputs[place].detach().clone().requires_grad_() for place in peer.overwrites}
                self.calls[name] = training_step(peer.call, {**inputs, **own}, gradients)
                if own:
                    self.prepare[name] = lambda: copy_into(own, inputs)
            else:
                self.calls[name] = bind(peer.call if isinstance(peer, WithBackward) else peer, inputs)
            self.calls[name]()
        except Exception as error:
            self.calls.pop(name, None)
            self.left_out[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def copy_into(own: dict, inputs: dict):
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(inputs[name])


def candidates_for(case: Case, inputs: dict, training: bool, compiled: bool, all_families: bool = False) -> Candidates:
    calls = {"bigkern": case.bigkern, "eager": case.eager}
    if all_families:
        calls |= families(case, inputs)
    gradients = case.gradients if training else ()
    wrap = lambda call: training_step(call, inputs, gradients) if training else bind(call, inputs)  # noqa: E731
    found = Candidates({name: wrap(call) for name, call in calls.items()})
    for name, peer in case.peers.items():
        if isinstance(peer, WithBackward) or not training:
            found.add_peer(name, peer, inputs, gradients)
    if not compiled:
        found.not_compiled = "not asked for"
        return found
    # Cases made by one function share its code object, and Dynamo gives up after a few shapes of one code object.
    torch._dynamo.reset()
    compiled_call = torch.compile(case.eager, dynamic=False)
    try:
        found.calls["compile"] = wrap(compiled_call)
        found.calls["compile"]()
    except torch._dynamo.exc.TorchDynamoException as error:
        found.calls.pop("compile", None)
        found.not_compiled = str(error).partition("\n")[0]
    return found


def measure(
    case: Case, limits: Limits, seconds: float, training: bool, compiled: bool, all_families: bool = False
) -> dict:
    """The result of one case, forward alone or forward and backward, as plain JSON types."""
    device = limits.device
    torch.manual_seed(0)
    inputs = case.inputs(device)
    if not training:
        require_agreement(case, inputs)
    for name in case.gradients if training else ():
        inputs[name].requires_grad_()
    with torch.set_grad_enabled(training):
        candidates = candidates_for(case, inputs, training, compiled, all_families)
        times = take_turns(candidates.calls, seconds, device, candidates.prepare)
        chosen = bigkern.explain(bind(case.bigkern, inputs))
    timings = {name: summary(values) for name, values in times.items()}
    median = timings["bigkern"]["median_s"]
    flops, nbytes = (case.train_flops, case.train_bytes) if training else (case.flops, case.bytes)
    least, bound = limits.seconds_for(flops, nbytes, case.peak)
    return {
        "case": case.name,
        "pass": "forward+backward" if training else "forward",
        "backends": sorted({decision.chosen for decision in chosen}),
        "timings": timings,
        "not_compiled": candidates.not_compiled,
        # How many times as long as bigkern the other takes: above 1, bigkern is faster.
        "ratio": {name: timing["median_s"] / median for name, timing in timings.items() if name != "bigkern"},
        "gflops": flops / median / 1e9,
        "gbps": nbytes / median / 1e9,
        "bound": bound if least else None,
        "share_of_limit": least / median if least else None,
        "flops": flops,
        "bytes": nbytes,
        "target": case.target,
        # Peers that were not timed, by name, and why.
        **({"left_out": candidates.left_out} if candidates.left_out else {}),
    }


@contextmanager
def deprecated_peers():
    """What PyTorch means to remove is still what people run: its warnings are not shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        yield


@contextmanager
def emulated(tiny: bool):
    """Where cases are `tiny`, CUDA kernels run on the emulator of the tests, if this is a checkout that has it."""
    if tiny and find_spec("tests") and find_spec("tests.cuda_emulator"):
        emulator = importlib.import_module("tests.cuda_emulator.machine")
        with use_machine(emulator.Emulator()):
            yield
    else:
        yield


def run_suite(name: str, seconds=SECONDS, compiled=True, only="", tiny=False, advance=lambda text: None) -> dict:
    """Runs one suite on this machine's best device and returns its record.

    Args:
        name: one of `SUITES`.
        seconds: spent on timing each case and pass, beside warm-up and compilation.
        compiled: False leaves torch.compile out.
        only: a part of the names of the cases wanted.
        tiny: a rehearsal on the CPU, of cases small enough for Triton's interpreter and the CUDA emulator.
        advance: called with a few words before each measurement.

    Raises:
        Refused: an op of the suite is wrong on this machine, or disagrees with PyTorch at a size to be timed.
    """
    module = importlib.import_module(f".bench_{name}", __package__)
    device = "cpu" if tiny else device_here()
    cases = [case for case in cases_of(module, device, tiny) if only in case.name]
    limits = Limits(device, min(seconds, 0.3), matrix_size=64 if tiny else None)
    results = []
    if cases:
        advance(f"{name}: verify")
        require_green(module.OPS, device)
    with deprecated_peers(), emulated(tiny):
        for case in cases:
            for training in (False, True) if case.gradients else (False,):
                advance(f"{name}: {case.name}" + (", with backward" if training else ""))
                all_families = tiny or device == "cuda"
                results.append(measure(case, limits, seconds, training, compiled, all_families))
    return {
        "suite": name,
        "summary": module.__doc__.splitlines()[0],
        "seconds": seconds,
        "backend": dispatch.forced_backend() or "auto",
        "environment": environment_record(device),
        "limits": limits.record(),
        "results": results,
    }


# ---- the command -----------------------------------------------------------------------------------------------------


def short_time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def short_rate(result: dict) -> str:
    if result["bound"] is None:
        return ""
    value, unit = (result["gflops"], "GFLOP/s") if result["bound"] == "compute" else (result["gbps"], "GB/s")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def short_share(result: dict) -> str:
    return "" if result["share_of_limit"] is None else f"{result['share_of_limit']:.0%}"


def _ratio_text(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    colour = "green" if ratio >= 1.05 else "red" if ratio < 0.95 else "default"
    return f"[{colour}]{ratio:.2f}x[/{colour}]"


def table_of(record: dict) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("case", no_wrap=True, overflow="ellipsis")
    table.add_column("pass", no_wrap=True)
    for name in ("bigkern", "vs eager", "vs compile", "rate", "of limit"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for result in record["results"]:
        ratios = (_ratio_text(result["ratio"].get(name)) for name in ("eager", "compile"))
        table.add_row(
            "" if result["case"] == previous else escape(result["case"]),
            "fwd" if result["pass"] == "forward" else "fwd+bwd",
            short_time(result["timings"]["bigkern"]["median_s"]),
            *ratios,
            short_rate(result),
            short_share(result),
        )
        previous = result["case"]
    return table


def other_peers(record: dict) -> Iterator[str]:
    for result in record["results"]:
        for name, ratio in result["ratio"].items():
            if name not in ("eager", "compile"):
                yield f"{result['case']}: {_ratio_text(ratio)} vs {name}"


def _short_size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def show(record: dict, console: Console):
    console.print(f"[bold]{escape(record['summary'])}[/bold]")
    console.print(table_of(record))
    for line in other_peers(record):
        console.print(f"  {line}")
    peaks = [f"{name} products {peak:.3g} GFLOP/s" for name, peak in record["limits"]["peak_gflops"].items()]
    copies = [f"{rate:.3g} ({_short_size(int(size))})" for size, rate in record["limits"]["copy_gbps"].items()]
    limits = peaks + ([f"copy, GB/s: {' '.join(copies)}"] if copies else [])
    if limits:
        console.print(f"  [dim]limits: {', '.join(limits)}[/dim]", soft_wrap=True)
    reasons = {
        ("torch.compile", result["not_compiled"]): None for result in record["results"] if result["not_compiled"]
    }
    reasons |= dict.fromkeys(item for result in record["results"] for item in result.get("left_out", {}).items())
    for name, reason in reasons:
        console.print(f"  [dim]{escape(name)} left out: {escape(reason)}[/dim]")


@click.command("bench")
@click.option("--op", "suites", type=click.Choice(SUITES), multiple=True, help="Only this suite; may be repeated.")
@click.option("--only", default="", metavar="CASE", help="Only cases whose name contains this.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="Time this backend's kernels, not what auto picks.")
@click.option("--quick", is_flag=True, help="A tenth of the time, and no torch.compile: figures are rough.")
@click.option("--seconds", type=float, help=f"Spent on timing each case.  [default: {SECONDS}]")
@click.option("--no-compile", is_flag=True, help="Leave torch.compile out.")
@click.option("--tiny", is_flag=True, help="Rehearse GPU runs on the CPU: tiny cases, interpreted and emulated.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True), help="Write all records here.")
@click.option("--save", "saving", is_flag=True, help="Write benchmarks/results/<device>/<suite>.json of this checkout.")
def command(suites, only, backend, quick, seconds, no_compile, tiny, json_file, saving):
    """Time bigkern against PyTorch eager and torch.compile on this machine.

    A ratio is PyTorch's median time over bigkern's: above 1, bigkern is faster. "of limit" holds the time against what
    this machine's own copy bandwidth and fastest library matrix product would allow, measured in the same run. An op
    that fails `bigkern verify` is not timed, and the exit code is 1. All suites take about five minutes on two cores.
    """
    if saving and (quick or only or tiny):
        raise click.UsageError("--save keeps whole results: it goes with none of --quick, --only and --tiny")
    seconds = seconds or (QUICK_SECONDS if quick or tiny else SECONDS)
    compiled = not (quick or no_compile or tiny)
    records, refused, matched = [], False, False
    errors, console = Console(stderr=True), Console(highlight=False)
    if (load := os.getloadavg()[0]) > BUSY_LOAD:
        errors.print(f"[yellow]this machine is busy (load {load:.1f}): figures will be noisy[/yellow]")
    with dispatch.use_backend(backend or dispatch.forced_backend() or "auto"):
        for suite in suites or SUITES:
            try:
                with errors.status("") as status:
                    record = run_suite(suite, seconds, compiled, only, tiny, status.update)
            except (Refused, dispatch.Unsupported) as refusal:
                errors.print(f"[bold red]{suite} refused[/bold red]: {escape(str(refusal))}")
                refused = True
                continue
            if record["results"]:
                matched = True
                show(record, console)
                records.append(record)
            if saving:
                click.echo(f"  wrote {save(record, RESULTS / device_slug(record['environment']['device']))}")
    if json_file:
        Path(json_file).write_text(json.dumps(records, indent=1) + "\n")
    if not matched and not refused:
        raise click.UsageError(f"no case has {only!r} in its name")
    sys.exit(1 if refused else 0)
