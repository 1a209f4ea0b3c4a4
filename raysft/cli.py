"""The command line: parse, call, show. Heavy imports sit inside the commands that need them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysft import __version__, interrupts
from raysft.errors import RaysftError, UserError
from raysft.search_path import current_folder_last

if TYPE_CHECKING:
    from raysft.backends import Backend
    from raysft.deploy.prediction import PredictionRequest

_debug = False


def _set_debug(on: bool) -> None:
    global _debug
    _debug = on


def _import_from_here(trusted: bool) -> bool:
    """Have modules found in the current folder, too, where nothing else has their name."""
    if trusted and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return trusted


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune a pretrained model on your own labelled data, from one job file.\n\n"
    "Example: [bold]raysft submit jobs/quickstart.yaml[/bold]",
)
data_app = typer.Typer(no_args_is_help=True, help="Make data sets of shards, and look at them.")
app.add_typer(data_app, name="data")

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


def _address(context: typer.Context, parameter: typer.CallbackParam, given: str | None) -> Any:
    """The dashboard that is meant, a raysft.cluster.address.Address; None for this machine."""
    from raysft.cluster.address import parse_address

    source = context.get_parameter_source(parameter.name or "")
    from_environment = source is not None and source.name == "ENVIRONMENT"
    if from_environment and context.info_name == "predict" and context.params.get("out") is None:
        return None  # a few files are predicted here, whatever the environment says of a cluster
    return parse_address(given, from_environment)


Address = Annotated[
    Any,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        metavar="URL",
        parser=str,
        callback=_address,
        show_default=False,
        help="The cluster's dashboard, such as http://127.0.0.1:8265; auto: of the Ray of this "
        "machine; local, or without "
        "it: this machine, without a cluster.",
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
        "packages, or "
        "last in the current folder. Only for models of people you trust.",
        callback=_import_from_here,
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug)
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        _output().line(f"raysft {__version__}")
        raise typer.Exit


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
    detach: Annotated[
        bool,
        typer.Option("--detach", help="On a cluster: print the run's name and leave it to itself."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a job: search, train, score the best model on test, deliver it."""
    _backend(address).submit(job_file, overrides or [], name, detach)


@app.command(epilog="Example: raysft plan jobs/resnet18_tune.yaml --set resources.workers=2")
def plan(
    job_file: JobFile,
    overrides: Overrides = None,
    address: Address = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Train a few steps, and tell the hours and, with "
            "cluster.price_per_hour, the cost.",
        ),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a job would run, on what, how often. Nothing starts, unless steps are to be
    measured.
    """
    planned = _backend(address).plan(job_file, overrides or [], measure)
    if as_json:
        _output().json(planned.document)
        return
    for line in planned.lines:
        _output().line(line)


@app.command(name="list", epilog="Example: raysft list --storage runs")
def list_runs(
    storage: Annotated[str, typer.Option(help="The folder of run directories.")] = "runs",
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the runs in a folder or of a cluster, newest last."""
    from raysft.console import table_of

    backend = _backend(address)
    rows = backend.runs(storage)
    _show(rows, table_of(rows, backend.run_columns), as_json)


