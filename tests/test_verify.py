import json

import pytest
import torch
from click.testing import CliRunner

from bigkern import cli, registration, verify
from bigkern.backends import BACKENDS, cpu
from bigkern.verify_cases import CASES, OPS


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.main, ["verify", *arguments], env={"COLUMNS": "100"})


@pytest.fixture
def spoil(monkeypatch):
    """spoil(change) makes the cpu backend pass each result of a kernel through `change(kernel, outputs)`."""

    def install(change):
        honest = cpu.run

        def dishonest(kernel, args):
            outputs = honest(kernel, args)
            change(kernel, outputs)
            return outputs

        monkeypatch.setattr(cpu, "run", dishonest)

    return install


@pytest.mark.parametrize("op", OPS)
def test_every_op_passes_on_this_machine(run, op):
    result = run("--op", op, "--backend", "cpu", "--backend", "torch", "--json")
    rows = json.loads(result.stdout)
    assert result.exit_code == 0, [row for row in rows if row["status"] == "fail"]
    assert {row["backend"] for row in rows} == {"cpu", "torch"}
    assert {row["dtype"] for row in rows} == {"float32", "float16", "bfloat16", "float64"}
    assert {row["case"] for row in rows} == {case.name for case in CASES if case.op == op}


def test_gradients_are_checked():
    for case in CASES:
        if case.gradients and case.op != "quantize":
            rows = list(
                verify.compare(
                    case,
                    verify.Row(case.op, case.name, "float32", "torch", "cpu"),
                    verify.expectations(case, torch.float32, "cpu"),
                )
            )
            assert {row.what for row in rows} == {"output", *(f"grad_{name}" for name in case.gradients)}


def test_a_slightly_wrong_kernel_is_caught(run, spoil):
    def change(kernel, outputs):
        if kernel.name == "quantize_forward":
            outputs[1].mul_(1 + 1e-5)  # the scale

    spoil(change)
    result = run("--op", "quantize", "--backend", "cpu")
    assert result.exit_code == 1
    assert "FAIL quantize [per row] float32 cpu" in result.stdout


def test_truncating_in_place_of_rounding_is_caught(run, spoil):
    def change(kernel, outputs):
        if kernel.name == "quantize_forward":
            outputs[0].sub_(outputs[0] > 0)

    spoil(change)
    assert run("--op", "quantize", "--backend", "cpu").exit_code == 1


def test_an_element_that_is_not_written_is_caught(run, spoil):
    spoil(
        lambda kernel, outputs: outputs[0].view(-1)[:1].fill_(float("nan") if outputs[0].is_floating_point() else -77)
    )
    result = run("--op", "quantize", "--backend", "cpu", "--json")
    failed = [row for row in json.loads(result.stdout) if row["status"] == "fail"]
    assert result.exit_code == 1
    assert "inf" in {row["error"] for row in failed}


def test_a_kernel_that_raises_fails_with_its_message(run, spoil):
    def change(kernel, outputs):
        raise RuntimeError("tile [8] is not there")

    spoil(change)
    result = run("--op", "quantize", "--backend", "cpu")
    assert result.exit_code == 1
    assert "RuntimeError: tile [8] is not there" in result.stdout
    assert "torch" not in {row.backend for row in verify.verify(["quantize"], [("cpu", "cpu")])}


def test_a_declined_call_is_reported_and_is_no_failure(monkeypatch, run):
    from bigkern.ops.quantize import quantize_forward

    refuse = lambda input, symmetric: "too odd" if input.dtype == torch.float64 else None  # noqa: E731
    monkeypatch.setitem(quantize_forward.supports, "cpu", refuse)
    result = run("--op", "quantize", "--backend", "cpu")
    assert result.exit_code == 0
    assert "quantize on cpu: 5 cases not run: too odd" in result.stdout


def test_outputs_are_poisoned_only_during_the_check(monkeypatch):
    monkeypatch.setattr(registration, "POISON_OUTPUTS", False)
    with verify.poisoned_outputs():
        assert registration.POISON_OUTPUTS
    assert not registration.POISON_OUTPUTS


def test_an_absent_backend_is_a_usage_error_with_the_reason(run, monkeypatch):
    monkeypatch.setattr(BACKENDS["cuda"], "unavailable", lambda: "no chip")
    result = run("--backend", "cuda")
    assert result.exit_code == 2
    assert "backend cuda is not on this machine: no chip" in result.stderr


def test_the_table_fits_100_columns(run):
    result = run("--op", "quantize", "--backend", "cpu", "--all")
    assert result.exit_code == 0
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 100
    assert "…" not in result.stdout
