"""What this machine has and which kernels run on it: `bigkern info`, and the record beside every benchmark result."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import _C, __version__
from .backends import BACKENDS, cpu
from .cuda import cubins, libcuda, nvrtc

# Processor features that one of our kernels uses or could use, as /proc/cpuinfo names them.
NOTABLE_FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
CUPY_DISTRIBUTIONS = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on, which in a container are often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def gpu() -> dict | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }


def cuda() -> dict:
    """What CUDA kernels are compiled and launched with here."""
    no_driver, no_compiler = libcuda.unavailable(), nvrtc.unavailable()
    return {
        "driver": None if no_driver else libcuda.driver().version(),
        "nvrtc": None if no_compiler else nvrtc.version(),
        "missing": [reason for reason in (no_driver, no_compiler) if reason],
        "cache": str(cubins.cache_folder()),
        "prebuilt": cubins.prebuilt(),
    }


def _version_of(*distributions) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def environment() -> dict:
    """All that `bigkern info` shows, as plain JSON types."""
    present = cpu.unavailable() is None
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "features": [name for name in NOTABLE_FEATURES if name in _C.cpu_features()],
        "instruction_sets": _C.supported_instruction_sets(),
        "instruction_set": cpu.module().__name__.rpartition(".")[2] if present else None,
        "gpu": gpu(),
        "cuda": cuda(),
        "backends": {name: backend.unavailable() for name, backend in BACKENDS.items()},
        "versions": {
            "bigkern": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version_of("triton"),
            "numpy": _version_of("numpy"),
            "cupy": _version_of(*CUPY_DISTRIBUTIONS),
            "compiler": cpu.module().compiler if present else None,
        },
    }


def _rows(record):
    yield "processor", record["processor"]
    yield "features", " ".join(record["features"]) or "not told by this system"
    yield "cores", f"{record['cores']} usable, {record['threads']} threads in use"
    built = ", ".join(record["instruction_sets"]) or "none"
    yield "kernels for", f"{built}; in use: {record['instruction_set'] or 'none'} (BIGKERN_CPU_ISA forces another)"
    device = record["gpu"]
    yield (
        "GPU",
        f"{device['name']}, capability {device['capability']}, {device['memory_gib']} GiB" if device else "none",
    )
    tools = record["cuda"]
    yield "CUDA driver", f"for CUDA {tools['driver']}" if tools["driver"] else "not found"
    yield "NVRTC", tools["nvrtc"] or "not found (pip install nvidia-cuda-nvrtc brings it)"
    prebuilt = ", ".join(f"{count} for {arch}" for arch, count in tools["prebuilt"].items())
    yield "CUDA kernels", f"prebuilt: {prebuilt or 'none'}; others are kept in {tools['cache']} (BIGKERN_CACHE_DIR)"
    yield "", ""
    for name, reason in record["backends"].items():
        yield f"backend {name}", f"[red]no[/red]: {escape(reason)}" if reason else "[green]yes[/green]"
    yield "", ""
    for name, version in record["versions"].items():
        yield name, version or "not installed"


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(as_json):
    """Show this machine, the kernels that run on it, and why others do not."""
    record = environment()
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(record):
        table.add_row(name, text)
    Console(highlight=False).print(table)
