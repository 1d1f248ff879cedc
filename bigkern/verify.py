"""`bigkern verify`: every op on every backend of this machine against the float64 oracle, by the numerical policy."""

import json
import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import click
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from . import dispatch, registration
from .backends import BACKENDS, cpu
from .policy import max_error, tolerance
from .verify_cases import CASES, OPS, Case

# The oracle is not compared with itself.
CHECKED_BACKENDS = tuple(name for name in BACKENDS if name != "reference")


@dataclass(frozen=True)
class Row:
    """The verdict on one output or gradient, or on a whole case that a backend cannot run."""

    op: str
    case: str
    dtype: str
    backend: str
    device: str
    what: str = ""
    error: float | None = None
    torch_error: float | None = None
    allowed: float | None = None
    status: str = "pass"  # "pass", "fail" or "unsupported"
    message: str = ""

    @property
    def closeness(self) -> float:
        """Error as a share of what is allowed; sorts the worst last."""
        if self.status == "fail":
            return math.inf
        return self.error / self.allowed if self.error else 0.0


def backends_here() -> list[tuple[str, str]]:
    """(backend, device) pairs to check on this machine."""
    on_cpu = [("cpu", "cpu"), ("torch", "cpu")]
    if torch.cuda.is_available():
        pairs = [*on_cpu, ("triton", "cuda"), ("cuda", "cuda"), ("torch", "cuda")]
    else:
        pairs = [*on_cpu, ("triton", "cpu"), ("cuda", "cuda")]
    return [(backend, device) for backend, device in pairs if BACKENDS[backend].unavailable() is None]


