"""The command line: parse, call, show. Heavy imports sit inside the commands that need them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raysft import __version__
from raysft.errors import RaysftError

_debug = False


def _set_debug(on: bool) -> None:
    global _debug
    _debug = on


app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
                  help="Fine-tune a pretrained model on your own labelled data, from one job file.\n\n"
                       "Example: [bold]raysft submit jobs/quickstart.yaml[/bold]")
data_app = typer.Typer(no_args_is_help=True, help="Make data sets of shards, and look at them.")
app.add_typer(data_app, name="data")

JobFile = Annotated[Path, typer.Argument(help="The job file (YAML).", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Override a key of the job file, e.g. --set train.epochs=2. Repeatable.",
    show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
RunName = Annotated[str, typer.Argument(help="A run directory, or the name of a run in ./runs.", show_default=False)]
ModelPath = Annotated[str, typer.Argument(help="A delivered model (RUN/model) or its run.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug)]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        _output().line(f"raysft {__version__}")
        raise typer.Exit


@app.command(epilog="Example: raysft submit jobs/resnet18_tune.yaml --set train.epochs=2 --name try-1")
def submit(job_file: JobFile, overrides: Overrides = None,
           name: Annotated[str | None, typer.Option(help="Name of the run; default: the job's name and the time.",
                                                    show_default=False)] = None,
           debug: Debug = False) -> None:
    """Run a job: search, train, score the best model on test, deliver it."""
    from raysft.submit import submit_here

    submit_here(job_file, overrides or [], name, _output())


@app.command(epilog="Example: raysft plan jobs/resnet18_tune.yaml --set resources.workers=2")
def plan(job_file: JobFile, overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what a job would run, on what, how often. Nothing starts."""
    from raysft.console import plan_json, plan_lines
    from raysft.submit import WHERE, look_ahead

    ahead = look_ahead(job_file, overrides or [])
    output, results = _output(), f"{ahead.job.storage}/{ahead.job.name}-TIME"
    if as_json:
        output.json(plan_json(ahead.job, ahead.plan, results))
        return
    for line in plan_lines(ahead.job, ahead.outline, ahead.plan, WHERE, results):
        output.line(line)


@app.command(name="list", epilog="Example: raysft list --storage runs")
def list_runs(storage: Annotated[str, typer.Option(help="The folder of run directories.")] = "runs",
              as_json: AsJson = False, debug: Debug = False) -> None:
    """List the runs in a folder, newest last."""
    from raysft.console import table_of
    from raysft.results.run import all_runs

    found = all_runs(storage)
    rows = [{k: r.get(k) for k in ("run", "status", "started", "ended", "trials")} for r in found]
    _show(rows, table_of(rows, ("run", "status", "started", "ended", "trials")), as_json)


