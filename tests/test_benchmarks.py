import importlib
import json
import sys
import time

import pytest
import torch
from bigkern.benchmarks import common, gpu, models, report, roofline, suite
from click.testing import CliRunner

from bigkern import cli
from bigkern.backends import cpu

RESULT_KEYS = {
    "case",
    "pass",
    "backends",
    "timings",
    "not_compiled",
    "ratio",
    "gflops",
    "gbps",
    "bound",
    "share_of_limit",
    "flops",
    "bytes",
    "target",
}


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.main, ["bench", *map(str, arguments)], env={"COLUMNS": "100"})


def test_timing_tells_twice_the_work_from_once():
    wait = lambda seconds: lambda: time.sleep(seconds)  # noqa: E731
    times = common.take_turns({"once": wait(0.02), "twice": wait(0.04)}, 0.2)
    once, twice = (common.summary(values)["median_s"] for values in times.values())
    assert 0.02 <= once < 0.04 <= twice
    assert len(times["once"]) == len(times["twice"]) >= common.MIN_ROUNDS


def test_candidates_take_turns():
    calls = []
    common.take_turns({name: lambda name=name: (calls.append(name), time.sleep(0.003)) for name in "ab"}, 0.0)
    timed = calls[-2 * common.MIN_ROUNDS :]
    assert all(set(timed[i : i + 2]) == {"a", "b"} for i in range(0, len(timed), 2))


def test_bind_gives_a_call_the_inputs_that_it_names():
    assert common.bind(lambda b, a: (a, b), {"a": 1, "b": 2, "c": 3})() == (1, 2)


def test_limits_are_plausible_and_the_nearer_one_binds():
    limits = common.Limits("cpu", seconds=0.01)
    assert limits.bandwidth(1 << 20) > 1e7
    assert limits.peak("float32") > 1e8
    seconds, bound = limits.seconds_for(1e9, 1e3, "float32")
    assert bound == "compute"
    assert seconds == pytest.approx(1e9 / limits.peak("float32"))
    assert limits.seconds_for(1e3, 1 << 20, "float32")[1] == "memory"


@pytest.mark.parametrize("name", suite.SUITES)
def test_every_case_agrees_with_pytorch_and_differentiates(name):
    module = importlib.import_module(f"bigkern.benchmarks.bench_{name}")
    assert len({case.name for case in module.CASES}) == len(module.CASES)
    smallest = min(module.CASES, key=lambda case: case.flops + case.bytes)
    with suite.deprecated_peers():
        inputs = smallest.inputs("cpu")
        suite.require_agreement(smallest, inputs)
        for peer in smallest.peers.values():
            common.bind(getattr(peer, "call", peer), inputs)()
    if smallest.gradients:
        for leaf in smallest.gradients:
            inputs[leaf].requires_grad_()
        grads = suite.training_step(smallest.bigkern, inputs, smallest.gradients)()
        assert [grad.shape for grad in grads] == [inputs[leaf].shape for leaf in smallest.gradients]


def test_quick_run_writes_a_whole_record(run, tmp_path):
    path = tmp_path / "results.json"
    result = run("--op", "quantize", "--only", "1024x1024 per tensor", "--quick", "--json", path)
    assert result.exit_code == 0, result.stderr
    (record,) = json.loads(path.read_text())
    assert record["suite"] == "quantize"
    assert {"device", "date", "commit", "processor", "threads", "instruction_set", "versions"} <= set(
        record["environment"]
    )
    (case,) = record["results"]
    assert set(case) == RESULT_KEYS
    assert case["backends"] == ["cpu"]
    timings = case["timings"]
    assert set(timings) == {"bigkern", "eager"}
    assert 0 < timings["bigkern"]["min_s"] <= timings["bigkern"]["median_s"]
    assert case["ratio"]["eager"] == pytest.approx(timings["eager"]["median_s"] / timings["bigkern"]["median_s"])
    assert case["bound"] == "memory"
    assert case["gbps"] > 0
    assert "1024x1024 per tensor" in result.stdout
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 100


