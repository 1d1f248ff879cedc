"""The CUDA sources: csrc/cuda in the repository, installed as bigkern/cuda/sources."""

import re
from functools import cache
from pathlib import Path

INSTALLED = Path(__file__).parent / "sources"
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "csrc" / "cuda"


@cache
def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def with_headers(source: str) -> dict[str, str]:
    """{name: text} of <source>.cu, which comes first, and of every header that it includes, at any depth."""
    files = {}
    waiting = [f"{source}.cu"]
    while waiting:
        name = waiting.pop()
        if name not in files:
            files[name] = read(name)
            waiting += re.findall(r'^#include [<"]([\w.]+)[>"]', files[name], re.MULTILINE)
    return files