@app.command(epilog="Example: raysft status quickstart-20261124-101500 --watch")
def status(
    run: RunName,
    address: Address = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", "-w", help="Go on until the run has ended; with --json a document a line."
        ),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show how far a run is, trial by trial."""
    from raysft.console import table_of
    from raysft.wording import config_text, metric_text, score_text

    if watch:
        from raysft.display.watch import watch as watch_documents

        watch_documents(_backend(address).watch(run), _output(), as_json)
        return
    document = _backend(address).status(run)
    if as_json:
        _output().json(document)
        return
    metric = document.get("metric", "val_accuracy")
    score = metric_text(metric)
    rows = [
        {
            "trial": t["trial"],
            "status": t["status"],
            "epochs": t["epochs"],
            score: score_text(t.get(metric)),
            "config": config_text(t["config"]),
        }
        for t in document["trials"]
    ]
    _output().line(f"{document['run']}: {document['status']}, started {document['started']}")
    _output().show(table_of(rows, ("trial", "status", "epochs", score, "config")))
    for error in document.get("errors", []):
        _output().line(error)


@app.command(epilog="Example: raysft results quickstart-20261124-101500 --json")
def results(
    run: RunName, address: Address = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Show the leaderboard of a run and the test score of its model."""
    from raysft.display.results import leaderboard_table, result_lines

    document = _backend(address).results(run)
    if as_json:
        _output().json(document)
        return
    _output().show(leaderboard_table(document))
    for line in result_lines(document):
        _output().line(line)


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
    """Write the report of a run: one HTML file with its figures, charts and worst mistakes,
    readable offline.
    """
    from raysft.records.reading import find_run
    from raysft.results.figures import read_figures
    from raysft.results.report import write_report
    from raysft.storage import storage_path

    folder = find_run(run)
    if as_json:
        _output().json(read_figures(folder))
    else:
        _output().line(str(write_report(folder, storage_path(out) if out else None)))


