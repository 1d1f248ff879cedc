"""The house rule: one op, one name, one signature, and the same file in every folder."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import bigkern
from bigkern.registration import KERNELS

ROOT = Path(__file__).parent.parent
OPS = sorted(path.stem for path in (ROOT / "bigkern/ops").glob("*.py") if path.stem != "__init__")
MIRRORS = (
    "bigkern/ops/{}.py",
    "bigkern/reference/{}.py",
    "csrc/cpu/{}.cpp",
    "kernels/{}.py",
    "tests/test_{}.py",
    "benchmarks/bench_{}.py",
)
TOP_LEVEL = {"kernels", "csrc", "bigkern", "benchmarks", "tests", "setup.py", "README.md"}


def schema_names(kernel):
    """(argument names that a kernel is launched with, output names) from the operator's schema."""
    arguments, outputs = kernel.schema.split("->")
    names = [part.split()[-1].split("=")[0] for part in arguments.partition("(")[2].rstrip(") ").split(",")]
    types = [part.split()[0] for part in arguments.partition("(")[2].split(",")]
    launched = [name for name, type_ in zip(names, types, strict=True) if type_ != "ScalarType"]
    return launched, re.findall(r"Tensor (\w+)", outputs)


def cpp_parameters(name):
    header = (ROOT / "csrc/cpu/kernels.h").read_text()
    match = re.search(rf"void {name}\((.*?)\);", header, re.DOTALL)
    assert match, f"csrc/cpu/kernels.h does not declare {name}"
    return [part.split()[-1].lstrip("&*") for part in match.group(1).split(",")]


def launcher_parameters(folder, kernel):
    for path in sorted((ROOT / folder).glob(f"{kernel.module}*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == kernel.name:
                return [argument.arg for argument in node.args.args]
    pytest.fail(f"{folder}/{kernel.module}.py has no launcher {kernel.name}")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("mirror", MIRRORS)
def test_every_op_has_its_file_in_every_folder(op, mirror):
    assert (ROOT / mirror.format(op)).exists()


def test_an_op_with_cuda_kernels_has_them_in_its_files():
    for kernel in KERNELS.values():
        if "cuda" in kernel.supports:
            assert (ROOT / f"csrc/cuda/{kernel.module}.cu").exists()
            assert (ROOT / f"bigkern/cuda/{kernel.module}.py").exists()


def test_no_file_is_left_without_its_op():
    kernels = {kernel.module for kernel in KERNELS.values()}
    assert kernels == set(OPS)
    for folder in ("bigkern/reference", "benchmarks"):
        named = {path.stem.removeprefix("bench_") for path in (ROOT / folder).glob("bench_*.py")} - {
            "mixed",
            "overhead",
            "mlp",
        }
        assert named <= set(OPS)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_signatures_agree_in_every_folder(name):
    kernel = KERNELS[name]
    arguments, outputs = schema_names(kernel)
    if "cpu" in kernel.supports:
        cpp = cpp_parameters(name)
        assert cpp[: len(arguments)] == arguments
        assert len(cpp) - len(arguments) == len(kernel.op._schema.returns)
        assert not outputs or cpp[len(arguments) :] == outputs
    for backend, folder in (("triton", "kernels"), ("cuda", "bigkern/cuda")):
        if backend in kernel.supports:
            launcher = launcher_parameters(folder, kernel)
            assert launcher[: len(arguments)] == arguments
            assert len(launcher) - len(arguments) == len(kernel.op._schema.returns)
            assert not outputs or launcher[len(arguments) :] == outputs
    module = __import__(f"bigkern.reference.{kernel.module}", fromlist=[name])
    assert list(inspect.signature(getattr(module, name)).parameters) == arguments


@pytest.mark.parametrize("name", sorted(name for name in KERNELS if "[]" in KERNELS[name].schema))
def test_lists_are_lists_in_every_folder(name):
    kernel = KERNELS[name]
    lists = [argument.name for argument in kernel.op._schema.arguments if "List" in str(argument.type)]
    header = (ROOT / "csrc/cpu/kernels.h").read_text()
    declared = re.search(rf"void {name}\((.*?)\);", header, re.DOTALL).group(1)
    assert re.findall(r"const TensorList& (\w+)", declared) == lists


@pytest.mark.parametrize("name", sorted(name for name in KERNELS if KERNELS[name].mutated))
def test_what_works_in_place_returns_nothing_and_has_no_derivative(name):
    kernel = KERNELS[name]
    assert not kernel.op._schema.returns
    assert not kernel._differentiable
    assert name.endswith("_step")


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_outputs_do_not_depend_on_flags(name):
    """Every kernel returns as many tensors as its schema says: none of them is optional."""
    assert "?" not in KERNELS[name].schema.split("->")[1]


def test_public_ops_are_public():
    for op in OPS:
        assert op in bigkern.__all__
        assert getattr(bigkern, op).__doc__


def test_readme_has_a_row_for_every_op():
    table = re.search(r"<!-- ops:begin -->(.*?)<!-- ops:end -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert table, "README.md has no table of ops"
    for op in OPS:
        assert f"`{op}`" in table.group(1)


def test_top_level_folders_are_there():
    assert {path.name for path in ROOT.iterdir()} >= TOP_LEVEL
