"""`bigkern compile` on kernels of the tests' own: the files it leaves, what it says, and the table of resources."""

import pytest
import torch
from click.testing import CliRunner

from bigkern import cli
from bigkern.cuda import cubins, nvrtc, precompile, resources, sass, source_files
from bigkern.cuda.machine import Launch, TensorMap, build, machine_of
from tests.cuda_sources import SCALE, use_folder

SPILLING = """
#include <common.cuh>
KERNEL __launch_bounds__(1024) spilling_kernel(float* values) {
  float kept[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) kept[i] = values[threadIdx.x * 128 + i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) values[threadIdx.x * 128 + i] = kept[i] * kept[127 - i];
}
"""
PRODUCT = """
#include <common.cuh>
KERNEL product_kernel(const uint32* a, float* d) {
  __shared__ float staged[32][4];
  float sum[4] = {};
  uint32 row[4] = {a[0], a[1], a[2], a[3]}, column[2] = {a[4], a[5]};
  mma_m16n8k16<bfloat16>(sum, row, column);
  for (int i = 0; i < 4; ++i) staged[threadIdx.x][i] = sum[i];
  __syncthreads();
  for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = staged[31 - threadIdx.x][i];
}
"""


def scale_calls(tensor):
    input = tensor(1000)
    for _ in range(2):  # the same launch again is the same build
        args = (input, input, 2.0, input.numel())
        machine_of(input).launch(build("scale", SCALAR=input.dtype), "scale_kernel", 4, 128, args, 2048)


def broken_calls(tensor):
    machine_of(tensor(1)).launch(build("broken"), "broken_kernel", 1, 32, ())


@pytest.fixture
def sources(tmp_path, monkeypatch):
    folder = tmp_path / "sources"
    folder.mkdir()
    use_folder(folder, monkeypatch, scale=SCALE, broken="KERNEL broken_kernel() {", spilling=SPILLING, product=PRODUCT)
    monkeypatch.setattr(precompile, "CALLS", {"scale": scale_calls, "broken": broken_calls})
    monkeypatch.setattr(precompile, "ops_with_kernels", lambda: ["broken", "scale"])
    monkeypatch.setenv("BIGKERN_CACHE_DIR", str(tmp_path / "cache"))
    yield folder
    source_files.read.cache_clear()
    source_files.with_headers.cache_clear()


def run(*arguments):
    return CliRunner().invoke(cli.main, ["compile", *map(str, arguments)])


def test_launches_are_recorded_without_a_gpu():
    launches = precompile.record(scale_calls, 90)
    dtypes = ("float", "float16", "bfloat16")
    types = (torch.Tensor, torch.Tensor, float, int)
    assert launches == [Launch(build("scale", SCALAR=name), "scale_kernel", 128, 2048, types) for name in dtypes]


def test_compiled_cubins_are_found_where_there_is_no_compiler(sources, tmp_path, monkeypatch):
    for options, variable in (((), None), (("--output", tmp_path / "out"), str(tmp_path / "out"))):
        result = run("--arch", "sm_80,sm_90a", "--op", "scale", *options)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("6 cubins of ")
        with monkeypatch.context() as patch:
            patch.setattr(nvrtc, "unavailable", lambda: "no libnvrtc")
            if variable:
                patch.setenv("BIGKERN_CUBINS", variable)
                patch.setenv("BIGKERN_CACHE_DIR", str(tmp_path / "elsewhere"))
            for arch in ("sm_80", "sm_90a"):
                cubin = cubins.load(build("scale", SCALAR=torch.bfloat16), arch)
                assert list(sass.read_cubin(cubin)) == ["scale_kernel"]
            assert cubins.prebuilt() == {"sm_80": 3, "sm_90a": 3}


