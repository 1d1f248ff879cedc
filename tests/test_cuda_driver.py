"""Launching through the driver's interface, on a libcuda of the tests' own that notes what it is asked."""

import ctypes
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from bigkern.backends import cuda
from bigkern.cuda import cubins, driver, libcuda
from bigkern.cuda.arguments import Signature
from bigkern.cuda.machine import Addresses, Recorder, TensorMap, build, machine_of, use_machine

STREAM = 0xABC0
COMPILER = os.environ.get("CC", "cc").split()


def cuda_include():
    """A folder with cuda.h: of a toolkit, or of the package nvidia-cuda-runtime."""
    nvcc = shutil.which("nvcc")
    toolkits = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", str(Path(nvcc).parents[1]) if nvcc else ""]
    spec = __import__("importlib.util").util.find_spec("nvidia")
    packaged = (
        [path for root in spec.submodule_search_locations for path in Path(root).glob("*/include")] if spec else []
    )
    for folder in [*(Path(toolkit) / "include" for toolkit in toolkits if toolkit), *packaged]:
        if (folder / "cuda.h").exists():
            return folder
    pytest.skip("no cuda.h to compile the stand-in for libcuda against: pip install nvidia-cuda-runtime")


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    """The stand-in for libcuda, as (Driver, the library)."""
    path = tmp_path_factory.mktemp("standin") / "libcuda.so"
    source = Path(__file__).parent / "cuda_driver_standin.c"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{cuda_include()}", "-pthread"]
    subprocess.run([*COMPILER, *flags, "-o", path, source], check=True)
    loaded = libcuda.Driver(str(path))
    loaded.library.standin_log.restype = ctypes.c_char_p
    return loaded


@pytest.fixture
def device(standin, monkeypatch):
    """A device of the stand-in, whose tensors are those on the CPU; device 0 is current."""
    monkeypatch.setattr(cubins, "load", lambda build, arch: b"\x7fELF " + f"{build} {arch}".encode())
    standin.library.standin_fail(b"", 0)
    standin.library.standin_set_capturing(0)
    standin.library.standin_make_current(0)
    device = driver.Device(0, standin, lambda index: STREAM + index)
    device.index = torch.zeros(1).get_device()
    standin.library.standin_clear()
    return device


def log_of(device):
    return device._driver.library.standin_log().decode().splitlines()


def launched(device):
    """{field: text} of each launch in the log."""
    lines = [line.split() for line in log_of(device) if line.startswith("cuLaunchKernelEx")]
    return [
        {
            **{"kernel": words[1], "grid": " ".join(words[3:6]), "block": words[7], "shared": words[9]},
            **{"stream": words[11], "arguments": bytes.fromhex(words[13])},
        }
        for words in lines
    ]


def test_properties_are_the_drivers(standin):
    device = driver.Device(1, standin, lambda index: 0)
    assert (device.arch, device.num_multiprocessors, device.shared_memory) == (90, 132, 227 * 1024)
    assert device.has_warpgroups
    assert standin.version() == "13.1"
    assert "cuDevicePrimaryCtxRetain 1" in log_of(device)


def test_a_launch_passes_sizes_stream_and_arguments_as_c_lays_them_out(device):
    class Arguments(ctypes.Structure):
        _fields_ = (
            *(("map", ctypes.c_ubyte * 128), ("input", ctypes.c_void_p), ("scale", ctypes.c_float)),
            *(("output", ctypes.c_void_p), ("first", ctypes.c_float), ("second", ctypes.c_float)),
            *(("count", ctypes.c_int64), ("flag", ctypes.c_int64), ("last", ctypes.c_float)),
        )

    tensor = torch.zeros(8)
    map_ = TensorMap(bytes(range(128)), tensor)
    args = (map_, tensor, 0.5, None, 1.5, -2.5, -(2**40), True, 7.0)
    device.launch(build("copy", N=1), "copy_kernel", (3, 5), 128, args, 1000)
    (launch,) = launched(device)
    assert launch["kernel"] == "copy_kernel"
    assert (launch["grid"], launch["block"], launch["shared"]) == ("3 5 1", "128", "1000")
    assert int(launch["stream"], 16) == STREAM + device.index
    assert len(launch["arguments"]) == Arguments.last.offset + 4
    got = Arguments.from_buffer_copy(launch["arguments"].ljust(ctypes.sizeof(Arguments)))
    assert bytes(got.map) == map_.opaque
    assert (got.input, got.output) == (tensor.data_ptr(), None)
    assert (got.scale, got.first, got.second, got.last) == (0.5, 1.5, -2.5, 7.0)
    assert (got.count, got.flag) == (-(2**40), 1)


