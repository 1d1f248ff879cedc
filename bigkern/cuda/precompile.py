"""Compiling CUDA kernels ahead of time, for GPUs that may be elsewhere: `bigkern compile`."""

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import dispatch
from ..registration import KERNELS
from . import cubins, nvrtc, resources
from .common_calls import CALLS
from .machine import Launch, Recorder, arch_name, use_machine

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def ops_with_kernels() -> list[str]:
    """The ops that have CUDA kernels."""
    return sorted({kernel.module for kernel in KERNELS.values() if "cuda" in kernel.supports})


def record(call: Callable, arch: int, dtypes=DTYPES) -> list[Launch]:
    """The distinct launches of a function of `common_calls`, on a GPU of `arch`, for each dtype."""
    recorder = Recorder(arch)
    for dtype in dtypes:

        def tensor(*shape, dtype=dtype, requires_grad=False):
            return torch.empty(shape, dtype=dtype, device="meta", requires_grad=requires_grad)

        with use_machine(recorder), dispatch.use_backend("cuda"):
            call(tensor)
    return list(dict.fromkeys(recorder.launches))


def parse_architectures(text: str) -> list[int]:
    """ "sm_80,sm_90a" -> [80, 90]

    Raises:
        ValueError: one is not the name of an architecture, or older than the kernels need.
    """
    numbers = []
    for name in text.split(","):
        match = re.fullmatch(r"(?:sm_)?(\d+)a?", name.strip())
        if not match or int(match.group(1)) < 80:
            raise ValueError(f"unknown architecture {name.strip()!r}; for example sm_80, sm_90a, sm_100a")
        numbers.append(int(match.group(1)))
    return numbers


def compile_all(builds, jobs: int | None = None) -> Iterator[tuple]:
    """(build, arch, cubin or nvrtc.CompileError) of each (build, arch name), as they come out of the compiler."""

    def compile_one(job):
        try:
            return *job, nvrtc.compile_build(*job).cubin
        except nvrtc.CompileError as error:
            return *job, error

    # Threads do: the compiler runs outside of Python's lock.
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(compile_one, builds)


def _architectures_here() -> str:
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return ",".join(arch_name(10 * major + minor) for major, minor in sorted(found))


@click.command("compile")
@click.option("--arch", help="Architectures, with commas between: sm_80,sm_90a. Default: those of the GPUs here.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the cubins, to be named by BIGKERN_CUBINS where they are used. Default: where this user's own "
    "processes find them.",
)
@click.option("--op", "ops", multiple=True, help="Only this op; may be given again.")
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the table of resources, no cubins."
)
def command(arch, output, ops, report):
    """Compile the CUDA kernels ahead of time; needs no GPU. Nothing is compiled then where they run.

    Compiles what the common calls of each op launch; a call that needs another build still compiles it
    when it comes.
    """
    arch = arch or _architectures_here()
    if not arch:
        raise click.UsageError("there is no GPU here: name the architectures, for example --arch sm_90a")
    try:
        numbers = parse_architectures(arch)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if report and (unknown := sorted(set(numbers) - set(resources.LIMITS))):
        raise click.UsageError(f"--report knows nothing of {', '.join(map(arch_name, unknown))}")
    available = ops_with_kernels()
    if unknown := sorted(set(ops) - set(available)):
        raise click.UsageError(f"no CUDA kernels of {', '.join(unknown)}; there are those of {', '.join(available)}")
    if reason := nvrtc.unavailable():
        raise click.ClickException(reason)

    launches = {(op, number): record(CALLS[op], number) for op in ops or available for number in numbers}
    jobs = list(
        dict.fromkeys((launch.build, arch_name(number)) for (_, number), found in launches.items() for launch in found)
    )
    started, compiled, failures = time.perf_counter(), {}, []
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=len(jobs))
        for build, name, result in compile_all(jobs):
            if isinstance(result, nvrtc.CompileError):
                failures.append(result)
            else:
                compiled[build, name] = result
            progress.update(task, advance=1, description=f"{build} {name}")
        progress.update(task, description="compiled")
    for failure in failures:
        click.echo(str(failure), err=True)
    if report:
        report.write_text(resources.markdown_table(launches, compiled))
        click.echo(f"wrote {report}")
    else:
        folder = output or cubins.prebuilt_folders()[-1]
        for (build, name), cubin in compiled.items():
            cubins.write(folder / name / cubins.file_name(build), cubin)
        size = sum(map(len, compiled.values())) / 2**20
        click.echo(
            f"{len(compiled)} cubins of {size:.1f} MiB in {folder}, in {time.perf_counter() - started:.0f} s; "
            f"{len(failures)} failed"
        )
    if failures:
        raise click.exceptions.Exit(1)
