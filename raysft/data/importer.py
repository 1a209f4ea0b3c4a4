"""A source of images to a data set, on Ray Data: one task a shard, restartable, complete or
absent.
"""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial as partial_of
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raysft.data import cifar
from raysft.data.decoding import (
    WHITE,
    Colour,
    Decoding,
    ValueSpan,
    choose_ranges,
    describe_ranges,
    hex_colour,
    parse_decoding,
    warn_of_outliers,
)
from raysft.data.folders import join_names
from raysft.data.images import QUIRKS, describe_quirks
from raysft.data.names import readable
from raysft.data.shards import (
    DATASET_FORMAT,
    MANIFEST,
    ImageSpec,
    Manifest,
    ShardFile,
    Split,
    read_manifest,
    write_manifest,
    write_shard,
)
from raysft.data.sources import Listing, list_source, pixel_sums, read_spans
from raysft.data.walk import FileCounts
from raysft.errors import DataError
from raysft.job.spec import Data
from raysft.storage import (
    RemotePath,
    StoragePath,
    locked,
    remove_file,
    remove_folder,
    sha256,
    storage_path,
    write_text,
)

RANGES = "ranges.json"  # of an import under way
SPAN_FILES = 64  # whose values are looked at in one task

ImportProgress = Callable[[str, int, int], None]


def cache_folder() -> Path:
    """Where downloads and imported data sets are kept: $RAYSFT_CACHE, else raysft/ in the user's
    cache folder.
    """
    given = os.environ.get("RAYSFT_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(given).expanduser() if given else base.expanduser() / "raysft"


def ensure_dataset(
    data: Data,
    progress: ImportProgress,
    cache: StoragePath | None = None,
    before_import: Callable[[], None] | None = None,
) -> StoragePath:
    """The folder of shards for the data a job names, imported on first use to `cache`, which every
    node must reach.

    Needs Ray when there is something to import, and calls `before_import` then; raises DataError.
    """
    if data.source == "shards":
        return storage_path(data.path or "")
    listing = download_and_list(
        data.source, data.path, data.test_path, progress, data.background_rgb
    )
    behind = (
        ""
        if data.background_rgb == WHITE
        else f"-on{hex_colour(data.background_rgb).replace('#', '-')}"
    )
    name = f"{data.source}-{data.on_bad_image}{behind}-{listing.fingerprint[:16]}-v{DATASET_FORMAT}"
    folder = (cache or cache_folder() / "datasets") / name
    if not (folder / MANIFEST).is_file():
        if before_import is not None:
            before_import()
        import_listing(listing, folder, data.on_bad_image, progress)
    return folder


def import_dataset(
    kind: str,
    path: str | None,
    out: StoragePath,
    test: str | None,
    on_bad_image: Literal["fail", "skip"],
    progress: ImportProgress,
    background: Colour = WHITE,
) -> Manifest:
    """Import a source into the folder `out`, which must not be there yet. Needs Ray; raises
    DataError.
    """
    refuse_existing(out)
    return import_listing(
        download_and_list(kind, path, test, progress, background), out, on_bad_image, progress
    )


def refuse_existing(out: StoragePath) -> None:
    """Raise DataError when there is something where a data set is to be made."""
    taken = (out / MANIFEST).is_file() if isinstance(out, RemotePath) else out.exists()
    if taken:
        raise DataError(str(out), "is there already", "remove it or give another --out")


def download_source(kind: str, path: str | None, progress: ImportProgress) -> None:
    """Download a source that has no path and is not here yet; raises DataError. Needs no Ray."""
    if kind == "cifar10" and path is None:
        cifar.download(cifar.locate(None, cache_folder()), progress)


def download_and_list(
    kind: str,
    path: str | None,
    test: str | None,
    progress: ImportProgress,
    background: Colour = WHITE,
) -> Listing:
    """The listing of a source, downloaded first where that is needed; raises DataError.

    background: what is behind transparent pixels.
    """
    download_source(kind, path, progress)
    listing = list_source(kind, path, test, cache_folder())
    return replace(listing, image=replace(listing.image, decoding=Decoding(background)))


def import_listing(
    listing: Listing,
    out: StoragePath,
    on_bad_image: Literal["fail", "skip"],
    progress: ImportProgress,
) -> Manifest:
    """Write all chunks as shards, then the manifest. What an interrupted import wrote is taken up
    again.

    On a disk that happens beside `out`, and ends with a rename; on an object store, which cannot
    rename folders, in `out`, which is a data set once its manifest is there.
    """
    with _one_at_a_time(out):
        return _import(listing, out, on_bad_image, progress)


@contextmanager
def _one_at_a_time(out: StoragePath) -> Iterator[None]:
    """Let one process of this machine import to `out`; another one waits and then finds it done."""
    if isinstance(out, RemotePath):
        yield
        return
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out.with_name(f".{out.name}.lock")))
        except OSError as error:
            raise DataError(
                str(out), f"cannot be made ({error.strerror})", "give a folder that can"
            ) from None
        yield


