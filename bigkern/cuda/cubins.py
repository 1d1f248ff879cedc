"""Compiled kernels (cubins): prebuilt ones first, then those kept on disk, then the compiler.

    $BIGKERN_CUBINS/<arch>/<name>.cubin                     written by `bigkern compile --output`
    <cache>/prebuilt/<arch>/<name>.cubin                    written by `bigkern compile`
    <cache>/nvrtc-<version>/<arch>/<name>.cubin             written when a kernel is first launched

<cache> is $BIGKERN_CACHE_DIR, or bigkern in the user's cache folder. A name holds a digest of the source, its headers,
macros and options: a changed source has another name, and what is found is what would be compiled.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from . import nvrtc, source_files
from .machine import Build

try:
    import fcntl
except ImportError:  # Windows: several processes may compile the same kernel, to the same result
    fcntl = None


def cache_folder() -> Path:
    if chosen := os.environ.get("BIGKERN_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bigkern"


def prebuilt_folders() -> list[Path]:
    chosen = os.environ.get("BIGKERN_CUBINS")
    return [*([Path(chosen).expanduser()] if chosen else []), cache_folder() / "prebuilt"]


def file_name(build: Build) -> str:
    parts = [repr((build.macros, nvrtc.OPTIONS)), *sorted(source_files.with_headers(build.source).items())]
    return f"{build.source}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}.cubin"


def prebuilt() -> dict[str, int]:
    """{arch: number of prebuilt cubins}"""
    found = {(path.parent.name, path.name) for folder in prebuilt_folders() for path in folder.glob("*/*.cubin")}
    return dict(sorted(Counter(arch for arch, _ in found).items()))


def find(build: Build, arch: str) -> Path | None:
    """The file of a prebuilt or kept cubin, if there is one."""
    folders = prebuilt_folders()
    if nvrtc.unavailable() is None:
        folders.append(_kept_folder())
    paths = (folder / arch / file_name(build) for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def load(build: Build, arch: str) -> bytes:
    """The cubin of a build, compiled and kept if it was not there.

    Raises:
        RuntimeError: there is none and no compiler; or (`nvrtc.CompileError`) it does not compile.
    """
    if path := find(build, arch):
        return path.read_bytes()
    if reason := nvrtc.unavailable():
        raise RuntimeError(f"cuda: no prebuilt cubin of {build} for {arch}, and nothing to compile it with: {reason}")
    path = _kept_folder() / arch / file_name(build)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "a")  # noqa: SIM115 - `_only_process` closes it
    except OSError as error:
        _say(f"compiled kernels cannot be kept for the next process: {error}")
        return _compile(build, arch)
    with _only_process(lock):
        if not path.is_file():
            write(path, _compile(build, arch))
        return path.read_bytes()


def write(path: Path, cubin: bytes) -> None:
    """Writes a file that others see whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(cubin)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _kept_folder() -> Path:
    return cache_folder() / f"nvrtc-{nvrtc.version()}"


def _compile(build, arch) -> bytes:
    _say(f"compiling {build} for {arch}")
    return nvrtc.compile_build(build, arch).cubin


def _say(text):
    if os.environ.get("BIGKERN_QUIET", "0") != "1":
        print(f"bigkern: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _only_process(file):
    """Keeps other processes (and threads: each opens the file anew) out of the `with` block; closes the file."""
    with file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # some network file systems have no locks
                _say(f"{file.name} cannot be locked, processes may compile the same kernel twice: {error}")
        yield