@app.command(epilog="Example: raysft logs quickstart-20261124-101500 --follow")
def logs(
    run: RunName,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show what a run and Ray have printed."""
    _backend(address).logs(run, follow)


@app.command(epilog="Example: raysft stop quickstart-20261124-101500")
def stop(run: RunName, address: Address = None, debug: Debug = False) -> None:
    """Stop a run; what it has trained stays, and it can be resumed."""
    _backend(address).stop(run)


@app.command(epilog="Example: raysft resume quickstart-20261124-101500 --workers 4")
def resume(
    run: RunName,
    address: Address = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Go on with another resources.workers: N, or LEAST,MOST. The metrics stay those "
            "of the job.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            show_default=False,
            help="Where its files are by now, if they were moved "
            "and do not lie beside the run: data.path, data.test_path, model.weights, on a "
            "cluster storage. "
            "Repeatable.",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="On a cluster: do not follow it.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Take up a run that was stopped or died: ended trials stay as they are, others go on from
    their checkpoints.
    """
    _backend(address).resume(run, _numbers(workers), overrides or [], detach)


@app.command(epilog="Example: raysft evaluate runs/NAME/model my/test-images")
def evaluate(
    model: ModelPath,
    data: Annotated[
        str,
        typer.Argument(help="A data set of shards, or a folder CLASS/IMAGE.", show_default=False),
    ],
    split: Annotated[str, typer.Option(help="The split of a data set of shards.")] = "test",
    trust_code: TrustCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score a delivered model on labelled images: the whole, each class, and what was taken for
    what.
    """
    from raysft.display.predictions import show_scores
    from raysft.results.predict import Classifier
    from raysft.storage import storage_path

    scores = Classifier(storage_path(model), trust_code=trust_code).evaluate(
        storage_path(data), split
    )
    if as_json:
        _output().json({"model": model, "data": data} | scores)
    else:
        show_scores(scores, _output())


@app.command(
    epilog="Examples: raysft predict runs/NAME/model cat.jpg dog.png --json\n\n"
    "raysft predict runs/NAME/model photos --out predictions.parquet"
)
def predict(
    model: ModelPath,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, patterns such as 'photos/*.jpg', "
            "- for an image on standard input; with --out one "
            "folder of images or one data set.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="Predict all images of a folder or a data set, with a row "
            "for each in this Parquet file. Interrupted, it goes on when "
            "called again.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="With --out: the split of a data set; default: all.", show_default=False),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="With --out: the probability of every class too."),
    ] = False,
    trust_code: TrustCode = False,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Classify images with a delivered model: some, or with --out any number of them. Exit 1 if one
    cannot be read.
    """
    if out is not None:
        from raysft.deploy.prediction import PredictionRequest

        if len(images) != 1:
            raise UserError(
                "raysft predict --out",
                f"takes one folder of images or one data set, not {len(images)}",
            )
        request = PredictionRequest(model, images[0], out, split, probabilities, trust_code)
        _predict_all(request, address, as_json)
        return
    from raysft.display.answers import show_answers
    from raysft.results.image_files import images_given
    from raysft.results.predict import Classifier
    from raysft.storage import storage_path

    given, counted = images_given(images)
    classifier = Classifier(storage_path(model), trust_code=trust_code)
    if show_answers(
        classifier.answers(given), counted, as_json, _output(), classifier.card.decoding
    ):
        raise typer.Exit(1)


def _predict_all(request: PredictionRequest, address: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from raysft.display.predictions import show_predicted

    predicted = _backend(address).predict(request, show_progress=not as_json)
    if as_json:
        _output().json(asdict(predicted))
    else:
        show_predicted(predicted, _output())


@app.command(epilog="Example: raysft serve runs/NAME/model --port 8000 --replicas 2")
def serve(
    model: ModelPath,
    host: Annotated[
        str,
        typer.Option(
            help="Where to listen; others than this machine reach it at 0.0.0.0, "
            "without authentication."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8000,
    replicas: Annotated[
        int, typer.Option(help="Processes that predict; they share this machine's CPUs.", min=1)
    ] = 1,
    max_batch: Annotated[
        int, typer.Option(help="Images of any requests that are predicted together.", min=1)
    ] = 32,
    batch_wait_ms: Annotated[
        float, typer.Option(help="How long an image waits for others.", min=0)
    ] = 5.0,
    max_megapixels: Annotated[int, typer.Option(help="Of an image.", min=1)] = 50,
    max_body_mb: Annotated[int, typer.Option(help="Of a request.", min=1)] = 16,
    max_images: Annotated[int, typer.Option(help="Of a request.", min=1)] = 64,
    queue: Annotated[
        int, typer.Option(help="Requests accepted and not yet answered; more get 503.", min=1)
    ] = 256,
    gpus_per_replica: Annotated[
        float, typer.Option(help="0: CPUs predict. A fraction shares a GPU.", min=0, max=1)
    ] = 0.0,
    trust_code: TrustCode = False,
    debug: Debug = False,
) -> None:
    """Serve a delivered model over HTTP on this machine until Ctrl-C."""
    from raysft.backends.serving import serve_model
    from raysft.deploy.settings import Settings

    serve_model(
        model,
        Settings(
            host,
            port,
            replicas,
            max_batch,
            batch_wait_ms,
            max_megapixels,
            max_body_mb,
            max_images,
            queue,
            gpus_per_replica,
            trust_code,
        ),
        _output(),
    )


@app.command(epilog="Example: raysft export runs/NAME/model --format onnx")
def export(
    model: ModelPath,
    kind: Annotated[
        str, typer.Option("--format", help="safetensors | torch-export | onnx", show_default=False)
    ],
    out: Annotated[
        str | None,
        typer.Option(help="The folder to make; default: beside the model.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="What it is scored on: a data set of shards, or a folder "
            "CLASS/IMAGE; default: what the model was trained on.",
            show_default=False,
        ),
    ] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a file of a delivered model for other runtimes; it is scored in its own and has to
    answer alike.
    """
    from raysft.console import Watcher
    from raysft.deploy.export import export as make
    from raysft.display.predictions import export_lines
    from raysft.storage import storage_path

    with Watcher(_output(), "", shown=not as_json) as watcher:
        made = make(
            storage_path(model),
            kind,
            storage_path(out) if out else None,
            storage_path(data) if data else None,
            watcher.progress,
            trust_code,
        )
    if as_json:
        _output().json(made)
        return
    for line in export_lines(made):
        _output().line(line)


@app.command(
    epilog="Example: raysft doctor --address http://127.0.0.1:8265 --storage s3://bucket/runs"
)
def doctor(
    address: Address = None,
    storage: Annotated[
        str, typer.Option(help="Where runs will go: a folder or URI that every node reaches.")
    ] = "runs",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Examine a cluster: nodes, versions, storage from every node, the network between them. Exit 1
    if any is wrong.
    """
    from dataclasses import asdict

    from raysft.console import table_of

    found = [asdict(finding) for finding in _backend(address).doctor(storage)]
    _show(found, table_of(found, ("check", "where", "state", "text")), as_json)
    if any(finding["state"] == "wrong" for finding in found):
        raise typer.Exit(1)


@app.command(epilog="Example: raysft connect cluster/gpu.yaml")
def connect(
    cluster_file: Annotated[
        Path,
        typer.Argument(help="The file that `ray up` started the cluster from.", show_default=False),
    ],
    port: Annotated[int, typer.Option(help="The port on this machine.", min=1, max=65535)] = 8265,
    debug: Debug = False,
) -> None:
    """Open an SSH tunnel to a cluster's dashboard, print the address to use, and keep it open until
    Ctrl-C.
    """
    from raysft.cluster.tunnel import tunnel

    with tunnel(cluster_file, port) as (address, wait):
        _output().line(f"connected: {address} (Ctrl-C closes the tunnel, runs go on)")
        _output().line(f"  raysft submit jobs/quickstart.yaml --address {address}")
        wait()


@app.command(epilog="Example: raysft schema > raysft.schema.json")
def schema(
    table: Annotated[
        bool, typer.Option("--table", help="Print a Markdown table of the fields instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of the job file, for editors that complete and check it."""
    from raysft.job import json_schema, markdown

    if table:
        _output().line(markdown())
    else:
        _output().json(json_schema())


@data_app.command(
    "import",
    epilog="Example: raysft data import imagefolder photos/train --test photos/test --out D",
)
def data_import(
    kind: Annotated[str, typer.Argument(help="imagefolder | cifar10 | digits", show_default=False)],
    path: Annotated[
        str | None,
        typer.Argument(
            help="Where it lies; not needed for digits and cifar10.", show_default=False
        ),
    ] = None,
    out: Annotated[
        str, typer.Option(help="The folder to make, or a URI (s3://…, gs://…).", show_default=False)
    ] = ...,  # type: ignore
    test: Annotated[
        str | None, typer.Option(help="imagefolder: the folder of test images.", show_default=False)
    ] = None,
    on_bad_image: Annotated[str, typer.Option(help="fail | skip")] = "fail",
    background: Annotated[
        str,
        typer.Option(help="The colour behind transparent pixels: white | black | grey | #rrggbb"),
    ] = "white",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a data set of shards from images. An interrupted import goes on where it was when
    started again.
    """
    from raysft.backends.importing import ImportRequest, import_images
    from raysft.display.dataset import show_dataset

    request = ImportRequest(kind, path, out, test, on_bad_image, background)
    import_images(request, _output(), show_progress=not as_json)
    show_dataset(out, as_json, _output())


@data_app.command("show", epilog="Examples: raysft data show D --json\n\nraysft data show photos")
def data_show(
    folder: Annotated[
        str,
        typer.Argument(
            help="A data set of shards, or a folder of images to be imported.", show_default=False
        ),
    ],
    test: Annotated[
        str | None,
        typer.Option(help="For a folder of images: the folder of test images.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a data set holds, or how a folder of images would be read; which files are left
    out, and why.
    """
    from raysft.display.dataset import show_data

    show_data(folder, test, as_json, _output())


def _numbers(text: str | None) -> int | list[int] | None:
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


def _show(rows: list[dict[str, Any]], table: Any, as_json: bool) -> None:
    if as_json:
        _output().json(rows)
    else:
        _output().show(table)


_OUTPUT: Any = None


def _backend(address: Any) -> Backend:
    from raysft.backends import backend_for

    return backend_for(address, _output())


def _output() -> Any:
    """The console, made when first needed: it takes hold of the standard streams."""
    global _OUTPUT
    if _OUTPUT is None:
        from raysft.console import Output

        _OUTPUT = Output()
    return _OUTPUT


def main() -> None:
    """Run the command line; every error raysft raises on purpose becomes one red line and its exit
    status here.
    """
    current_folder_last()
    interrupts.listen()
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


def _leave(status: int) -> None:
    """Exit without waiting for threads that a stopped Ray has left behind."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
