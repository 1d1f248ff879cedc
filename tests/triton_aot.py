"""Compile Triton kernels ahead of time, for GPUs that this machine does not have, and say what came out.

A test file that wants this defines `aot_cases() -> {name: call}`; each call runs a launcher of kernels/ on meta tensors.
`compile_cases(__file__)` runs the cases in one subprocess per architecture. There, every kernel launch is caught and
compiled instead, with the tile, options and argument specialisation (alignment, unit strides) that the launcher gave:
what is checked is what a user's GPU would run.

    reports = compile_cases(__file__)          # {arch: {case: [report of each launch]}}
    python tests/triton_aot.py tests/test_triton_aot.py      # the same as a table
"""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ARCHITECTURES = (80, 90, 100)
# For ops whose kernels are built from the same parts as others that are compiled for all of them in every run.
HOPPER_FIRST = (pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow))
# What one thread block may use, bytes (CUDA programming guide, table of compute capabilities).
SHARED_MEMORY_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
POINTEE_NAMES = {
    **{"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64", "bool": "u1"},
    **{"int8": "i8", "uint8": "u8", "int16": "i16", "int32": "i32", "int64": "i64", "uint64": "u64"},
}
REPOSITORY = Path(__file__).resolve().parents[1]


class Compiled:
    """The reports of a test file's cases, by architecture: each is compiled when it is first asked for."""

    def __init__(self, test_file):
        self.test_file = test_file

    @functools.cache  # noqa: B019 (there is one for each test file)
    def __getitem__(self, arch):
        # Interpreted kernels cannot be compiled, and the test process is interpreting: hence another process.
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, __file__, str(self.test_file), "--json", str(arch)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"ahead-of-time compilation for sm_{arch} failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def compile_cases(test_file):
    """{arch: {case: [report]}} for the `aot_cases()` of `test_file`; see `describe` for the fields of a report."""
    return Compiled(test_file)


def compile_in_this_process(test_file, arch):
    """{case: [report]} for one architecture; needs a process without TRITON_INTERPRET."""
    # kernels/ is imported straight from the tree: nothing has to be built or installed for this.
    sys.path.insert(0, str(REPOSITORY))
    from kernels import common

    common.ARCH_WITHOUT_GPU = arch
    spec = importlib.util.spec_from_file_location("aot_case_file", test_file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    launches = {name: catch_launches(call) for name, call in module.aot_cases().items()}
    return {name: [compile_launch(launch, arch) for launch in caught] for name, caught in launches.items()}


def catch_launches(call):
    """Run `call` with every kernel launch recorded as (kernel, args, kwargs) instead of made."""
    from triton.runtime.jit import JITFunction

    launches = []
    real_run = JITFunction.run
    JITFunction.run = lambda kernel, *args, grid, warmup, **kwargs: launches.append((kernel, args, kwargs))
    try:
        call()
    finally:
        JITFunction.run = real_run
    return launches


def compile_launch(launch, arch):
    """Compile one caught launch as triton would on a GPU of this architecture, and describe the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, args, kwargs = launch
    parameters = [parameter.name for parameter in kernel.params]
    arguments = dict(zip(parameters, args, strict=False)) | {n: v for n, v in kwargs.items() if n in parameters}
    options = {name: value for name, value in kwargs.items() if name not in parameters}

    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments.get(parameter.name, parameter.default)
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        signature[parameter.name] = type_name(value)
        address = value.data_ptr() if hasattr(value, "data_ptr") else value
        if type(address) is int and address % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]

    started = time.perf_counter()
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return describe(kernel.__name__, compiled) | {"compile_seconds": round(time.perf_counter() - started, 2)}


def type_name(value):
    """The name triton's launcher gives to an argument's type."""
    import torch

    if isinstance(value, torch.Tensor):
        return "*" + POINTEE_NAMES[str(value.dtype).removeprefix("torch.")]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"triton_aot: no kernel argument type for {type(value).__name__}")


def describe(name, compiled):
    """What the compiled kernel uses, read from its machine code."""
    from bigkern.cuda import sass

    (code,) = sass.read_cubin(compiled.asm["cubin"]).values()
    ptx = compiled.asm["ptx"]
    return {
        "kernel": name,
        "registers": code.registers,
        "spills": code.count("STL"),
        "shared_bytes": compiled.metadata.shared,
        "num_warps": compiled.metadata.num_warps,
        "num_stages": compiled.metadata.num_stages,
        "ptx_matrix": sorted(set(re.findall(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", ptx))),
        "sass_matrix": code.matrix,
        "load_bits": code.load_bits,
        "store_bits": code.store_bits,
        "bulk_loads": code.count("UTMALDG"),
    }


def print_table(test_file):
    """Print one line per launch and architecture."""
    columns = ("kernel", "registers", "spills", "shared_bytes", "num_warps", "num_stages", "load_bits", "store_bits")
    for arch in ARCHITECTURES:
        for case, reports in compile_cases(test_file)[arch].items():
            for report in reports:
                fields = " ".join(f"{column}={report[column]}" for column in columns)
                print(f"sm_{arch} {case}: {fields} {','.join(report['sass_matrix'])} {report['compile_seconds']} s")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(compile_in_this_process(sys.argv[1], int(sys.argv[3]))))
    else:
        print_table(sys.argv[1])