def test_many_addresses_are_one_pointer(device):
    tensors, table = (torch.zeros(3), torch.zeros(4)), torch.zeros(2, dtype=torch.int64)
    device.launch(build("copy"), "copy_kernel", 1, 32, (Addresses(tensors, table), 5))
    (launch,) = launched(device)
    assert launch["arguments"] == table.data_ptr().to_bytes(8, "little") + (5).to_bytes(8, "little")
    elsewhere = Addresses(tensors, table.to("meta"))
    device.index = 0
    with pytest.raises(ValueError, match="argument 0 is on meta"):
        device.launch(build("copy"), "copy_kernel", 1, 32, (elsewhere, 5))


def test_a_build_is_loaded_once_and_a_kernel_looked_up_once(device):
    first = build("copy", SCALAR=torch.float32)
    for kernel in ("a_kernel", "a_kernel", "b_kernel"):
        device.launch(first, kernel, 1, 32, (torch.zeros(1), 1))
    device.launch(build("copy", SCALAR=torch.float16), "a_kernel", (1, 2, 3), 32, (torch.zeros(1), 1))
    calls = [line.split()[0] for line in log_of(device)]
    assert calls.count("cuModuleLoadData") == 2
    assert calls.count("cuModuleGetFunction") == 3
    assert [launch["grid"] for launch in launched(device)] == ["1 1 1"] * 3 + ["1 2 3"]


def test_shared_memory_beyond_the_default_is_asked_for_once(device):
    def launch(kernel, shared_bytes):
        device.launch(build("copy"), kernel, 1, 32, (1,), shared_bytes)

    for shared_bytes in (48 * 1024, 100 * 1024, 90 * 1024, 227 * 1024):
        launch("a_kernel", shared_bytes)
    asked = [line for line in log_of(device) if line.startswith("cuFuncSetAttribute")]
    assert asked == ["cuFuncSetAttribute a_kernel 102400", "cuFuncSetAttribute a_kernel 232448"]
    launch("static_kernel", 48 * 1024)  # what it declares itself counts too
    assert log_of(device)[-3] == "cuFuncSetAttribute static_kernel 49152"
    with pytest.raises(
        ValueError, match="static_kernel of copy asks for 232449 bytes of shared memory, a block has 232448"
    ):
        launch("static_kernel", 227 * 1024 + 1)


@pytest.mark.parametrize("current", [-1, 1])
def test_a_thread_with_another_context_or_none_launches_in_the_tensors_own(device, current):
    device.launch(build("copy"), "a_kernel", 1, 32, (1,))
    device._driver.library.standin_make_current(current)
    device._driver.library.standin_clear()
    device.launch(build("copy"), "a_kernel", 1, 32, (2,))
    calls = [line.split()[0] for line in log_of(device)]
    assert calls == ["cuCtxPushCurrent", "cuLaunchKernelEx", "cuCtxPopCurrent"]
    assert device._driver.library.standin_depth() == 0


def test_a_launch_in_the_right_context_makes_no_other_call(device):
    device.launch(build("copy"), "a_kernel", 1, 32, (1,))
    device._driver.library.standin_clear()
    device.launch(build("copy"), "a_kernel", 1, 32, (1,))
    assert [line.split()[0] for line in log_of(device)] == ["cuLaunchKernelEx"]


def test_a_first_launch_may_be_captured_in_a_graph(device):
    device._driver.library.standin_set_capturing(1)
    device.launch(build("copy"), "a_kernel", 1, 32, (1,))
    assert len(launched(device)) == 1


@pytest.mark.parametrize(
    "call", ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernelEx", "cuCtxPushCurrent"]
)
def test_every_failing_call_is_an_error_that_names_it(device, call):
    device._driver.library.standin_fail(call.encode(), 1)
    with pytest.raises(libcuda.DriverError, match=rf"cuda: {call}(_v2)? failed with CUDA_ERROR_INVALID_VALUE: invalid"):
        device.launch(build("copy", N=2), "a_kernel", 1, 32, (1,), 50000)
    device._driver.library.standin_fail(b"", 0)
    device._driver.library.standin_clear()
    device.launch(build("copy", N=2), "a_kernel", 1, 32, (1,), 50000)
    assert len(launched(device)) == 1  # nothing is left half done


