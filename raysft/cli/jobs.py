"""Commands that take a job file, or tell what it may say."""

from __future__ import annotations

from typing import Annotated

import typer

from raysft.cli.options import Address, AsJson, Debug, Detach, JobFile, Overrides
from raysft.cli.session import backend_at, output

app = typer.Typer()


@app.command(
    epilog="Example: raysft submit jobs/resnet18_tune.yaml --set train.epochs=2 --name try-1"
)
def submit(
    job_file: JobFile,
    overrides: Overrides = None,
    address: Address = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the run; default: the job's name and the time.", show_default=False
        ),
    ] = None,
    detach: Detach = False,
    debug: Debug = False,
) -> None:
    """Run a job: search, train, score the best model on test, deliver it."""
    backend_at(address).submit(job_file, overrides or [], name, detach)


@app.command(epilog="Example: raysft plan jobs/resnet18_tune.yaml --set resources.workers=2")
def plan(
    job_file: JobFile,
    overrides: Overrides = None,
    address: Address = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Train a few steps to estimate the hours and, with cluster.price_per_hour, the "
            "cost.",
        ),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a job would run, and on what. Nothing starts, except with --measure."""
    planned = backend_at(address).plan(job_file, overrides or [], measure)
    if as_json:
        output().json(planned.document)
        return
    for line in planned.lines:
        output().line(line)


@app.command(epilog="Example: raysft schema > raysft.schema.json")
def schema(
    table: Annotated[
        bool, typer.Option("--table", help="Print a Markdown table of the fields instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of the job file, for editors that complete and check it."""
    from raysft.job import json_schema, markdown

    if table:
        output().line(markdown())
    else:
        output().json(json_schema())