def draw(case: Case, dtype, device) -> dict[str, torch.Tensor]:
    """The inputs of `case`, the same in every process; floating ones rounded to `dtype`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{case.op} {case.name}".encode()))
        tensors = case.inputs()
    return {name: (t.to(dtype) if t.is_floating_point() else t).to(device) for name, t in tensors.items()}


def outcome(call: Callable, tensors: dict, gradients: tuple[str, ...], grad_output=None) -> dict[str, torch.Tensor]:
    """What `call` returns by name, and the gradients of the named inputs as grad_<name>.

    grad_output None: drawn in the output's dtype. It is returned too, for the other calls.
    """
    tensors = {name: t.detach().clone().requires_grad_(name in gradients) for name, t in tensors.items()}
    found = call(**tensors)
    if not gradients:
        return found if isinstance(found, dict) else {"output": found}
    if grad_output is None:
        generator = torch.Generator().manual_seed(found.numel())
        grad_output = torch.randn(found.shape, generator=generator).to(found)
    grads = torch.autograd.grad(found, [tensors[name] for name in gradients], grad_output.to(found))
    named = {f"grad_{name}": grad for name, grad in zip(gradients, grads, strict=True)}
    return {"output": found.detach(), **named, "grad_output": grad_output}


def expectations(case: Case, dtype, device) -> tuple[dict, dict, dict]:
    """(inputs, the oracle's results in float64, PyTorch's results in `dtype`)."""
    tensors = draw(case, dtype, device)
    theirs = outcome(case.torch, tensors, case.gradients)
    exact = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    with dispatch.use_backend("reference"):
        oracle = outcome(case.bigkern, exact, case.gradients, theirs.get("grad_output"))
    return tensors, oracle, theirs


@contextmanager
def poisoned_outputs():
    """Kernels get outputs full of NaN, so that an element that they forget is seen."""
    before, registration.POISON_OUTPUTS = registration.POISON_OUTPUTS, True
    try:
        yield
    finally:
        registration.POISON_OUTPUTS = before


def compare(case: Case, blank: Row, expected) -> Iterator[Row]:
    """The verdicts on one case on one backend; `blank` names them."""
    tensors, oracle, theirs = expected
    try:
        with dispatch.use_backend(blank.backend), poisoned_outputs():
            ours = outcome(case.bigkern, tensors, case.gradients, theirs.get("grad_output"))
    except dispatch.Unsupported as refusal:
        yield replace(blank, status="unsupported", message=str(refusal).rpartition(": ")[2])
        return
    except Exception as error:  # a kernel that raises is a kernel that fails; the message is shown
        yield replace(blank, status="fail", message=f"{type(error).__name__}: {error}")
        return
    for what, found in ours.items():
        if what == "grad_output":
            continue
        try:
            error = max_error(found, oracle[what])
        except ValueError as mismatch:
            yield replace(blank, what=what, status="fail", message=str(mismatch))
            continue
        torch_error, allowed = max_error(theirs[what], oracle[what]), tolerance(oracle[what], theirs[what], found.dtype)
        status = "pass" if error <= allowed else "fail"
        yield replace(blank, what=what, error=error, torch_error=torch_error, allowed=allowed, status=status)


def verify(ops=OPS, pairs=None, advance: Callable[[str], None] = lambda text: None) -> Iterator[Row]:
    """Checks the ops on (backend, device) `pairs` (all of this machine's if None); yields a `Row` per verdict.

    `advance` is called with a few words before each case.
    """
    pairs = backends_here() if pairs is None else pairs
    devices = dict.fromkeys(device for _, device in pairs)
    for case in CASES:
        if case.op not in ops:
            continue
        advance(f"{case.op}: {case.name}")
        for dtype in case.dtypes:
            for device in devices:
                expected = expectations(case, dtype, device)
                for backend in (backend for backend, where in pairs if where == device):
                    blank = Row(case.op, case.name, str(dtype).removeprefix("torch."), backend, device)
                    yield from compare(case, blank, expected)


# ---- the command -----------------------------------------------------------------------------------------------------


def _number(value) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


def _label(row) -> str:
    if row.backend == "cpu":
        return f"cpu {cpu.module().__name__.rpartition('.')[2]}"
    return row.backend if row.device == "cpu" else f"{row.backend} {row.device}"


def _groups(rows, everything) -> list[list[Row]]:
    """The rows that share a line of the table: those of one case and backend, or each by itself."""
    groups = {}
    for number, row in enumerate(rows):
        groups.setdefault(number if everything else (row.case, row.backend, row.device), []).append(row)
    return list(groups.values())


def table_of(op, rows, everything) -> Table:
    table = Table(title=op, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("case", no_wrap=True, overflow="ellipsis")
    table.add_column("backend", no_wrap=True)
    table.add_column("what" if everything else "nearest its limit", no_wrap=True)
    for name in ("error", "PyTorch", "allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    previous = None
    for group in _groups(rows, everything):
        worst = max(group, key=lambda row: row.closeness)
        verdict = "[green]pass[/green]" if worst.status == "pass" else "[bold red]FAIL[/bold red]"
        numbers = (_number(value) for value in (worst.error, worst.torch_error, worst.allowed))
        case = "" if worst.case == previous else worst.case
        table.add_row(case, _label(worst), f"{worst.dtype} {worst.what}", *numbers, verdict)
        previous = worst.case
    return table


def show(rows, everything, console):
    for op in dict.fromkeys(row.op for row in rows):
        ran = [row for row in rows if row.op == op and row.status != "unsupported"]
        if ran:
            console.print(table_of(op, ran, everything))
    for row in rows:
        if row.status == "fail":
            where = " ".join(filter(None, (row.op, f"[{row.case}]", row.dtype, _label(row), row.what)))
            why = row.message or f"error {_number(row.error)}, allowed {_number(row.allowed)}"
            console.print(f"[bold red]FAIL[/bold red] {escape(f'{where}: {why}')}")
    refused = Counter((row.op, row.backend, row.message) for row in rows if row.status == "unsupported")
    for (op, backend, reason), count in refused.items():
        console.print(f"[dim]{op} on {backend}: {count} cases not run: {escape(reason)}[/dim]")
    counts = Counter(row.status for row in rows)
    colour = "red" if counts["fail"] else "green"
    console.print(f"[bold {colour}]{counts['pass']} passed, {counts['fail']} failed[/bold {colour}]")


def _chosen_pairs(backends):
    for name in backends:
        if reason := BACKENDS[name].unavailable():
            raise click.UsageError(f"backend {name} is not on this machine: {reason}")
    return [pair for pair in backends_here() if not backends or pair[0] in backends]


def _plain(row) -> dict:
    """JSON has no infinity: those become text."""
    values = asdict(row)
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


@click.command("verify")
@click.option("--op", "ops", type=click.Choice(OPS), multiple=True, help="Only this op; may be repeated.")
@click.option("--backend", "backends", type=click.Choice(CHECKED_BACKENDS), multiple=True, help="Only this backend.")
@click.option("--all", "everything", is_flag=True, help="A line for every dtype, output and gradient.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list, every output and gradient, nothing else.")
def command(ops, backends, everything, as_json):
    """Check every op on every backend of this machine against the float64 oracle.

    An error is the largest absolute difference from the oracle; twice PyTorch's own error in the same dtype, plus 4 ulp
    of the largest value, is allowed. Exit code 1 where anything exceeds it.

    TRITON_INTERPRET=1 checks the Triton kernels without a GPU (minutes). BIGKERN_CPU_ISA=baseline|avx2|avx512 checks
    the CPU kernels of that instruction set.
    """
    ops, pairs = ops or OPS, _chosen_pairs(backends)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=sum(case.op in ops for case in CASES))
        rows = list(verify(ops, pairs, lambda text: progress.update(task, advance=1, description=text)))
    if as_json:
        click.echo(json.dumps([_plain(row) for row in rows], indent=2))
    else:
        show(rows, everything, Console(highlight=False))
        absent = {name: BACKENDS[name].unavailable() for name in CHECKED_BACKENDS if not backends}
        for name, reason in absent.items():
            if reason:
                click.echo(f"not checked: {name} ({reason})")
    sys.exit(1 if any(row.status == "fail" for row in rows) else 0)
