"""The C++ module as a guest in somebody's process: instruction sets, threads, forks, and life without torch."""

import json
import os
import subprocess
import sys
import threading
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

import bigkern
from bigkern import _C
from bigkern.backends import cpu
from tests.support import run_python

ROOT = Path(__file__).parent.parent


def test_the_lowest_and_the_best_instruction_set_of_this_machine_are_built():
    features = _C.cpu_features()
    runnable = [name for name, needed in _C.REQUIRED_FEATURES.items() if features.issuperset(needed)]
    assert runnable[0] == "baseline"
    built = _C.supported_instruction_sets()
    assert (built[0], built[-1]) == (runnable[0], runnable[-1])


def test_environment_variable_forces_an_instruction_set():
    code = "from bigkern.backends import cpu; print(cpu.module().__name__)"
    assert run_python(code, BIGKERN_CPU_ISA="baseline") == "bigkern._C.baseline"
    assert run_python(code, BIGKERN_CPU_ISA="") == f"bigkern._C.{_C.supported_instruction_sets()[-1]}"


def test_unknown_instruction_set_is_an_error():
    with pytest.raises(ImportError, match="unknown instruction set 'sse9'; one of baseline, avx2, avx512"):
        _C.load("sse9")


def test_numpy_arrays_without_torch():
    """The module loads and computes in a process that has no torch at all."""
    code = """
import sys
sys.modules["torch"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)
import numpy as np
import bigkern
from bigkern import _C
module = _C.best()
x = np.random.default_rng(0).standard_normal((1, 64, 5000)).astype(np.float32)[:, ::2]
q, scale, none = np.empty(x.shape, np.int8), np.empty(32, np.float32), np.empty(0, np.int32)
module.quantize_forward(x, True, q, scale, none)
assert np.abs(q * scale[:, None] - x).max() <= scale.max() * 0.501
try:
    bigkern.quantize
except ImportError as error:
    print(error)
"""
    message = "bigkern.quantize needs PyTorch 2.10 or later, which is not installed: pip install torch"
    assert run_python(code) == message


def test_old_torch_without_the_dlpack_exchange_table_is_read_by_methods():
    class OldTensor:
        """What torch.Tensor looked like before 2.10."""

        def __init__(self, tensor):
            self.tensor = tensor

        def __getattr__(self, name):
            return getattr(self.tensor, name)

    x = torch.randn(1, 6, 40)[:, ::2, 1::3]
    q, scale, none = torch.empty(x.shape, dtype=torch.int8), torch.empty(3), torch.empty(0, dtype=torch.int32)
    cpu.module().quantize_forward(OldTensor(x), True, OldTensor(q), OldTensor(scale), OldTensor(none))
    assert torch.equal(q, bigkern.quantize(x.contiguous(), axis=1)[0])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("text", TypeError, "expected a torch.Tensor or numpy.ndarray, got str"),
        (torch.zeros(1, 2, 3, dtype=torch.complex64), TypeError, "a tensor has a dtype that no kernel takes"),
        (torch.zeros((1,) * 9), ValueError, "a tensor has 9 dimensions; at most 8 are supported"),
        (np.zeros((1, 2, 3), np.complex64), TypeError, "no kernel takes dtype complex64"),
    ],
)
def test_wrong_objects_are_python_errors(value, error, message):
    out = torch.empty(1)
    with pytest.raises(error, match=message):
        cpu.module().quantize_forward(value, True, out, out, out)


def test_gil_is_released_while_a_kernel_runs():
    """Another Python thread makes progress during one long kernel call."""
    module = cpu.module()
    x = torch.randn(1, 1, 1 << 25)
    q, scale, none = torch.empty(x.shape, dtype=torch.int8), torch.empty(1), torch.empty(0, dtype=torch.int32)
    ticks, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            ticks[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    interval = sys.getswitchinterval()
    # With the GIL held, the counter could not run before the call ends.
    sys.setswitchinterval(1e-5)
    try:
        before = ticks[0]
        module.quantize_forward(x, True, q, scale, none)
        during = ticks[0] - before
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert during > 1000


def test_several_python_threads_at_once():
    inputs = [torch.randn(200, 301) for _ in range(8)]
    expected = [bigkern.quantize(x, axis=0)[0] for x in inputs]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.equal(bigkern.quantize(inputs[i], axis=0)[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_computes():
    """A child of a process whose thread pool has been used must not wait for threads that it does not have."""
    code = """
import os, signal
import numpy as np
from bigkern.backends import cpu
from tests.support import run_python
def quantized():
    q = np.empty(x.shape, np.int8)
    cpu.module().quantize_forward(x, True, q, np.empty(2000, np.float32), np.empty(0, np.int32))
    return q
x = np.random.default_rng(0).standard_normal((1, 2000, 1000)).astype(np.float32)
expected = quantized()
child = os.fork()
if child == 0:
    signal.alarm(30)  # a child that hangs dies with status 14
    os._exit(0 if np.array_equal(quantized(), expected) else 1)
print(os.waitpid(child, 0)[1])
"""
    assert run_python(code) == "0"


def test_one_openmp_pool_with_torch():
    """torch.set_num_threads holds for the kernels, and the process has one OpenMP runtime."""
    code = """
import torch, bigkern
x = torch.randn(4000, 4000)
bigkern.quantize(x, axis=0)
(x + 1).sum()
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libomp" in line}
threads = len(__import__("os").listdir("/proc/self/task"))
print(len(runtimes), threads)
"""
    runtimes, threads = run_python(code, OMP_NUM_THREADS="2").split()
    assert runtimes == "1"
    single = run_python(
        code.replace("import torch, bigkern", "import torch, bigkern; torch.set_num_threads(1)"), OMP_NUM_THREADS="2"
    )
    assert int(single.split()[1]) < int(threads)


@pytest.mark.slow
def test_install_without_a_compiler_succeeds_and_says_so(tmp_path):
    """pip install works with no C++ compiler; the cpu backend is then missing, with its reason."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    environment = {**os.environ, "CXX": "/nonexistent/c++", "CC": "/nonexistent/cc"}
    source = tmp_path / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([python, "-m", "pip", "install", "-q", str(source)], env=environment, check=True, timeout=280)
    result = subprocess.run(
        [python, "-c", "import bigkern._C as c; c.best()"], capture_output=True, text=True, cwd=tmp_path
    )
    assert "the C++ module was not built when bigkern was installed" in result.stderr
    assert json.loads(next(folder.rglob("bigkern/_C/build.json")).read_text())["error"]
    # The CUDA sources, which are compiled where they run, are installed with it.
    installed = {path.name for path in folder.rglob("bigkern/cuda/sources/*.cu*")}
    assert installed == {path.name for path in (ROOT / "csrc/cuda").glob("*.cu*")}


def test_missing_module_is_reported_as_a_reason(monkeypatch):
    monkeypatch.setattr(_C, "supported_instruction_sets", lambda: [])
    monkeypatch.setattr(cpu, "_module", None)
    cpu.unavailable.cache_clear()
    try:
        assert "C++" in cpu.unavailable()
        decision = bigkern.explain(bigkern.quantize, torch.randn(3))[0]
        assert decision.chosen == "torch"
        assert "C++" in decision.reasons["cpu"]
    finally:
        cpu.unavailable.cache_clear()
