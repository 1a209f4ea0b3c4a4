"""Commands that take a run: look at it, stop it, resume it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raysft.cli.options import Address, AsJson, Debug, Detach, RunName
from raysft.cli.session import backend_at, output, show_rows
from raysft.errors import UserError

if TYPE_CHECKING:
    from raysft.backends.backend import Workers

app = typer.Typer()


@app.command(name="list", epilog="Example: raysft list --storage runs")
def list_runs(
    storage: Annotated[str, typer.Option(help="The folder of run directories.")] = "runs",
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the runs in a folder or of a cluster, newest last."""
    backend = backend_at(address)
    rows = backend.runs(storage)
    show_rows(rows, backend.run_columns, as_json)


@app.command(epilog="Example: raysft status quickstart-20261124-101500 --watch")
def status(
    run: RunName,
    address: Address = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            help="Update until the run has ended; with --json, one document a line.",
        ),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the progress of a run, trial by trial."""
    from raysft.display.status import show_status

    if watch:
        from raysft.display.watch import watch as watch_documents

        watch_documents(backend_at(address).watch(run), output(), as_json)
        return
    document = backend_at(address).status(run)
    if as_json:
        output().json(document)
        return
    show_status(document, output())


@app.command(epilog="Example: raysft results quickstart-20261124-101500 --json")
def results(
    run: RunName, address: Address = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Show the leaderboard of a run and the test score of its model."""
    from raysft.display.results import leaderboard_table, result_lines

    document = backend_at(address).results(run)
    if as_json:
        output().json(document)
        return
    output().show(leaderboard_table(document))
    for line in result_lines(document):
        output().line(line)


@app.command(epilog="Example: raysft report quickstart-20261124-101500 --out report.html")
def report(
    run: RunName,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where to write it; default: report.html in the run's directory.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the report of a run: one HTML file with charts and mistakes, readable offline."""
    from raysft.records.reading import find_run
    from raysft.results.figures import read_figures
    from raysft.results.report import write_report
    from raysft.storage import storage_path

    folder = find_run(run)
    if as_json:
        output().json(read_figures(folder))
    else:
        output().line(str(write_report(folder, storage_path(out) if out else None)))


@app.command(epilog="Example: raysft logs quickstart-20261124-101500 --follow")
def logs(
    run: RunName,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep showing new lines until the run has ended.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show what a run and Ray have printed so far."""
    backend_at(address).logs(run, follow)


@app.command(epilog="Example: raysft stop quickstart-20261124-101500")
def stop(run: RunName, address: Address = None, debug: Debug = False) -> None:
    """Stop a run; what it has trained is kept, and it can be resumed."""
    backend_at(address).stop(run)


@app.command(epilog="Example: raysft resume quickstart-20261124-101500 --workers 4")
def resume(
    run: RunName,
    address: Address = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Continue with another resources.workers: N, or LEAST,MOST. The results stay "
            "those of the job.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            show_default=False,
            help="Where its files are now, if they were moved and are not beside the run: "
            "data.path, data.test_path, model.weights, on a cluster storage. Repeatable.",
        ),
    ] = None,
    detach: Detach = False,
    debug: Debug = False,
) -> None:
    """Resume a run that was stopped or crashed: finished trials stay, others continue from
    their checkpoints.
    """
    backend_at(address).resume(run, _parse_workers(workers), overrides or [], detach)


def _parse_workers(text: str | None) -> Workers | None:
    """N, or LEAST,MOST."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--workers {text}", "is not a number of workers", "give N, or LEAST,MOST"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers
