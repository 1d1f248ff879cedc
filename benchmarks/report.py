"""`bigkern report`: writes the generated tables of a README, from the ops' own declarations and benchmarks/results/.

A table stands between two markers, <!-- ops:begin --> and <!-- ops:end --> for one; a README without them is left as it
is.
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import click

from bigkern import use_backend
from bigkern.backends import BACKENDS
from bigkern.verify import draw, outcome
from bigkern.verify_cases import ALL_DTYPES, CASES

from . import models
from .common import RESULTS
from .suite import SUITES, short_rate, short_share, short_time

SHORT_DTYPES = dict(zip(ALL_DTYPES, ("fp32", "fp16", "bf16", "fp64"), strict=True))
KERNEL_BACKENDS = {"cpu": "CPU (C++)", "triton": "Triton", "cuda": "CUDA (C++)"}
SLOWER = 0.95  # below this ratio bigkern is called slower; the rest is noise


# ---- ops x backends --------------------------------------------------------------------------------------------------


class _Recording:
    """Stands in for the torch backend and keeps every call that passes."""

    def __init__(self, torch_backend):
        self.torch_backend, self.calls = torch_backend, []

    def unavailable(self):
        return None

    def run(self, kernel, args):
        self.calls.append((kernel, args))
        return self.torch_backend.run(kernel, args)


@contextmanager
def recorded_calls():
    """The (kernel, arguments) of everything that runs on the torch backend inside the block, gradients too."""
    torch_backend = BACKENDS["torch"]
    BACKENDS["torch"] = recording = _Recording(torch_backend)
    try:
        yield recording.calls
    finally:
        BACKENDS["torch"] = torch_backend


def kernel_calls() -> dict:
    """{kernel: {dtype: [arguments]}}, from the cases of `bigkern verify`."""
    found = defaultdict(lambda: defaultdict(list))
    for case in CASES:
        for dtype in case.dtypes:
            with use_backend("torch"), recorded_calls() as calls:
                outcome(case.bigkern, draw(case, dtype, "cpu"), case.gradients)
            for kernel, args in calls:
                found[kernel][dtype].append(args)
    return found


def _cell(kernel, backend, calls) -> str:
    """The dtypes that `backend` declares; a star where it declines some calls of that dtype."""
    if backend not in kernel.supports:
        return ""
    supports, words = kernel.supports[backend], []
    for dtype, short in SHORT_DTYPES.items():
        declined = [supports(*args) is not None if supports else False for args in calls[dtype]]
        if calls[dtype] and not all(declined):
            words.append(short + ("*" if any(declined) else ""))
    return " ".join(words)


@cache
def ops_table() -> str:
    found = kernel_calls()
    by_name = {kernel.name: kernel for kernel in found}
    backends = [name for name in KERNEL_BACKENDS if any(name in kernel.supports for kernel in found)]
    lines = [
        f"| op | | {' | '.join(KERNEL_BACKENDS[name] for name in backends)} |",
        f"|---|---|{'---|' * len(backends)}",
    ]
    for name, kernel in by_name.items():
        op, _, direction = name.rpartition("_")
        if direction == "backward":
            continue
        cells = [_cell(kernel, backend, found[kernel]) or "PyTorch" for backend in backends]
        lines.append(f"| `{op}` | {direction} | {' | '.join(cells)} |")
        backward = by_name.get(f"{op}_backward")
        if backward:
            cells = [_cell(backward, backend, found[backward]) or "PyTorch" for backend in backends]
            lines.append(f"| | backward | {' | '.join(cells)} |")
        elif kernel._differentiable:
            lines.append(f"| | backward | {' | '.join(['PyTorch'] * len(backends))} |")
    text = "\n".join(lines)
    if "*" in text:
        text += "\n\n\\* not for every argument: `bigkern.explain(op, ...)` says why a call goes elsewhere."
    return text


# ---- results ---------------------------------------------------------------------------------------------------------


def load_results(folder: Path) -> dict[str, list[dict]]:
    """{device: records in the order of the suites}."""
    devices = defaultdict(list)
    for path in sorted(folder.glob("*/*.json")):
        devices[path.parent.name].append(json.loads(path.read_text()))
    for records in devices.values():
        records.sort(key=lambda record: SUITES.index(record["suite"]))
    return dict(devices)


def _ratios(record, peer) -> list[float]:
    return [result["ratio"][peer] for result in record["results"] if peer in result["ratio"]]


def _range(ratios) -> str:
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def _where_slower(record) -> str:
    slower = []
    for result in record["results"]:
        worst = min((ratio, peer) for peer, ratio in result["ratio"].items() if peer in ("eager", "compile"))
        if worst[0] < SLOWER:
            backward = "" if result["pass"] == "forward" else " with backward"
            slower.append(f"{result['case']}{backward} ({worst[0]:.2f}x {worst[1]})")
    return "; ".join(slower) or "nowhere"


def _summary_lines(records):
    yield "| | runs | vs eager: median (range) | vs `torch.compile` | slower than PyTorch at |"
    yield "|---|---|---|---|---|"
    for record in records:
        eager, compiled = (_range(_ratios(record, peer)) for peer in ("eager", "compile"))
        count = len(record["results"])
        yield f"| {record['suite']} | {count} | {eager} | {compiled} | {_where_slower(record)} |"


def _detail_lines(records):
    yield "| | case | pass | bigkern | vs eager | vs `torch.compile` | vs others | rate | of limit |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for record in records:
        for result in record["results"]:
            ratio = dict(result["ratio"])
            main = [f"{ratio.pop(peer):.2f}x" if peer in ratio else "" for peer in ("eager", "compile")]
            others = ", ".join(f"{value:.2f}x {peer}" for peer, value in ratio.items())
            time = short_time(result["timings"]["bigkern"]["median_s"])
            cells = [record["suite"], result["case"], result["pass"], time, *main, others]
            yield f"| {' | '.join([*cells, short_rate(result), short_share(result)])} |"


def _machine(records) -> str:
    where = records[-1]["environment"]
    dates = sorted({record["environment"]["date"] for record in records})
    commits = sorted({record["environment"]["commit"] or "no commit" for record in records})
    if where["gpu"]:
        chip = f"{where['gpu']['name']} (capability {where['gpu']['capability']})"
    else:
        chip = f"{where['processor']}, {where['threads']} threads, {where['instruction_set']}"
    period = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"**{chip}**; torch {where['versions']['torch']}; {period}; {', '.join(commits)}"


def results_table(folder: Path = RESULTS) -> str:
    blocks = []
    for records in load_results(folder).values():
        details = "\n".join(_detail_lines(records))
        blocks.append(
            f"{_machine(records)}\n\n"
            + "\n".join(_summary_lines(records))
            + f"\n\n<details><summary>Every case</summary>\n\n{details}\n\n</details>"
        )
    return "\n\n".join(blocks) or "No results are recorded yet: `bigkern bench --save` records them."


# ---- the README ------------------------------------------------------------------------------------------------------

GENERATORS = {"ops": ops_table, "results": results_table}


def regenerate(text: str) -> str:
    """`text` with what stands between each pair of markers written anew.

    Raises:
        ValueError: a marker that begins a table has none that ends it.
    """
    for name, generate in GENERATORS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text:
            continue
        if end not in text.partition(begin)[2]:
            raise ValueError(f"{begin} has no {end} after it")
        table = f"{begin}\n{generate()}\n{end}"
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, table=table: table, text, flags=re.DOTALL)
    return text


@click.command("report")
@click.argument("readme", type=click.Path(exists=True, dir_okay=False, path_type=Path), default="README.md")
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 where a table is stale.")
def command(readme, check):
    """Rewrite the generated tables of README (./README.md) from the ops' declarations and benchmarks/results/, and
    benchmarks/results/models.md beside them.

    The tables stand between <!-- ops:begin --> and <!-- ops:end -->, and between <!-- results:begin --> and
    <!-- results:end -->.
    """
    before = readme.read_text()
    try:
        after = regenerate(before)
    except ValueError as error:
        raise click.ClickException(f"{readme}: {error}") from error
    if check and after != before:
        click.echo(f"{readme} is stale: run `bigkern report {readme}`", err=True)
        sys.exit(1)
    if after != before:
        readme.write_text(after)
        click.echo(f"rewrote the tables of {readme}")
    else:
        click.echo(f"{readme} is up to date")
    if not check and any(RESULTS.glob("*/models/*.json")):
        models.TABLE.write_text(models.table())
