import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from bigkern import cli
from bigkern.cuda import nvrtc


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.main, [str(argument) for argument in arguments])


def test_python_m_bigkern_answers_help_with_every_command():
    done = subprocess.run([sys.executable, "-m", "bigkern", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: bigkern ")
    for name, (_, _, summary) in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert summary.split()[0] in done.stdout


def test_help_imports_no_command():
    code = (
        "import sys; from click.testing import CliRunner; from bigkern import cli;"
        "assert CliRunner().invoke(cli.main, ['--help']).exit_code == 0;"
        "print([m for m, _, _ in cli.COMMANDS.values() if f'bigkern.{m}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help_that_starts_as_its_summary_does(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert cli.COMMANDS[name][2].split()[0] in result.output


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["verify", "--op", "nonsense"], ["verify", "--backend", "cuda"], ["bench", "--save", "--quick"], ["report", "missing.md"], ["compile", "--arch", "sm_17"], ["compile", "--arch", "sm_90a", "--op", "nonsense"]],
)  # fmt: skip
def test_a_wrong_command_line_exits_with_2(run, arguments):
    assert run(*arguments).exit_code == 2


def test_info_json_is_json_and_true_of_this_process(run):
    record = json.loads(run("info", "--json").stdout)
    assert record["versions"]["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["backends"]["torch"] is None
    assert record["instruction_set"] in record["instruction_sets"]
    assert (record["gpu"] is not None) == torch.cuda.is_available()


def test_info_tells_what_cuda_kernels_are_compiled_with(run, monkeypatch, tmp_path):
    monkeypatch.setenv("BIGKERN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("BIGKERN_CUBINS", raising=False)
    (tmp_path / "prebuilt/sm_90a").mkdir(parents=True)
    (tmp_path / "prebuilt/sm_90a/quantize-0.cubin").write_bytes(b"")
    record = json.loads(run("info", "--json").stdout)["cuda"]
    assert (record["cache"], record["prebuilt"]) == (str(tmp_path), {"sm_90a": 1})
    assert record["nvrtc"] == nvrtc.version()
    assert len(record["missing"]) == (record["driver"] is None)
    assert "1 for sm_90a" in run("info").stdout


def test_info_says_why_a_backend_is_missing(run):
    result = run("info")
    assert result.exit_code == 0
    assert torch.cuda.is_available() or "no: no CUDA device" in result.output
    assert "instruction_set" not in result.output


def test_report_rewrites_between_markers_only(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- ops:begin -->\nold\n<!-- ops:end -->\nafter\n")
    assert run("report", "--check", readme).exit_code == 1
    assert "old" in readme.read_text()
    assert run("report", readme).exit_code == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- ops:begin -->\n| op |")
    assert text.endswith("<!-- ops:end -->\nafter\n")
    assert "| `quantize` | forward | fp32 fp16 bf16 fp64 | fp32 fp16 bf16 |" in text
    assert "old" not in text
    assert run("report", "--check", readme).exit_code == 0


def test_report_leaves_a_readme_without_markers_alone(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("")
    assert run("report", readme).exit_code == 0
    assert readme.read_text() == ""


def test_report_names_a_marker_without_an_end(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- ops:begin -->")
    result = run("report", readme)
    assert result.exit_code == 1
    assert "<!-- ops:begin --> has no <!-- ops:end --> after it" in result.stderr


def test_the_readme_of_this_checkout_is_up_to_date(run, pytestconfig):
    result = run("report", "--check", pytestconfig.rootpath / "README.md")
    assert result.exit_code == 0, result.stderr
