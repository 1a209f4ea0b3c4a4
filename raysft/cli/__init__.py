"""The command line: parse, call, show. Heavy imports sit inside the commands that need them."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from raysft import __version__, interrupts
from raysft.cli import clusters, data, jobs, models, runs
from raysft.cli.session import is_debug, output
from raysft.errors import RaysftError
from raysft.search_path import current_folder_last

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune a pretrained model on your own labelled data, from one job file.\n\n"
    "Example: [bold]raysft submit jobs/quickstart.yaml[/bold]",
)
for group in (jobs, runs, models, clusters):  # in the order in which the help lists them
    app.registered_commands += group.app.registered_commands
app.add_typer(data.app, name="data")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        output().line(f"raysft {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every error raysft raises on purpose becomes one red line here."""
    current_folder_last()
    interrupts.listen()
    _leave(_run())


def _run() -> int:
    """Run the command; returns the exit status."""
    try:
        app()
    except SystemExit as done:  # help, a wrong call, Ctrl-C
        return done.code if isinstance(done.code, int) else 0
    except RaysftError as error:
        if is_debug():
            output().trace(error)
        output().errors(error)
        return error.exit_code
    except Exception as error:
        output().trace(error)
        output().warning("This is a bug in raysft, not a mistake in your job.")
        return 1
    return 0


def _leave(status: int) -> None:
    """Exit without waiting for threads that a stopped Ray has left behind."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
