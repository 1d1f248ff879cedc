"""What the CUDA kernels compile to for GPUs that this machine does not have.

Compiled is what the calls in bigkern/cuda/common_calls.py launch. The quick run takes every source at its largest tile
in bfloat16, and for Hopper also in float32 and at every tile in bfloat16; the slow one takes everything.
"""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch

from bigkern.cuda import sass, source_files
from bigkern.cuda.common_calls import CALLS
from bigkern.cuda.machine import SHARED_MEMORY, Addresses, TensorMap, arch_name
from bigkern.cuda.precompile import DTYPES, compile_all, ops_with_kernels, record
from bigkern.cuda.resources import blocks_per_multiprocessor

pytest.importorskip("triton")  # brings the tools that read machine code

# Half a minute on two idle cores; the limit is for busy ones.
pytestmark = pytest.mark.timeout(1200)
ARCHITECTURES = (80, 90, 100)
SOURCES = sorted(path.stem for path in source_files.FOLDER.glob("*.cu"))

# What bounds each kernel: "matrix" products on the matrix units (float32, whose digits those do not keep, without);
# "stream" reads and writes large arrays; "read" reads them and writes next to nothing, or int8, and "write" the other
# way round; "small" works on what other
# kernels have reduced. Kernels of one name in two sources are of one kind.
KINDS = {
    "activation_backward_kernel": "stream",
    "adam_kernel": "stream",
    "attention_backward_delta_kernel": "read",
    "attention_backward_key_value_kernel": "matrix",
    "attention_backward_key_value_warpgroup_kernel": "matrix",
    "attention_backward_query_kernel": "matrix",
    "attention_backward_query_warpgroup_kernel": "matrix",
    "attention_forward_kernel": "matrix",
    "attention_forward_warpgroup_kernel": "matrix",
    "clip_grads_kernel": "stream",
    "column_range_kernel": "read",
    "cross_entropy_backward_positions_kernel": "stream",
    "cross_entropy_backward_rows_kernel": "stream",
    "cross_entropy_merge_kernel": "small",
    "cross_entropy_positions_kernel": "read",
    "cross_entropy_reduce_kernel": "small",
    "cross_entropy_rows_kernel": "read",
    "dequantize_columns_kernel": "write",
    "dequantize_kernel": "write",
    "grad_factor_kernel": "small",
    "grad_norm_kernel": "read",
    "group_range_kernel": "read",
    "group_scale_kernel": "small",
    "int8_linear_kernel": "matrix",
    "int8_linear_warpgroup_kernel": "matrix",
    "linear_act_kernel": "matrix",
    "linear_act_warpgroup_kernel": "matrix",
    "norm_backward_rows_kernel": "stream",
    "norm_backward_strips_kernel": "stream",
    "norm_backward_sums_kernel": "read",
    "norm_forward_kernel": "stream",
    "norm_reduce_kernel": "small",
    "quantize_columns_kernel": "read",
    "quantize_kernel": "read",
    "quantize_long_rows_kernel": "stream",
    "quantize_rows_kernel": "read",
    "quantize_short_rows_kernel": "stream",
    "sum_columns_kernel": "small",
    "sum_splits_kernel": "stream",
}


def is_warpgroup(launch):
    return launch.build.source.endswith("_warpgroup")


def scalar_of(launch):
    return dict(launch.build.macros).get("SCALAR")


def matrix_instruction(launch):
    """What the machine code of a "matrix" kernel must be made of; None: nothing."""
    if launch.kernel.startswith("int8"):
        return "IGMMA" if is_warpgroup(launch) else "IMMA"
    if scalar_of(launch) == "float":
        return None
    return "HGMMA" if is_warpgroup(launch) else "HMMA"


@cache
def launches_on(arch, everything=False):
    """The launches of the common calls whose builds are to be compiled."""
    quick = (torch.float32, torch.bfloat16) if arch == 90 else (torch.bfloat16,)
    dtypes = DTYPES if everything else quick
    launches = [launch for op in ops_with_kernels() for launch in record(CALLS[op], arch, dtypes)]
    if everything:
        return launches
    largest = {}  # for each source and dtype the build with the largest tile
    for launch in sorted(launches, key=lambda launch: (launch.block, launch.shared_bytes)):
        largest[launch.build.source, scalar_of(launch)] = launch.build
    every_tile = {launch.build for launch in launches if arch == 90 and scalar_of(launch) == "bfloat16"}
    return [launch for launch in launches if launch.build in {*largest.values(), *every_tile}]


@cache
def codes_on(arch, everything=False):
    """{build: {kernel: KernelCode}}"""
    builds = dict.fromkeys(launch.build for launch in launches_on(arch, everything))
    codes = {}
    for build, _, cubin in compile_all((build, arch_name(arch)) for build in builds):
        if isinstance(cubin, Exception):
            raise cubin
        codes[build] = sass.read_cubin(cubin)
    return codes


@pytest.fixture(params=ARCHITECTURES, ids=arch_name)
def arch(request):
    return request.param