def test_a_failed_launch_says_what_was_launched(device):
    text = "a_kernel of copy N=2, grid 0x1x1, block 32, 0 bytes of shared memory"
    with pytest.raises(libcuda.DriverError, match=text):
        device.launch(build("copy", N=2), "a_kernel", 0, 32, (1,))
    with pytest.raises(
        libcuda.DriverError, match=r"cuModuleGetFunction failed with 500: 500 \(missing_kernel of copy N=2"
    ):
        device.launch(build("copy", N=2), "missing_kernel", 1, 32, (1,))


def test_arguments_that_no_kernel_takes_are_refused(device):
    tensor = torch.zeros(1)
    with pytest.raises(TypeError, match="argument 1 is a str, which no kernel takes"):
        device.launch(build("copy"), "a_kernel", 1, 32, (1, "one"))
    for types in ((int, TensorMap), (TensorMap, int, TensorMap)):
        with pytest.raises(TypeError, match="TensorMap arguments must come"):
            Signature(types)
    device.index = 0
    with pytest.raises(ValueError, match="a_kernel: argument 1 is on cpu, the first on cuda:0"):
        device.launch(build("copy"), "a_kernel", 1, 32, (None, tensor))
    assert launched(device) == []


def test_threads_launch_side_by_side_without_mixing_their_arguments(device):
    def work(thread):
        for i in range(100):
            device.launch(build("copy"), "a_kernel", thread + 1, 32, (thread, i, *[thread] * 6))

    def in_context(thread):
        device._driver.library.standin_make_current(0)
        work(thread)

    threads = [threading.Thread(target=in_context, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    launches = launched(device)
    numbers = [
        [int.from_bytes(launch["arguments"][i : i + 8], "little") for i in range(0, 64, 8)] for launch in launches
    ]
    assert sorted(row[:2] for row in numbers) == [[thread, i] for thread in range(4) for i in range(100)]
    for launch, row in zip(launches, numbers, strict=True):
        assert set(row[2:]) == {row[0]}
        assert launch["grid"] == f"{row[0] + 1} 1 1"
    assert sum(line.startswith("cuModuleLoadData") for line in log_of(device)) == 1


def test_a_tensor_map_describes_dimensions_from_the_contiguous_one(device):
    tensor = torch.zeros(4, 6, 80, dtype=torch.bfloat16)[:, 1:4, 16:80]
    map_ = device.tensor_map(tensor, (1, 2, 64), 128)
    assert map_.opaque == b"\xa5" * 128
    assert map_.tensor is tensor
    described = "type 9 size:stride:box 64:0:64 3:160:2 4:960:1 interleave 0 swizzle 3 promotion 3 fill 0"
    assert log_of(device) == [f"cuTensorMapEncodeTiled {described}"]
    assert device.tensor_map(tensor.clone()[:], (1, 2, 64), 128).opaque == map_.opaque
    device.tensor_map(tensor[:], (1, 2, 64), 128)
    assert len(log_of(device)) == 2  # the same address and layout is not described again
    for box, swizzle_bytes, number in (((1, 1, 32), 64, 2), ((1, 1, 16), 32, 1), ((1, 1, 16), 0, 0)):
        device.tensor_map(tensor, box, swizzle_bytes)
        assert f"swizzle {number} " in log_of(device)[-1]
    with pytest.raises(libcuda.DriverError, match=r"cuTensorMapEncodeTiled failed .*box \(1, 1, 512\), swizzle 0"):
        device.tensor_map(tensor, (1, 1, 512), 0)


def test_data_types_of_tensor_maps_are_those_of_cuda_h():
    header = (cuda_include() / "cuda.h").read_text()
    names = header.partition("typedef enum CUtensorMapDataType_enum {")[2].partition("}")[0]
    order = [name.split("=")[0].strip().removeprefix("CU_TENSOR_MAP_DATA_TYPE_") for name in names.split(",")]
    for dtype, number in driver.TENSOR_MAP_TYPES.items():
        assert order[number] == str(dtype).removeprefix("torch.").upper().replace("INT8", "UINT8").replace(
            "UUINT", "UINT"
        )


def test_tensors_that_are_not_on_a_gpu_are_refused():
    with pytest.raises(ValueError, match="the kernels take tensors on a CUDA device, got one on cpu"):
        machine_of(torch.zeros(1))


def test_the_backend_is_there_wherever_a_machine_is_substituted():
    before = cuda.unavailable()
    assert (before is None) == torch.cuda.is_available()
    with use_machine(Recorder(90)):
        assert cuda.unavailable() is None
    assert cuda.unavailable() == before
