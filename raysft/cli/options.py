"""Arguments and options that several commands have."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from raysft.cli.session import set_debug
from raysft.cluster.address import Address as ClusterAddress
from raysft.cluster.address import parse_address


def _import_from_here(trusted: bool) -> bool:
    """Make modules of the current folder importable for a model that is trusted."""
    # Appended, not put first: a file here must not take the place of an installed package.
    if trusted and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return trusted


JobFile = Annotated[Path, typer.Argument(help="The job file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the job file, e.g. --set train.epochs=2. Repeatable.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
RunName = Annotated[
    str,
    typer.Argument(
        help="A run: its name, or its directory where it ran on this machine.", show_default=False
    ),
]


def _parse_address(
    context: typer.Context, parameter: typer.CallbackParam, given: str | None
) -> ClusterAddress | None:
    """The dashboard that is meant; None for this machine."""
    source = context.get_parameter_source(parameter.name or "")
    from_environment = source is not None and source.name == "ENVIRONMENT"
    # A few files are predicted here, whatever the environment says of a cluster.
    few_files = context.info_name == "predict" and context.params.get("out") is None
    if from_environment and few_files:
        return None
    return parse_address(given, from_environment)


Address = Annotated[
    ClusterAddress | None,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        metavar="URL",
        parser=str,
        callback=_parse_address,
        show_default=False,
        help="The cluster's dashboard, such as http://127.0.0.1:8265; auto: that of the Ray on "
        "this machine; local, or left out: this machine, without a cluster.",
    ),
]
ModelPath = Annotated[
    str, typer.Argument(help="A delivered model (RUN/model) or its run.", show_default=False)
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the code of a model's own module, found in PYTHONPATH, among the installed "
        "packages or, last, in the current folder. Only for models of people you trust.",
        callback=_import_from_here,
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", callback=set_debug)
]

Detach = Annotated[
    bool,
    typer.Option("--detach", help="On a cluster: print the run's name and do not follow it."),
]