def assert_sound(arch, everything=False):
    """Every launch: no spills, memory in bounds, the instructions that its kind asks for. Says all that is wrong."""
    faults = []
    codes = codes_on(arch, everything)
    for launch in launches_on(arch, everything):
        code, kind = codes[launch.build][launch.kernel], KINDS.get(launch.kernel)
        where = f"{launch.kernel} of {launch.build}"
        faults += [f"{where}: {fault}" for fault in faults_of(arch, launch, code, kind)]
    assert not faults, "\n".join(dict.fromkeys(faults))


def faults_of(arch, launch, code, kind):
    if code.spills:
        yield f"{code.spills} accesses of local memory"
    if launch.shared_bytes + code.shared_bytes > SHARED_MEMORY[arch]:
        yield f"{launch.shared_bytes + code.shared_bytes} bytes of shared memory"
    if not blocks_per_multiprocessor(arch, code, launch.block, launch.shared_bytes):
        yield f"{launch.block} threads of {code.registers} registers do not fit a multiprocessor"
    if kind not in ("matrix", "stream", "read", "write", "small"):
        yield "is missing in KINDS of this test"
    found = {opcode.split(".")[0] for opcode in code.matrix}
    wanted = matrix_instruction(launch) if kind == "matrix" else None
    if found != ({wanted} if wanted else set()):
        yield f"matrix instructions {sorted(found)}, not {wanted}"
    bulk = code.count(sass.BULK_LOAD)
    if kind in ("matrix", "stream", "read") and max(code.load_bits, 128 * bool(bulk)) < 128:
        yield f"its widest load moves {code.load_bits} bits"
    if kind in ("stream", "write") and max(code.store_bits, 128 * bool(code.count(sass.BULK_STORE))) < 128:
        yield f"its widest store moves {code.store_bits} bits"


def test_every_launch_compiles_to_what_its_architecture_does_best(arch):
    assert_sound(arch)


@pytest.mark.slow
def test_every_launch_of_every_dtype_compiles_to_what_its_architecture_does_best(arch):
    assert_sound(arch, everything=True)


def test_hopper_alone_gets_warpgroup_kernels():
    with_products = {op for op in ops_with_kernels() if f"{op}_warpgroup" in SOURCES}
    assert {launch.build.source for launch in launches_on(90) if is_warpgroup(launch)} >= {
        f"{op}_warpgroup" for op in with_products
    }
    assert not any(is_warpgroup(launch) for arch in (80, 100) for launch in launches_on(arch))


def test_every_source_and_kernel_is_launched_by_a_common_call():
    launches = [launch for arch in ARCHITECTURES for launch in launches_on(arch)]
    assert {launch.build.source for launch in launches} == set(SOURCES)
    declared = {(source, kernel) for source in SOURCES for kernel in parameters_in(source)}
    assert {(launch.build.source, launch.kernel) for launch in launches} == declared


# ---- arguments -------------------------------------------------------------------------------------------------------


@cache
def parameters_in(source):
    """{kernel: [type of each parameter]} as csrc/cuda/<source>.cu and its headers declare them."""
    macros = {}
    texts = source_files.with_headers(source).values()
    for text in texts:
        macros |= re.findall(r"^#define (\w+) ((?:[^\n]*\\\n)*[^\n]*)", text, re.M)
    text = re.sub(r"//[^\n]*", "", "\n".join(texts))
    kernel = r"^KERNEL\b\s*(?:__launch_bounds__\(.*?\)\s*)?(\w+)\((.*?)\)\s*\{"
    kernels = {}
    for name, parameters in re.findall(kernel, text, re.M | re.S):
        expanded = re.sub(r"\b[A-Z_]+\b", lambda match: macros.get(match[0], match[0]).replace("\\\n", " "), parameters)
        kernels[name] = [" ".join(parameter.split()) for parameter in expanded.split(",")]
    return kernels


def c_type(parameter):
    if "*" in parameter:
        return "pointer"
    return {"TensorMap": "TensorMap", "int64": "int64", "float": "float"}[parameter.split()[-2]]


def python_type(type_):
    names = {
        int: "int64",
        bool: "int64",
        float: "float",
        TensorMap: "TensorMap",
        Addresses: "pointer",
        type(None): "pointer",
    }
    return "pointer" if issubclass(type_, torch.Tensor) else names[type_]


def test_launchers_pass_the_arguments_that_kernels_declare(arch):
    for launch in launches_on(arch):
        declared = [c_type(parameter) for parameter in parameters_in(launch.build.source)[launch.kernel]]
        assert [python_type(type_) for type_ in launch.argument_types] == declared, (launch.kernel, launch.build)


# ---- nvcc ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not on the PATH")
def test_nvcc_compiles_every_source_too(tmp_path):
    def compile_one(launch):
        source, output = launch.build.source, tmp_path / f"{launch.build.source}.cubin"
        macros = [f"-D{name}={value}" for name, value in launch.build.macros]
        options = ["-cubin", "-std=c++17", "-arch=sm_90a", f"-I{source_files.FOLDER}", "-Werror=all-warnings"]
        command = ["nvcc", *options, *macros, "-o", output, source_files.FOLDER / f"{source}.cu"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f".text.{launch.kernel}\0".encode() in output.read_bytes()

    first = {launch.build.source: launch for launch in reversed(launches_on(90))}
    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_one, first.values()))
