"""`raysft data`: make data sets of shards, and look at them."""

from __future__ import annotations

from typing import Annotated

import typer

from raysft.cli.options import AsJson, Debug
from raysft.cli.session import output

app = typer.Typer(no_args_is_help=True, help="Make data sets of shards, and look at them.")


@app.command(
    "import",
    epilog="Example: raysft data import imagefolder photos/train --test photos/test --out D",
)
def data_import(
    kind: Annotated[str, typer.Argument(help="imagefolder | cifar10 | digits", show_default=False)],
    out: Annotated[
        str, typer.Option(help="The folder to make, or a URI (s3://…, gs://…).", show_default=False)
    ],
    path: Annotated[
        str | None,
        typer.Argument(
            help="Where the images are; not needed for digits and cifar10.", show_default=False
        ),
    ] = None,
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
    """Make a data set of shards from images. Run again after an interruption, it continues."""
    from raysft.backends.importing import ImportRequest, import_images
    from raysft.display.dataset import show_dataset

    request = ImportRequest(kind, path, out, test, on_bad_image, background)
    import_images(request, output(), show_progress=not as_json)
    show_dataset(out, as_json, output())


@app.command("show", epilog="Examples: raysft data show D --json\n\nraysft data show photos")
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
    """Show what a data set holds, or how a folder of images would be read, and what is left out."""
    from raysft.display.dataset import show_data

    show_data(folder, test, as_json, output())