def _import(
    listing: Listing,
    out: StoragePath,
    on_bad_image: Literal["fail", "skip"],
    progress: ImportProgress,
) -> Manifest:
    if (out / MANIFEST).is_file():
        return read_manifest(out)
    partial = out if isinstance(out, RemotePath) else out.with_name(out.name + ".partial")
    _prepare(partial, listing, on_bad_image)
    listing = _with_ranges(partial, listing, progress)
    try:
        done = _write_all(partial, listing, on_bad_image, progress)
        manifest = _manifest(listing, done)
    except DataError:
        remove_folder(partial)  # nothing half-written where the images are wrong
        raise
    for file in (*(record_path(partial / n["path"]) for n in done), partial / "source.json"):
        remove_file(file)
    if (partial / RANGES).is_file():
        remove_file(partial / RANGES)
    write_manifest(partial, manifest)
    if isinstance(out, Path) and isinstance(partial, Path):
        os.rename(partial, out)
    return read_manifest(out)


def _prepare(partial: StoragePath, listing: Listing, on_bad_image: str) -> None:
    """Keep the partial folder only if it was made from the same source in the same way."""
    identity = json.dumps(
        [DATASET_FORMAT, listing.fingerprint, asdict(listing.image), on_bad_image]
    )
    note = partial / "source.json"
    if partial.exists() and not (note.is_file() and note.read_text() == identity):
        remove_folder(partial)
    if isinstance(partial, Path):
        for split in listing.chunks:
            (partial / split).mkdir(parents=True, exist_ok=True)
    write_text(note, identity)


def _with_ranges(partial: StoragePath, listing: Listing, progress: ImportProgress) -> Listing:
    """The listing with the range of each kind of sample of more than 8 bits, which all shards have
    in common.

    It has to be known before the first shard is written, so those images are read twice.
    """
    how = listing.image.decoding
    note = partial / RANGES
    if note.is_file():
        stored = json.loads(note.read_text())
        return _ranged(listing, parse_decoding(stored), stored.get("notes", ()))
    files = [
        file
        for chunks in listing.chunks.values()
        for chunk in chunks
        for file in chunk.files_to_range()
    ]
    if not files:
        return listing
    spans = list(_spans(files, listing.everywhere, progress))
    found, told = replace(how, ranges=choose_ranges(spans)), warn_of_outliers(spans)
    write_text(note, json.dumps(found.document() | {"notes": told}))
    return _ranged(listing, found, told)


def _ranged(listing: Listing, how: Decoding, told: Sequence[str]) -> Listing:
    return replace(
        listing, image=replace(listing.image, decoding=how), notes=(*listing.notes, *told)
    )


