"""NVRTC and the folder of compiled kernels: what is compiled, kept, found again, and what a failure says."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bigkern.cuda import cubins, driver, nvrtc, source_files
from bigkern.cuda.machine import arch_name, build
from tests.cuda_sources import SCALE, use_folder

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" and nvrtc.unavailable() is not None, reason="libnvrtc is tested on Linux"
)
ELF = b"\x7fELF"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The folder of the CUDA sources, with scale.cu; the cache is empty."""
    folder = tmp_path / "sources"
    folder.mkdir()
    use_folder(folder, monkeypatch, scale=SCALE)
    monkeypatch.setenv("BIGKERN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("BIGKERN_CUBINS", raising=False)
    yield folder
    source_files.read.cache_clear()
    source_files.with_headers.cache_clear()


def edit(path, before, after):
    path.write_text(path.read_text().replace(before, after))
    source_files.read.cache_clear()
    source_files.with_headers.cache_clear()


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*.cubin"))


def test_a_kernel_compiles_for_every_architecture_without_warnings(sources):
    for arch in ("sm_80", "sm_90a", "sm_100a"):
        compiled = nvrtc.compile_build(build("scale", SCALAR=torch.bfloat16), arch)
        assert compiled.cubin.startswith(ELF)
        assert b"scale_kernel" in compiled.cubin
        assert compiled.log == ""


def test_names_of_architectures():
    assert [arch_name(arch) for arch in (80, 86, 90, 100, 120)] == ["sm_80", "sm_86", "sm_90a", "sm_100a", "sm_120a"]
    assert {80, 90, 100} <= set(nvrtc.architectures())


def test_an_error_holds_the_build_and_the_compilers_log(sources):
    edit(sources / "scale.cu", "SCALAR* output", "Scalar* output")
    with pytest.raises(nvrtc.CompileError) as caught:
        nvrtc.compile_build(build("scale", SCALAR=torch.float16), "sm_80")
    assert "cuda: scale SCALAR=float16 does not compile for sm_80 with NVRTC" in str(caught.value)
    assert 'scale.cu(6): error: identifier "Scalar" is undefined' in str(caught.value)


def test_an_unknown_architecture_is_an_error(sources):
    with pytest.raises(nvrtc.CompileError, match="scale does not compile for sm_17"):
        nvrtc.compile_build(build("scale"), "sm_17")


def test_a_cubin_is_kept_and_found_again(sources, tmp_path, capfd, monkeypatch):
    first = cubins.load(build("scale"), "sm_80")
    assert capfd.readouterr().err == "bigkern: compiling scale for sm_80\n"
    monkeypatch.setattr(nvrtc, "compile_build", lambda *_: pytest.fail("compiled again"))
    assert cubins.load(build("scale"), "sm_80") == first
    assert capfd.readouterr().err == ""
    assert len(kept(tmp_path)) == 1


def test_anything_that_changes_the_result_changes_the_name(sources):
    names = [cubins.file_name(build("scale"))]
    names.append(cubins.file_name(build("scale", SCALAR=torch.float16)))
    edit(sources / "ptx.cuh", "#pragma once", "#pragma once  // changed")  # included by what scale.cu includes
    names.append(cubins.file_name(build("scale")))
    edit(sources / "scale.cu", "factor)", "factor + 1)")
    names.append(cubins.file_name(build("scale")))
    edit(sources / "warpgroup.cuh", "#pragma once", "#pragma once  // changed")  # not included
    assert cubins.file_name(build("scale")) == names[-1]
    assert len(set(names)) == 4
    assert all(name.startswith("scale-") for name in names)


def test_other_architectures_and_compilers_have_their_own_files(sources, tmp_path, monkeypatch):
    for arch in ("sm_80", "sm_90a"):
        cubins.load(build("scale"), arch)
    monkeypatch.setattr(nvrtc, "version", lambda: "99.0")
    assert cubins.find(build("scale"), "sm_80") is None
    cubins.load(build("scale"), "sm_80")
    assert len(kept(tmp_path)) == 3


def test_nothing_is_said_where_quiet_is_asked_for(sources, capfd, monkeypatch):
    monkeypatch.setenv("BIGKERN_QUIET", "1")
    cubins.load(build("scale"), "sm_80")
    assert capfd.readouterr().err == ""


def test_prebuilt_cubins_come_first_and_need_no_compiler(sources, tmp_path, monkeypatch):
    cubins.load(build("scale"), "sm_80")
    mine = tmp_path / "mine" / "sm_80" / cubins.file_name(build("scale"))
    cubins.write(mine, ELF + b"mine")
    cubins.write(tmp_path / "cache/prebuilt/sm_80" / mine.name, ELF + b"prebuilt")
    monkeypatch.setattr(nvrtc, "unavailable", lambda: "no libnvrtc")
    assert cubins.load(build("scale"), "sm_80") == ELF + b"prebuilt"
    monkeypatch.setenv("BIGKERN_CUBINS", str(tmp_path / "mine"))
    assert cubins.load(build("scale"), "sm_80") == ELF + b"mine"
    assert driver.architecture_unavailable(80) is None
    assert (
        "no prebuilt cubins for sm_90a, and nothing to compile them with: no libnvrtc"
        in driver.architecture_unavailable(90)
    )
    with pytest.raises(RuntimeError, match="cuda: no prebuilt cubin of scale SCALAR=float16 for sm_80, and nothing to"):
        cubins.load(build("scale", SCALAR=torch.float16), "sm_80")


def test_architectures_that_cannot_run_the_kernels_say_why():
    assert "need compute capability 8.0, this device has 7.5" in driver.architecture_unavailable(75)
    assert f"NVRTC {nvrtc.version()} cannot compile for sm_990a" in driver.architecture_unavailable(990)
    assert driver.architecture_unavailable(90) is None


def test_a_cache_folder_that_is_a_file_is_said_and_survived(sources, tmp_path, capfd):
    (tmp_path / "cache").write_text("")
    assert cubins.load(build("scale"), "sm_80").startswith(ELF)
    assert "compiled kernels cannot be kept for the next process" in capfd.readouterr().err


def test_a_failed_write_leaves_nothing_behind(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        cubins.write(tmp_path / "there" / "x.cubin", b"x")
    assert list((tmp_path / "there").iterdir()) == []


def test_processes_and_threads_that_start_together_compile_once(sources, tmp_path):
    code = f"""
import sys, threading
from pathlib import Path
from bigkern.cuda import cubins, source_files
from bigkern.cuda.machine import build
source_files.FOLDER = Path({str(sources)!r})
print("ready", flush=True)
sys.stdin.readline()
results = []
threads = [threading.Thread(target=lambda: results.append(cubins.load(build("scale"), "sm_90a"))) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import hashlib
print([hashlib.sha256(result).hexdigest() for result in results])
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    processes = [subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(len(processes)) as pool:
        answers = list(pool.map(lambda process: process.communicate("go\n", timeout=120), processes))
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert len({stdout for stdout, _ in answers}) == 1
    digests = answers[0][0]
    assert digests.count("'") == 4
    assert sum(stderr.count("compiling scale for sm_90a") for _, stderr in answers) == 1
    assert len(kept(tmp_path)) == 1
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_one_process_may_compile_several_builds_at_once(sources, tmp_path):
    builds = [build("scale", SCALAR=dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    threads = [threading.Thread(target=cubins.load, args=(one, "sm_80")) for one in builds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept(tmp_path)) == 3
