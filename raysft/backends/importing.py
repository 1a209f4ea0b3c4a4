"""`raysft data import`: images become a data set of shards, on a Ray of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raysft.backends.local_session import silent_ray
from raysft.cluster.local import this_node
from raysft.console import Output, Watcher
from raysft.errors import UserError
from raysft.job.spec import parse_colour
from raysft.storage import storage_path

KINDS = ("imagefolder", "cifar10", "digits")
POLICIES = ("fail", "skip")


@dataclass(frozen=True)
class ImportRequest:
    """What `raysft data import` is asked for."""

    kind: str
    path: str | None
    out: str
    test: str | None
    on_bad_image: str
    background: str


def import_images(request: ImportRequest, output: Output, show_progress: bool) -> None:
    """Make the data set; raises UserError for what a person has to correct."""
    from raysft.data.importer import download_and_list, import_listing, refuse_existing
    from raysft.data.sources import Source

    if request.kind not in KINDS:
        raise UserError(request.kind, "is not a kind of data", f"give {' | '.join(KINDS)}")
    policy = _policy(request.on_bad_image)
    try:
        background = parse_colour(request.background)
    except ValueError as error:
        raise UserError(f"--background {request.background}", str(error)) from None
    out = storage_path(request.out)
    # Before a download of hours, not after it.
    refuse_existing(out)
    with Watcher(output, "", shown=show_progress) as watcher:
        # Before Ray starts: what is wrong with the files is said at once.
        source = Source(request.kind, request.path, request.test, background)
        listing = download_and_list(source, watcher.progress)
        with silent_ray(this_node(), output):
            import_listing(listing, out, policy, watcher.progress)


def _policy(given: str) -> Literal["fail", "skip"]:
    if given not in POLICIES:
        raise UserError(
            f"--on-bad-image {given}", "is not a policy", f"give {' | '.join(POLICIES)}"
        )
    return "skip" if given == "skip" else "fail"