def _spans(files: list[str], everywhere: bool, progress: ImportProgress) -> Iterator[ValueSpan]:
    """The values that the images hold, read on all CPUs."""
    import ray.data

    groups = [
        {"files": pickle.dumps(files[i : i + SPAN_FILES])} for i in range(0, len(files), SPAN_FILES)
    ]
    tasks = ray.data.from_items(groups, override_num_blocks=len(groups))
    done = 0
    for row in tasks.map(_spans_of_group, num_cpus=0, **_where(everywhere)).iter_rows():
        done += row["files"]
        progress("look for the range of values", done, len(files))
        yield from (ValueSpan(**span) for span in json.loads(row["spans"]))


def _spans_of_group(row: dict[str, Any]) -> dict[str, Any]:
    files = pickle.loads(row["files"])
    return {"files": len(files), "spans": json.dumps([asdict(span) for span in read_spans(files)])}


def _where(everywhere: bool) -> dict[str, Any]:
    """On which nodes tasks of Ray Data run that read the source, and how many at once."""
    import ray.data

    at_once = ray.data.TaskPoolStrategy(size=max(1, int(ray.cluster_resources().get("CPU", 1))))
    return {"compute": at_once} | ({} if everywhere else {"scheduling_strategy": _here()})


def _write_all(
    partial: StoragePath, listing: Listing, on_bad_image: str, progress: ImportProgress
) -> list[dict[str, Any]]:
    """One note a shard: split, path, rows, sha256, sums of pixels, bad files."""
    import ray.data

    from raysft.ray_calls import check_processes_start

    total = sum(listing.rows.values())
    notes: list[dict[str, Any]] = []
    waiting = []
    for split, chunks in listing.chunks.items():
        for index, chunk in enumerate(chunks):
            path = partial / split / f"{index:04d}.parquet"
            stored = _note_of(path)
            if stored is not None:
                notes.append(stored)
            else:
                waiting.append({"split": split, "path": str(path), "chunk": pickle.dumps(chunk)})
    rows_done = sum(note["rows"] for note in notes)
    progress("import", rows_done, total)
    if waiting:
        check_processes_start()
        tasks = ray.data.from_items(waiting, override_num_blocks=len(waiting))
        written = tasks.map(
            partial_of(_write_chunk, spec=listing.image, on_bad_image=on_bad_image),
            num_cpus=0,
            **_where(listing.everywhere),
        )
        for row in written.iter_rows():
            note = json.loads(row["note"])
            if note["fatal"]:
                raise DataError(*note["fatal"])
            if note["bad"] and on_bad_image == "fail":
                raise _bad_image(note["bad"])
            notes.append(note)
            rows_done += note["rows"] + len(note["bad"])
            progress("import", rows_done, total)
    return notes