def test_a_kernel_that_does_not_compile_is_told_and_the_others_are_kept(sources, tmp_path):
    result = run("--arch", "sm_80", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "cuda: broken does not compile for sm_80" in result.stderr
    assert "error" in result.stderr
    assert "3 cubins of " in result.stdout
    assert "; 1 failed" in result.stdout
    assert len(list((tmp_path / "out").rglob("*.cubin"))) == 3


def test_a_wrong_architecture_is_a_usage_error(sources):
    assert "unknown architecture 'hopper'" in run("--arch", "hopper").stderr
    assert "unknown architecture 'sm_75'" in run("--arch", "sm_80,sm_75").stderr
    assert "no CUDA kernels of nonsense" in run("--arch", "sm_80", "--op", "nonsense").stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's own architecture is the default")
def test_without_a_gpu_the_architecture_must_be_named(sources):
    result = run()
    assert result.exit_code == 2
    assert "name the architectures, for example --arch sm_90a" in result.stderr


def test_the_report_is_a_table_of_resources(sources, tmp_path):
    path = tmp_path / "RESOURCES.md"
    assert run("--arch", "sm_90a", "--op", "scale", "--report", path).exit_code == 0
    rows = [line.split(" | ") for line in path.read_text().splitlines() if line.startswith("| `")]
    assert [row[1] for row in rows] == ["SCALAR=bfloat16", "SCALAR=float", "SCALAR=float16"]
    for row in rows:
        kernel, _, arch, threads, registers, spills, shared, share, matrix = row
        assert (kernel, arch, threads, spills, shared, matrix) == (
            "| `scale_kernel`",
            "sm_90a",
            "128",
            "0",
            "2048",
            "- |",
        )
        assert 8 <= int(registers) <= 64
        assert share == "100%"  # 16 blocks of 4 warps
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_machine_code_is_read_right(sources, arch):
    """Spills, matrix instructions, shared memory and the width of accesses are seen where they are, and only there."""
    pytest.importorskip("triton")

    def read(source, **macros):
        (code,) = sass.read_cubin(nvrtc.compile_build(build(source, **macros), arch).cubin).values()
        return code

    scale, spilling, product = read("scale", SCALAR=torch.float16), read("spilling"), read("product")
    assert (scale.spills, scale.matrix, scale.shared_bytes) == (0, [], 0)
    assert (scale.load_bits, scale.store_bits) == (128, 128)
    assert spilling.spills > 0
    assert spilling.registers <= 64
    assert product.matrix == ["HMMA.16816.F32.BF16"]
    assert product.shared_bytes == 32 * 4 * 4
    assert product.spills == 0


def test_occupancy_is_bound_by_whichever_resource_ends_first():
    def blocks(registers, block, shared_bytes, declared=0, arch=90):
        return resources.blocks_per_multiprocessor(arch, sass.KernelCode(registers, declared, ()), block, shared_bytes)

    assert blocks(32, 32, 0) == 32  # as many blocks as there can be
    assert blocks(32, 256, 0) == 8  # 64 warps
    assert blocks(255, 128, 0) == 2  # 65536 registers, 256 for each of 128 threads
    assert blocks(33, 128, 0) == 12  # registers come in eights
    assert blocks(32, 128, 227 * 1024) == 1
    assert blocks(32, 128, 100 * 1024) == 2
    assert blocks(32, 128, 100 * 1024, declared=32 * 1024) == 1
    assert blocks(32, 128, 227 * 1024, arch=80) == 0
    assert blocks(255, 512, 0) == 0
    assert resources.occupancy(90, sass.KernelCode(255, 0, ()), 128, 0) == 2 * 4 / 64


def test_types_of_arguments_are_noted_for_the_test_of_signatures():
    def call(tensor):
        machine = machine_of(tensor(1))
        map_ = machine.tensor_map(tensor(64, 64), (64, 64), 128)
        machine.launch(build("scale"), "mapped_kernel", 1, 32, (map_, None, True))

    (launch, *_) = precompile.record(call, 90, (torch.float32,))
    assert launch.argument_types == (TensorMap, type(None), bool)
