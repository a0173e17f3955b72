"""The command line: `slipway`, one file a command, each imported only when it is called."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from model_repo.runtime.errors import SlipwayError

COMMANDS = {
    "build": "All stages: from a model to a Triton repository.",
    "export": "Stage 1: from the torch module to ONNX.",
    "fuse": "Stage 2: the same numbers from fewer nodes.",
    "calibrate": "Ranges of activations, from calibration data.",
    "quantize": "Weights as codes, and rounding where the target computes with codes.",
    "lower": "Stage 3: the operators that the target knows.",
    "compile": "Stage 4: the engine that the runtime loads.",
    "refit": "Weights for an engine that was built without them, on a GPU.",
    "emit": "Stage 5: the Triton model repository.",
    "sensitivity": "What each layer's precision costs, and the best under a budget.",
    "evaluate": "Accuracy on held-out data, beside float32.",
    "check": "Verify manifests, hashes, configs and parity of a build.",
    "parity": "Compare two artifacts, and name the node that departs.",
    "locate": "Hold a TensorRT engine against its graph, on a GPU.",
    "convert": "A float32 graph in 16 bit, with what must stay in float32.",
    "inspect": "Tables: operators, inputs, outputs, bytes, parity.",
    "generate": "Complete prompts with the engine loop, without a server.",
    "serve": "Build if needed, and serve with tritonserver.",
    "bench": "Measure the engine loop: tokens/s and prefill.",
    "plan-memory": "What fits on a GPU, before anything is built.",
    "doctor": "What works on this machine, and what to install for the rest.",
    "clean": "Remove what slipway built in a folder.",
    "demo": "Build and serve the demo models, and talk to them.",
}
"""Commands with the line that --help shows; the file of each is imported when it runs."""


class SlipwayGroup(click.Group):
    """A group whose commands are imported on use, and whose errors are one message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None when there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{cmd_name.replace('-', '_')}", __name__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the command line. Exits 0; 2 bad input; 3 a gate failed; 1 a fault of ours; 130 Ctrl-C."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        sys.exit(self._guarded(args, prog_name, complete_var, extra))

    def _guarded(
        self,
        args: Sequence[str] | None,
        prog_name: str | None,
        complete_var: str | None,
        extra: dict[str, Any],
    ) -> int:
        """The exit code; errors are told on stderr."""
        from pipeline.packages import missing_packages

        try:
            with missing_packages():
                result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except SlipwayError as error:
            _tell(error)
            return error.exit_code
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except click.Abort:
            click.echo("interrupted", err=True)
            return 130
        except BrokenPipeError:
            # Whoever read our output has gone; what is still buffered has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            click.echo(f"error: {type(error).__name__}: {error}", err=True)
            _tell_notes(error)
            click.echo(f"this is a fault of slipway; the traceback is in {_keep_traceback()}", err=True)
            return 1
        return result if isinstance(result, int) else 0


@click.group(cls=SlipwayGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="slipway", prog_name="slipway")
def main() -> None:
    """From a PyTorch model to a Triton Inference Server repository with in-flight batching."""


def _tell(error: SlipwayError) -> None:
    click.echo(f"error: {error}", err=True)
    _tell_notes(error)


def _tell_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        click.echo(note, err=True)


def _keep_traceback() -> Path:
    """Writes the traceback of the exception at hand to a file of its own."""
    descriptor, name = tempfile.mkstemp(prefix="slipway-error-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{sys.argv}\n{traceback.format_exc()}")
    return Path(name)