def _here() -> Any:
    """This node: what was downloaded lies on its disk alone. It may be a head that has no CPUs to
    give.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _bad_image(bad: Sequence[tuple[str, str]]) -> DataError:
    file, what = bad[0]
    others = [readable(other) for other, _ in bad[1:]]
    also = f"; so are {join_names(others)}" if others else ""
    return DataError(
        readable(file), what + also, "repair or remove them, or set data.on_bad_image to skip"
    )


def _write_chunk(row: dict[str, Any], spec: ImageSpec, on_bad_image: str) -> dict[str, Any]:
    """The task of Ray Data: read one chunk, write its shard and then its note. Errors come back as
    bad files.
    """
    path = storage_path(row["path"])
    try:
        rows = pickle.loads(row["chunk"]).read(spec)
    except DataError as error:
        return {"note": json.dumps({"fatal": [error.where, error.what, error.todo]})}
    note: dict[str, Any] = {
        "split": row["split"],
        "bad": list(rows.bad),
        "rows": len(rows.ids),
        "fatal": None,
    }
    if rows.bad and on_bad_image == "fail":
        return {"note": json.dumps(note)}
    note |= asdict(write_shard(path, spec, rows.ids, rows.images, rows.labels))
    note["decoded"] = rows.decoded
    note["class_rows"] = np.bincount(rows.labels).tolist()
    total, squares = rows.pixel_sum, rows.pixel_square_sum
    if total is None or squares is None:
        total, squares = pixel_sums(rows.images)
    note |= {"pixel_sum": list(total), "pixel_square_sum": list(squares)}
    write_text(record_path(path), json.dumps(note))
    return {"note": json.dumps(note)}


def record_path(shard: StoragePath) -> StoragePath:
    """Where the note of a finished shard lies until the import is complete."""
    return shard.parent / f"{shard.name.partition('.')[0]}.json"


def _note_of(path: StoragePath) -> dict[str, Any] | None:
    """The note of a shard that an earlier, interrupted import finished."""
    try:
        note = json.loads(record_path(path).read_text())
        return note if sha256(path) == note["sha256"] else None
    except (OSError, ValueError, KeyError):
        return None


def _manifest(listing: Listing, notes: list[dict[str, Any]]) -> Manifest:
    splits = {}
    for split in listing.chunks:
        mine = sorted((n for n in notes if n["split"] == split), key=lambda n: n["path"])
        files = tuple(ShardFile(n["path"], n["rows"], n["sha256"]) for n in mine if n["rows"])
        splits[split] = Split(sum(f.rows for f in files), files)
        if not files:
            raise DataError(listing.where, f"has no readable {split} image")
    train = [n for n in notes if n["split"] == "train"]
    rows = splits["train"].rows
    mean = _total(train, "pixel_sum") / rows
    spread = np.sqrt(np.maximum(_total(train, "pixel_square_sum") / rows - mean**2, 0))
    std = np.where(spread > 0, spread, 1.0)  # a channel without any variation is only shifted
    decoded = {
        key: count for key in QUIRKS if (count := sum(n["decoded"].get(key, 0) for n in notes))
    }
    bad = [file for n in notes for file in n["bad"]]
    manifest = Manifest(
        listing.classes, listing.image, tuple(mean.tolist()), tuple(std.tolist()), splits, len(bad)
    )
    return replace(
        manifest,
        source=listing.where,
        counts=_with_unreadable(listing, bad),
        notes=(
            *listing.notes,
            *_emptied(listing, notes),
            *describe_pixels(listing.image.decoding, decoded),
        ),
        decoded=decoded,
    )


def describe_pixels(how: Decoding, decoded: dict[str, int]) -> list[str]:
    """What was done to pixels, in words."""
    return [*describe_ranges(how), *describe_quirks(decoded, how)]


def _with_unreadable(listing: Listing, bad: Sequence[tuple[str, str]]) -> tuple[FileCounts, ...]:
    """The counts of the listing, with the images that turned out to be unreadable among those left
    out.
    """
    counts = copy.deepcopy(listing.counts)
    folders = {each.folder: each for each in counts}
    for file, _ in bad:
        inside = next(
            (folders[readable(p)] for p in Path(file).parents if readable(p) in folders), None
        )
        if inside is not None:
            inside.unreadable(Path(file))
    return counts


def _emptied(listing: Listing, notes: list[dict[str, Any]]) -> list[str]:
    """Notes on the classes that unreadable images took from val or test; raises DataError for those
    of train.

    A class without an example would still be an answer of the model, and count in none of its
    metrics.
    """
    found = []
    for split in listing.chunks:
        rows = np.zeros(len(listing.classes), np.int64)
        for note in notes:
            if note["split"] == split:
                rows[: len(note["class_rows"])] += note["class_rows"]
        before = set(listing.labels.get(split, ()))
        lost = [name for i, name in enumerate(listing.classes) if not rows[i] and i in before]
        if lost and split == "train":
            raise DataError(
                listing.where,
                f"has no readable training image of {join_names(lost)}",
                "repair the images, or remove the folder",
            )
        if lost:
            found.append(
                f"{split} has no readable image of {join_names(lost)}: its metrics are over the "
                "other classes"
            )
    return found


def _total(notes: list[dict[str, Any]], key: str) -> np.ndarray:
    """(3,) sums over shards, the same in whatever order they were written."""
    return np.array([math.fsum(note[key][channel] for note in notes) for channel in range(3)])
