"""Commands that take a delivered model: score it, predict, serve, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raysft.cli.options import Address, AsJson, Debug, ModelPath, TrustCode
from raysft.cli.session import backend_at, output
from raysft.errors import UserError

if TYPE_CHECKING:
    from raysft.cluster.address import Address as ClusterAddress
    from raysft.deploy.prediction import PredictionRequest

app = typer.Typer()

Images = Annotated[
    list[str],
    typer.Argument(
        help="Image files, folders, patterns such as 'photos/*.jpg', - for an image on standard "
        "input; with --out one folder of images or one data set.",
        show_default=False,
    ),
]
Host = Annotated[
    str,
    typer.Option(help="Where to listen; 0.0.0.0 lets other machines in, without authentication."),
]
PredictionsFile = Annotated[
    str | None,
    typer.Option(
        help="Predict all images of a folder or a data set, with a row for each in this Parquet "
        "file. Run again after an interruption, it continues.",
        show_default=False,
    ),
]


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
    """Score a delivered model on labelled images: overall, for each class, and what it confuses."""
    from raysft.display.predictions import show_scores
    from raysft.results.predict import Classifier
    from raysft.storage import storage_path

    scores = Classifier(storage_path(model), trust_code=trust_code).evaluate(
        storage_path(data), split
    )
    if as_json:
        output().json({"model": model, "data": data} | scores)
    else:
        show_scores(scores, output())


@app.command(
    epilog="Examples: raysft predict runs/NAME/model cat.jpg dog.png --json\n\n"
    "raysft predict runs/NAME/model photos --out predictions.parquet"
)
def predict(
    model: ModelPath,
    images: Images,
    out: PredictionsFile = None,
    split: Annotated[
        str | None,
        typer.Option(help="With --out: the split of a data set; default: all.", show_default=False),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="With --out: also the probability of every class."),
    ] = False,
    trust_code: TrustCode = False,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Classify images with a delivered model: a few, or with --out any number of them.

    Exit status 1 if one of a few cannot be read.
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
    from raysft.results.image_files import find_given_images
    from raysft.results.predict import Classifier
    from raysft.storage import storage_path

    given, counted = find_given_images(images)
    classifier = Classifier(storage_path(model), trust_code=trust_code)
    if show_answers(
        classifier.answers(given), counted, as_json, output(), classifier.card.decoding
    ):
        raise typer.Exit(1)


def _predict_all(request: PredictionRequest, address: ClusterAddress | None, as_json: bool) -> None:
    from dataclasses import asdict

    from raysft.display.predictions import show_predicted

    predicted = backend_at(address).predict(request, show_progress=not as_json)
    if as_json:
        output().json(asdict(predicted))
    else:
        show_predicted(predicted, output())


@app.command(epilog="Example: raysft serve runs/NAME/model --port 8000 --replicas 2")
def serve(
    model: ModelPath,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free port.", min=0, max=65535)] = 8000,
    replicas: Annotated[
        int, typer.Option(help="Processes that predict; they share this machine's CPUs.", min=1)
    ] = 1,
    max_batch: Annotated[
        int, typer.Option(help="Images of any requests that are predicted together.", min=1)
    ] = 32,
    batch_wait_ms: Annotated[
        float, typer.Option(help="How long an image waits for others to share its batch.", min=0)
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
            host=host,
            port=port,
            replicas=replicas,
            max_batch=max_batch,
            batch_wait_ms=batch_wait_ms,
            max_megapixels=max_megapixels,
            max_body_mb=max_body_mb,
            max_images=max_images,
            queue=queue,
            gpus_per_replica=gpus_per_replica,
            trust_code=trust_code,
        ),
        output(),
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
    """Export a delivered model for other runtimes, and check that it answers as the model does."""
    from raysft.console import Watcher
    from raysft.deploy.export import export as make
    from raysft.display.predictions import export_lines
    from raysft.storage import storage_path

    with Watcher(output(), "", shown=not as_json) as watcher:
        made = make(
            storage_path(model),
            kind,
            storage_path(out) if out else None,
            storage_path(data) if data else None,
            watcher.progress,
            trust_code,
        )
    if as_json:
        output().json(made)
        return
    for line in export_lines(made):
        output().line(line)
