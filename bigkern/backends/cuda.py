"""CUDA C++ kernels from csrc/cuda: none are written yet, and the backend says so."""


def unavailable() -> str | None:
    return "no CUDA C++ kernels in this version"


def run(kernel, args):
    raise NotImplementedError(unavailable())