@app.command(epilog="Example: raysft status quickstart-20261124-101500")
def status(run: RunName, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show how far a run is, trial by trial."""
    from raysft.console import config_text, table_of
    from raysft.results.run import find_run, read_json, read_trials

    folder = find_run(run)
    info = read_json(folder / "run.json")
    trials = read_trials(folder)
    rows = [{"trial": t["trial"], "status": t["status"], "epochs": t["epochs"], "val acc": t["val_accuracy"],
             "config": config_text(t["config"])} for t in trials]
    if as_json:
        _output().json(info | {"trials": [{k: v for k, v in t.items() if k != "trace"} for t in trials]})
        return
    _output().line(f"{info['run']}: {info['status']}, started {info['started']}")
    _output().show(table_of(rows, ("trial", "status", "epochs", "val acc", "config")))


@app.command(epilog="Example: raysft results quickstart-20261124-101500 --json")
def results(run: RunName, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show the leaderboard of a run and the test score of its model."""
    from raysft.console import leaderboard_table, result_lines
    from raysft.results.run import find_run, read_json

    folder = find_run(run)
    if not (folder / "results.json").is_file():
        from raysft.errors import UserError

        state = read_json(folder / "run.json")["status"]
        raise UserError(str(folder), f"has no results: its status is {state}", "see `raysft status`")
    document = read_json(folder / "results.json")
    if as_json:
        _output().json(document)
        return
    _output().show(leaderboard_table(document))
    for line in result_lines(document):
        _output().line(line)


@app.command(epilog="Example: raysft evaluate runs/NAME/model my/test-images")
def evaluate(model: ModelPath,
             data: Annotated[str, typer.Argument(help="A data set of shards, or a folder CLASS/IMAGE.",
                                                  show_default=False)],
             split: Annotated[str, typer.Option(help="The split of a data set of shards.")] = "test",
             as_json: AsJson = False, debug: Debug = False) -> None:
    """Score a delivered model on labelled images."""
    from raysft.results.predict import Classifier
    from raysft.storage import place

    scores = Classifier(place(model)).evaluate(place(data), split)
    if as_json:
        _output().json({"model": model, "data": data} | scores)
    else:
        _output().line(f"accuracy {scores['accuracy']:.4f}, loss {scores['loss']:.4f} on {scores['images']:,} images")


@app.command(epilog="Example: raysft predict runs/NAME/model cat.jpg dog.png --json")
def predict(model: ModelPath,
            images: Annotated[list[str], typer.Argument(help="Image files.", show_default=False)],
            as_json: AsJson = False, debug: Debug = False) -> None:
    """Classify image files with a delivered model."""
    from raysft.results.predict import Classifier
    from raysft.storage import place

    found = Classifier(place(model)).predict(images)
    if as_json:
        _output().json([{"image": p.image, "class": p.classes[0][0], "probability": p.classes[0][1],
                         "top": [{"class": c, "probability": s} for c, s in p.classes]} for p in found])
        return
    for prediction in found:
        ranked = ", ".join(f"{c} {s:.3f}" for c, s in prediction.classes)
        _output().line(f"{prediction.image}: {ranked}")


@app.command(epilog="Example: raysft schema > raysft.schema.json")
def schema(table: Annotated[bool, typer.Option("--table", help="Print a Markdown table of the fields instead.")] = False
           ) -> None:
    """Print the JSON Schema of the job file, for editors that complete and check it."""
    from raysft.job import json_schema, markdown

    if table:
        _output().line(markdown())
    else:
        _output().json(json_schema())


@data_app.command("import", epilog="Example: raysft data import imagefolder photos/train --test photos/test --out D")
def data_import(kind: Annotated[str, typer.Argument(help="imagefolder | cifar10 | digits", show_default=False)],
                path: Annotated[str | None, typer.Argument(help="Where it lies; not needed for digits and cifar10.",
                                                           show_default=False)] = None,
                out: Annotated[str, typer.Option(help="The folder to make, or a URI (s3://…, gs://…).",
                                                 show_default=False)] = ...,  # type: ignore
                test: Annotated[str | None, typer.Option(help="imagefolder: the folder of test images.",
                                                         show_default=False)] = None,
                on_bad_image: Annotated[str, typer.Option(help="fail | skip")] = "fail",
                as_json: AsJson = False, debug: Debug = False) -> None:
    """Make a data set of shards from images. An interrupted import goes on where it was when started again."""
    from raysft.submit import import_here

    import_here(kind, path, out, test, on_bad_image, as_json, _output())


@data_app.command("show", epilog="Example: raysft data show D --json")
def data_show(folder: Annotated[str, typer.Argument(help="A data set of shards.", show_default=False)],
              as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what a data set holds."""
    from raysft.submit import show_data

    show_data(folder, as_json, _output())


def _show(rows: list[dict[str, Any]], table: Any, as_json: bool) -> None:
    if as_json:
        _output().json(rows)
    else:
        _output().show(table)


_OUTPUT: Any = None


def _output() -> Any:
    """The console, made when first needed: it takes hold of the standard streams."""
    global _OUTPUT
    if _OUTPUT is None:
        from raysft.console import Output

        _OUTPUT = Output()
    return _OUTPUT


def main() -> None:
    """Run the command line; every error raysft raises on purpose becomes one red line and its exit status here."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    status: Any = 0
    try:
        app()
    except SystemExit as done:  # help, a wrong call, Ctrl-C
        status = done.code
    except RaysftError as error:
        if _debug:
            _output().trace(error)
        _output().errors(error)
        status = error.exit_code
    except Exception as error:
        _output().trace(error)
        _output().warning("This is a mistake in raysft, not in your job.")
        status = 1
    _leave(status if isinstance(status, int) else 0)


def _as_interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _leave(status: int) -> None:
    """Exit without waiting for threads that a stopped Ray has left behind."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