def test_compiled_peer_is_timed_with_backward():
    module = importlib.import_module("bigkern.benchmarks.bench_overhead")
    case = next(case for case in module.CASES if case.gradients)
    result = suite.measure(case, common.Limits("cpu", 0.01), 0.01, training=True, compiled=True)
    assert result["pass"] == "forward+backward"
    assert ("compile" in result["ratio"]) != bool(result["not_compiled"])


SEEN = []  # the inputs of _Greedy


class _Greedy(torch.autograd.Function):
    """A sum of squares whose forward writes the gradient into its input, as Liger's cross entropy does."""

    @staticmethod
    def forward(ctx, x):
        SEEN.append(x.detach().clone())
        loss = (x * x).sum()
        if x.requires_grad:
            ctx.saved = x.detach().mul_(2)
        return loss

    @staticmethod
    def backward(ctx, grad):
        assert grad == 1
        return ctx.saved


def _refuses(x):
    raise RuntimeError("no kernel for this")


GREEDY_CASE = common.Case(
    "x",
    lambda device: {"x": torch.tensor([1.0, 2.0, 3.0])},
    lambda x: (x * x).sum(),
    lambda x: (x * x).sum(),
    peers={
        "forward only": lambda x: (x * x).sum(),
        "greedy": common.WithBackward(lambda x: _Greedy.apply(x), overwrites=("x",)),
        "modest": common.WithBackward(lambda x: (x * x).sum()),
        "refuses": common.WithBackward(_refuses),
    },
    gradients=("x",),
)


def test_peers_with_a_backward_are_timed_with_it_and_the_others_without():
    alone, trained = (
        suite.measure(GREEDY_CASE, common.Limits("cpu"), 0.0, training, False) for training in (False, True)
    )
    assert set(alone["ratio"]) == {"eager", "forward only", "greedy", "modest"}
    assert set(trained["ratio"]) == {"eager", "greedy", "modest"}
    for result in (alone, trained):
        assert result["left_out"]["refuses"] == "RuntimeError: no kernel for this"


def test_a_peer_that_overwrites_its_input_has_a_fresh_one_for_each_timed_call():
    SEEN.clear()
    inputs = {"x": torch.tensor([1.0, 2.0, 3.0], requires_grad=True)}
    candidates = suite.candidates_for(GREEDY_CASE, inputs, training=True, compiled=False)
    SEEN.clear()
    common.take_turns(candidates.calls, 0.0, prepare=candidates.prepare)
    assert torch.equal(inputs["x"], torch.tensor([1.0, 2.0, 3.0]))
    timed = SEEN[-common.MIN_ROUNDS :]
    assert all(torch.equal(x, inputs["x"]) for x in timed)
    candidates.prepare["greedy"]()
    (grad,) = candidates.calls["greedy"]()
    assert torch.equal(grad, torch.tensor([2.0, 4.0, 6.0]))


def test_a_wrong_op_is_not_timed(run, monkeypatch):
    honest = cpu.run

    def dishonest(kernel, args):
        outputs = honest(kernel, args)
        outputs[1].mul_(1.001)
        return outputs

    monkeypatch.setattr(cpu, "run", dishonest)
    monkeypatch.setattr(suite, "measure", lambda *_: pytest.fail("it was timed"))
    result = run("--op", "quantize", "--quick")
    assert result.exit_code == 1
    assert "quantize refused" in result.stderr
    assert "bigkern verify" in result.stderr


def test_a_case_that_disagrees_at_its_own_size_is_not_timed():
    case = common.Case("x", lambda device: {"x": torch.ones(3)}, lambda x: x * 1.5, lambda x: x)
    with pytest.raises(suite.Refused, match=r"differs from PyTorch by 0\.5 where the largest value is 1"):
        suite.measure(case, common.Limits("cpu"), 0.01, training=False, compiled=False)


def test_a_case_that_does_not_exist_is_a_usage_error(run):
    assert run("--op", "quantize", "--only", "no such case").exit_code == 2


