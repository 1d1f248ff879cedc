"""The `bigkern` command. Each subcommand is imported when it is asked for, so that `--help` waits for none of them."""

import importlib
from importlib.util import find_spec

import click

# One line a command: name -> (module of the package, click command in it, what `bigkern --help` says).
COMMANDS = {
    "info": ("info", "command", "Show this machine, the kernels that run on it, and why others do not."),
    "verify": ("verify", "command", "Check every op on every backend of this machine against the float64 oracle."),
    "bench": ("benchmarks.suite", "command", "Time bigkern against PyTorch eager and torch.compile on this machine."),
    "compile": ("cuda.precompile", "command", "Compile the CUDA kernels ahead of time; needs no GPU."),
    "train": ("train_command", "train", "Train a model on data that is already on this machine."),
    "report": ("benchmarks.report", "command", "Rewrite the generated tables of a README from benchmark results."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and summaries without importing them."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return None
        if not find_spec("torch"):
            raise click.ClickException(f"bigkern {name} needs PyTorch 2.10 or later: pip install torch")
        module, attribute, _ = COMMANDS[name]
        return getattr(importlib.import_module(f"bigkern.{module}"), attribute)

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bigkern")
def main():
    """Hand-written kernels behind PyTorch ops, each checked against a NumPy oracle.

    Start with `bigkern info` to see what runs here, then `bigkern verify` to see that it is right, then `bigkern bench
    --quick` to see how fast.

    Exit codes: 0 all went well, 1 something failed (a kernel is wrong, a table is stale), 2 the command line is wrong.
    """
