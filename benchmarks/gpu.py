"""`bigkern gpu`: everything there is to do when a GPU is at hand, in one command and in less than nine minutes.

The steps run one after another, each in a process of its own with a time limit, so that a crash or a hang costs that
step alone: `bigkern verify`, the test suite, compute-sanitizer on small cases, the benchmarks. Each leaves its record
in benchmarks/results/<device>/; `checks.json` lists every step with what failed, `summary.md` puts the figures beside
their targets, `roofline.png` shows how far each is from the machine's own limits.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from bigkern import info

from .common import RESULTS, device_here, device_slug, environment_record
from .roofline import write_roofline, write_summary
from .suite import SUITES

ROOT = Path(__file__).resolve().parents[1]
OPS = tuple(suite for suite in SUITES if suite not in ("mlp", "mixed", "overhead"))
BUDGET = 520  # seconds in all; what has not begun by then is left out, and said to be
SANITIZER_EXIT = 99


@dataclass
class Step:
    """One process of the run: what is started and, afterwards, what came of it."""

    name: str
    command: list[str]
    limit: float
    # A step that failed, timed out or was left out has its reason here.
    status: str = "not run"
    seconds: float = 0.0
    details: dict = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def run(self, folder: Path, environment: dict, seconds_left: float):
        """Runs the command; its output goes to <folder>/<name>.log."""
        log = folder / f"{self.name.replace(' ', '-')}.log"
        begin = time.monotonic()
        with log.open("w") as output:
            try:
                done = subprocess.run(
                    self.command,
                    cwd=ROOT,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=min(self.limit, seconds_left),
                )
                self.status = "passed" if done.returncode == 0 else f"failed with exit code {done.returncode}"
            except subprocess.TimeoutExpired:
                self.status = f"stopped after {min(self.limit, seconds_left):.0f} s"
        self.seconds = round(time.monotonic() - begin, 1)
        if self.status != "passed":
            self.failures += log.read_text(errors="replace").splitlines()[-6:]


def verify_step(ops) -> Step:
    command = [sys.executable, "-m", "bigkern", "verify"]
    for backend in ("cuda", "triton"):
        command += ["--backend", backend]
    return Step("verify", [*command, *(f"--op={op}" for op in ops)], 120)


def tests_step(ops, folder: Path, rehearsal: bool) -> Step:
    files = [f"tests/test_{op}.py" for op in ops] if set(ops) != set(OPS) else ["tests"]
    report = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "--junitxml", str(report), "--timeout=120"]
    if rehearsal:
        return Step("tests", [*command, "tests/test_gpu.py"], 300)
    if find_spec("xdist"):
        command += ["-n", "8", "--dist", "loadfile"]
    return Step("tests", [*command, *files], 240)


def sanitizer_steps(ops) -> list[Step]:
    """memcheck and racecheck over `verify`'s small cases of the CUDA C++ kernels."""
    if not shutil.which("compute-sanitizer"):
        return []
    verify = [sys.executable, "-m", "bigkern", "verify", "--backend", "cuda", *(f"--op={op}" for op in ops)]
    return [
        Step(
            f"sanitizer {tool}",
            ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(SANITIZER_EXIT), *verify],
            60,
        )
        for tool in ("memcheck", "racecheck")
    ]


def bench_steps(ops, folder: Path, rehearsal: bool, compiled: bool) -> list[Step]:
    command = [sys.executable, "-m", "bigkern", "bench"]
    if rehearsal:
        to_file = lambda op: ["--op", op, "--tiny", "--json", str(folder / f"{op}.json")]  # noqa: E731
        return [Step(f"bench {op}", command + to_file(op), 120) for op in ops]
    command += ["--save", "--seconds", "0.1"] + ([] if compiled else ["--no-compile"])
    return [Step(f"bench {op}", [*command, "--op", op], 150) for op in (*ops, "overhead")]


def count_tests(step: Step, report: Path):
    """Adds pass and fail counts, and the names of failed tests, from pytest's JUnit report."""
    if not report.exists():
        return
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    step.details = {"passed": passed, **counts}
    bad = [
        case
        for case in ElementTree.parse(report).getroot().iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    if bad:
        step.failures = [f"{case.get('classname')}::{case.get('name')}" for case in bad]


def environment_for(rehearsal: bool) -> dict:
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    if rehearsal:
        environment["TRITON_INTERPRET"] = "1"
    return environment


@click.command("gpu")
@click.option("--only", "ops", type=click.Choice(OPS), multiple=True, help="Only this op; may be repeated.")
@click.option("--skip", type=click.Choice(("verify", "tests", "sanitizer", "bench")), multiple=True)
@click.option("--budget", type=float, default=BUDGET, show_default=True, help="Seconds in all.")
@click.option("--no-compile", is_flag=True, help="Leave torch.compile, slow to start, out of the benchmarks.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Not benchmarks/results/<device>/.")
@click.option("--dry-run", "rehearsal", is_flag=True, help="Every path at tiny sizes, on interpreter and emulator.")
def command(ops, skip, budget, no_compile, output, rehearsal):
    """Test and time everything on this machine's GPU, and write it all down.

    Needs no network. Exit code 1 where any step failed. A rehearsal needs no GPU; it writes to build/gpu-rehearsal
    unless --output says otherwise, and its figures mean nothing.
    """
    device = device_here()
    if device == "cpu" and not rehearsal:
        raise click.ClickException("no CUDA device is here; --dry-run rehearses every step without one")
    folder = output or (ROOT / "build/gpu-rehearsal" if rehearsal else RESULTS / device_slug(device))
    logs = ROOT / "build/gpu-logs"
    for path in (folder, logs):
        path.mkdir(parents=True, exist_ok=True)
    ops, console = ops or OPS, Console(stderr=True, highlight=False)

    steps = []
    if "verify" not in skip and not rehearsal:
        steps.append(verify_step(ops))
    if "bench" not in skip:
        steps += bench_steps(ops, folder, rehearsal, not no_compile)
    if "tests" not in skip:
        steps.append(tests_step(ops, logs, rehearsal))
    if "sanitizer" not in skip and not rehearsal:
        steps += sanitizer_steps(ops)

    begin = time.monotonic()
    for number, step in enumerate(steps, 1):
        left = budget - (time.monotonic() - begin)
        if left < 5:
            step.status = "left out: no time was left"
        else:
            with console.status(f"{number} of {len(steps)}: {step.name}, {left:.0f} s left"):
                step.run(logs, environment_for(rehearsal), left)
        if step.name == "tests":
            count_tests(step, logs / "tests.xml")
        colour = "green" if step.status == "passed" else "red"
        console.print(f"[{colour}]{step.name}: {step.status}[/{colour}] {step.seconds} s {_counts(step)}")
        for line in step.failures:
            console.print(f"    {escape(line)}", soft_wrap=True)

    record = {"environment": environment_record(device), "backends": info.environment()["backends"]}
    record["steps"] = [{k: v for k, v in asdict(step).items() if k not in ("command", "limit")} for step in steps]
    (folder / "checks.json").write_text(json.dumps(record, indent=1) + "\n")
    for path in (write_summary(folder, record), write_roofline(folder)):
        if path:
            click.echo(f"wrote {path}")
    sys.exit(0 if all(step.status == "passed" for step in steps) else 1)


def _counts(step: Step) -> str:
    return ", ".join(f"{value} {name}" for name, value in step.details.items() if name != "tests")