def _record(ratio):
    result = {
        "case": "8x8",
        "pass": "forward",
        "timings": {"bigkern": {"median_s": 1.5e-3, "min_s": 1e-3, "rounds": 9}},
    }
    result |= {
        "ratio": {"eager": ratio, "compile": 1.2, "other": 3.0},
        "gflops": 0.0,
        "gbps": 12.3,
        "bound": "memory",
        "share_of_limit": 0.61,
    }
    where = {
        "date": "2030-01-02",
        "commit": "abc",
        "processor": "Chip",
        "threads": 2,
        "instruction_set": "avx2",
        "gpu": None,
        "versions": {"torch": "2.13.0"},
    }
    return {"suite": "quantize", "environment": where, "results": [result]}


def test_results_table_says_where_pytorch_is_faster(tmp_path):
    common.save(_record(0.8), tmp_path / "chip")
    text = report.results_table(tmp_path)
    assert "**Chip, 2 threads, avx2**; torch 2.13.0; 2030-01-02; abc" in text
    assert "| quantize | 1 | 0.80x (0.80 to 0.80) | 1.20x (1.20 to 1.20) | 8x8 (0.80x eager) |" in text
    assert "| quantize | 8x8 | forward | 1.5 ms | 0.80x | 1.20x | 3.00x other | 12 GB/s | 61% |" in text
    common.save(_record(1.5), tmp_path / "chip")
    assert "| nowhere |" in report.results_table(tmp_path)


def test_saved_results_have_the_fields_that_the_report_reads():
    for records in report.load_results(common.RESULTS).values():
        for record in records:
            assert record["suite"] in suite.SUITES
            for result in record["results"]:
                assert set(result) == RESULT_KEYS


def test_gpu_run_can_be_rehearsed_without_one(tmp_path):
    arguments = ["gpu", "--dry-run", "--only", "quantize", "--skip", "tests", "--output", str(tmp_path)]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.stderr
    summary = (tmp_path / "summary.md").read_text()
    assert "Nothing failed." in summary
    assert "vs bigkern triton" in summary
    assert "a rehearsal" in summary
    checks = json.loads((tmp_path / "checks.json").read_text())
    assert [step["status"] for step in checks["steps"]] == ["passed"]


def test_gpu_run_says_what_failed_and_goes_on(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    broken = gpu.Step("broken", [sys.executable, "-c", "raise ValueError('no such kernel')"], 30)
    endless = gpu.Step("endless", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    for step in (broken, endless):
        step.run(logs, gpu.environment_for(rehearsal=True), 100)
    assert broken.status == "failed with exit code 1"
    assert broken.failures[-1] == "ValueError: no such kernel"
    assert endless.status == "stopped after 0 s"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_gpu_run_without_a_gpu_is_refused():
    result = CliRunner().invoke(cli.main, ["gpu"])
    assert result.exit_code == 1
    assert "no CUDA device is here" in result.stderr


def test_roofline_shows_suites_under_their_limits(tmp_path):
    result = {**_record(2.0)["results"][0], "flops": 1e9, "bytes": 1e7, "gflops": 50.0, "target": ""}
    record = {
        "suite": "attention",
        "results": [result],
        "limits": {"peak_gflops": {"float32": 100.0}, "copy_gbps": {"65536": 10.0}},
    }
    (tmp_path / "attention.json").write_text(json.dumps(record))
    assert roofline.load_records(tmp_path) == [record]
    picture = roofline.write_roofline(tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_models_table_has_a_line_for_every_recorded_run(tmp_path):
    result = {"task": "gpt", "parameters": 1234, "test": {"loss": 1.25}, "steps": 7}
    result["seconds per step"] = {"bigkern": 0.002, "eager": 0.003, "compile": 0.001}
    folder = tmp_path / "chip" / "models"
    folder.mkdir(parents=True)
    record = {"label": "gpt", "command": "bigkern train gpt", "training seconds": 3.0, **result}
    environment = {"device": "cpu", "processor": "A chip"}
    (folder / "gpt.json").write_text(json.dumps({**record, "environment": environment}))
    text = models.table(tmp_path)
    assert "## A chip" in text
    assert "| gpt | 1,234 | loss 1.25 | 3 s, 7 steps | 2.00 ms | 1.50x | 0.50x | `bigkern train gpt` |" in text


def test_models_table_in_the_repository_is_up_to_date():
    assert models.TABLE.read_text() == models.table()
