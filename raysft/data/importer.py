"""A source of images to a data set, on Ray Data: one task a shard, restartable, all or nothing."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial as partial_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from raysft.data import cifar
from raysft.data.cifar import ImportProgress
from raysft.data.decoding import (
    WHITE,
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
from raysft.data.sources import (
    BadFile,
    ChunkRows,
    Listing,
    Source,
    list_source,
    pixel_sums,
    read_spans,
)
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

if TYPE_CHECKING:
    from ray.data import TaskPoolStrategy
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SOURCE_NOTE = "source.json"  # of an import under way: from what and how it is made
RANGES = "ranges.json"  # of an import under way
SPAN_FILES = 64  # whose values are looked at in one task

OnBadImage = Literal["fail", "skip"]
RayRow = dict[str, Any]  # as Ray Data annotates what it hands to a task and takes from it


@dataclass(frozen=True)
class ShardRecord:
    """What became of one chunk; lies as JSON beside its shard until the import is complete."""

    split: str
    rows: int
    bad: list[BadFile]
    path: str = ""
    """Of the shard, relative to the data set; nothing where none was written."""
    sha256: str = ""
    decoded: dict[str, int] = field(default_factory=dict)
    class_rows: list[int] = field(default_factory=list)
    pixel_sum: list[float] = field(default_factory=list)
    pixel_square_sum: list[float] = field(default_factory=list)
    fatal: tuple[str, str, str] | None = None
    """Place, problem and remedy of what ends the import."""

    def to_json(self) -> str:
        """Every float comes back as it was."""
        return json.dumps(asdict(self))


class ChunkTask(TypedDict):
    """A row of Ray Data: one chunk, pickled, and the shard to make of it."""

    split: str
    path: str
    chunk: bytes


class SpanTask(TypedDict):
    """A row of Ray Data: pickled names of files whose values are looked at."""

    files: bytes


class _Placement(TypedDict, total=False):
    compute: TaskPoolStrategy
    scheduling_strategy: NodeAffinitySchedulingStrategy


def cache_folder() -> Path:
    """Of downloads and imported data sets: $RAYSFT_CACHE, or raysft/ in the user's cache folder."""
    given = os.environ.get("RAYSFT_CACHE")
    if given:
        return Path(given).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "raysft"


def ensure_dataset(
    data: Data,
    progress: ImportProgress,
    cache: StoragePath | None = None,
    before_import: Callable[[], None] | None = None,
) -> StoragePath:
    """The folder of shards for the data a job names, imported to `cache` on first use.

    Every node must reach `cache`. Needs Ray when there is something to import, and calls
    `before_import` then; raises DataError.
    """
    if data.source == "shards":
        return storage_path(data.path or "")
    source = Source(data.source, data.path, data.test_path, data.background_rgb)
    listing = download_and_list(source, progress)
    folder = (cache or cache_folder() / "datasets") / _cache_name(data, listing)
    if not (folder / MANIFEST).is_file():
        if before_import is not None:
            before_import()
        import_listing(listing, folder, data.on_bad_image, progress)
    return folder


def _cache_name(data: Data, listing: Listing) -> str:
    """Names all that the content of an import depends on, so that two jobs may share it."""
    background = ""
    # Left out where it is the usual one, so that what was imported before there was a choice is
    # found again.
    if data.background_rgb != WHITE:
        background = f"-on{hex_colour(data.background_rgb).replace('#', '-')}"
    kind = f"{data.source}-{data.on_bad_image}{background}"
    return f"{kind}-{listing.fingerprint[:16]}-v{DATASET_FORMAT}"


def import_dataset(
    source: Source, out: StoragePath, on_bad_image: OnBadImage, progress: ImportProgress
) -> Manifest:
    """Import a source into the folder `out`, which must not exist yet; raises DataError.

    Needs Ray.
    """
    refuse_existing(out)
    listing = download_and_list(source, progress)
    return import_listing(listing, out, on_bad_image, progress)


def refuse_existing(out: StoragePath) -> None:
    """Raise DataError when there is something where a data set is to be made."""
    # An object store has no folders: what an interrupted import left there may be completed.
    taken = (out / MANIFEST).is_file() if isinstance(out, RemotePath) else out.exists()
    if taken:
        raise DataError(str(out), "already exists", "remove it or give another --out")


def download_source(kind: str, path: str | None, progress: ImportProgress) -> None:
    """Download a source that has no path and is not here yet; raises DataError. Needs no Ray."""
    if kind != "cifar10" or path is not None:
        return
    archive = cifar.locate(None, cache_folder())
    cifar.download(archive, progress)


def download_and_list(source: Source, progress: ImportProgress) -> Listing:
    """The listing of a source, downloaded first where that is needed; raises DataError."""
    download_source(source.kind, source.path, progress)
    listing = list_source(source, cache_folder())
    return _with_decoding(listing, Decoding(source.background))


def _with_decoding(listing: Listing, decoding: Decoding) -> Listing:
    image = replace(listing.image, decoding=decoding)
    return replace(listing, image=image)


def import_listing(
    listing: Listing,
    out: StoragePath,
    on_bad_image: OnBadImage,
    progress: ImportProgress,
) -> Manifest:
    """Write all chunks as shards, then the manifest; resumes an interrupted import.

    On a disk that happens beside `out`, and ends with a rename; on an object store, which cannot
    rename folders, in `out`, which is a data set once its manifest is there.
    """
    with _one_at_a_time(out):
        # Another process may have made it meanwhile.
        if (out / MANIFEST).is_file():
            return read_manifest(out)
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
                str(out), f"cannot be created ({error.strerror})", "give a folder that can be"
            ) from None
        yield


def _import(
    listing: Listing,
    out: StoragePath,
    on_bad_image: OnBadImage,
    progress: ImportProgress,
) -> Manifest:
    partial = out if isinstance(out, RemotePath) else out.with_name(out.name + ".partial")
    _prepare(partial, listing, on_bad_image)
    listing = _with_ranges(partial, listing, progress)
    try:
        done = _write_all(partial, listing, on_bad_image, progress)
        manifest = _build_manifest(listing, done)
    except DataError:
        remove_folder(partial)  # nothing half-written where the images are wrong
        raise
    for record in done:
        remove_file(record_path(partial / record.path))
    remove_file(partial / SOURCE_NOTE)
    if (partial / RANGES).is_file():
        remove_file(partial / RANGES)
    # Last of all files, for it is what says that the data set is complete.
    write_manifest(partial, manifest)
    if isinstance(out, Path) and isinstance(partial, Path):
        os.rename(partial, out)
    return read_manifest(out)


def _prepare(partial: StoragePath, listing: Listing, on_bad_image: OnBadImage) -> None:
    """Keep the partial folder only if it was made from the same source in the same way."""
    made_from = [DATASET_FORMAT, listing.fingerprint, asdict(listing.image), on_bad_image]
    identity = json.dumps(made_from)
    note = partial / SOURCE_NOTE
    if partial.exists():
        same = note.is_file() and note.read_text() == identity
        if not same:
            remove_folder(partial)
    if isinstance(partial, Path):
        for split in listing.chunks:
            (partial / split).mkdir(parents=True, exist_ok=True)
    write_text(note, identity)


# --- ranges of samples -------------------------------------------------------------------------


def _with_ranges(partial: StoragePath, listing: Listing, progress: ImportProgress) -> Listing:
    """The listing with the range of each kind of sample of more than 8 bits.

    All shards have it in common, so it has to be known before the first is written, and those
    images are read twice.
    """
    stored = partial / RANGES
    if stored.is_file():
        document = json.loads(stored.read_text())
        return _ranged(listing, parse_decoding(document), document.get("notes", ()))
    files: list[str] = []
    for chunks in listing.chunks.values():
        for chunk in chunks:
            files += chunk.files_to_range()
    if not files:
        return listing
    spans = list(_read_all_spans(files, listing.everywhere, progress))
    decoding = replace(listing.image.decoding, ranges=choose_ranges(spans))
    warnings = warn_of_outliers(spans)
    write_text(stored, json.dumps({**decoding.document(), "notes": warnings}))
    return _ranged(listing, decoding, warnings)


def _ranged(listing: Listing, decoding: Decoding, warnings: Sequence[str]) -> Listing:
    notes = (*listing.notes, *warnings)
    return replace(_with_decoding(listing, decoding), notes=notes)


def _read_all_spans(
    files: list[str], everywhere: bool, progress: ImportProgress
) -> Iterator[ValueSpan]:
    """The values that the images hold, read on all CPUs."""
    import ray.data

    groups: list[SpanTask] = []
    for start in range(0, len(files), SPAN_FILES):
        # Pickled, for names may hold bytes that are not UTF-8, which no Arrow string can.
        groups.append({"files": pickle.dumps(files[start : start + SPAN_FILES])})
    tasks = ray.data.from_items(groups, override_num_blocks=len(groups))
    done = 0
    for row in tasks.map(_spans_of_group, num_cpus=0, **_placement(everywhere)).iter_rows():
        done += row["files"]
        progress("look for the range of values", done, len(files))
        for span in json.loads(row["spans"]):
            yield ValueSpan(**span)


def _spans_of_group(row: RayRow) -> RayRow:
    """The task of Ray Data, of a `SpanTask`: how many files there were, and their spans as JSON."""
    files = pickle.loads(row["files"])
    spans = [asdict(span) for span in read_spans(files)]
    return {"files": len(files), "spans": json.dumps(spans)}


# --- shards ------------------------------------------------------------------------------------


def _placement(everywhere: bool) -> _Placement:
    """On which nodes tasks of Ray Data run that read the source, and how many at once."""
    import ray.data

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray annotates none
    # The tasks reserve no CPU, so nothing else would limit them to as many as there are.
    cpus = max(1, int(resources.get("CPU", 1)))
    placement: _Placement = {"compute": ray.data.TaskPoolStrategy(size=cpus)}
    if not everywhere:
        placement["scheduling_strategy"] = _on_this_node()
    return placement


def _on_this_node() -> NodeAffinitySchedulingStrategy:
    """What was downloaded lies on the disk of this node alone, which may be a head without CPUs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _write_all(
    partial: StoragePath, listing: Listing, on_bad_image: OnBadImage, progress: ImportProgress
) -> list[ShardRecord]:
    """The records of all shards, those of an interrupted import first."""
    total = sum(listing.rows.values())
    records: list[ShardRecord] = []
    waiting: list[ChunkTask] = []
    for split, chunks in listing.chunks.items():
        for index, chunk in enumerate(chunks):
            path = partial / split / f"{index:04d}.parquet"
            finished = _read_record(path)
            if finished is None:
                waiting.append({"split": split, "path": str(path), "chunk": pickle.dumps(chunk)})
            else:
                records.append(finished)
    rows_done = sum(record.rows for record in records)
    progress("import", rows_done, total)
    for record in _write_waiting(waiting, listing, on_bad_image):
        if record.fatal:
            raise DataError(*record.fatal)
        if record.bad and on_bad_image == "fail":
            raise _bad_image(record.bad)
        records.append(record)
        rows_done += record.rows + len(record.bad)
        progress("import", rows_done, total)
    return records


def _write_waiting(
    waiting: list[ChunkTask], listing: Listing, on_bad_image: OnBadImage
) -> Iterator[ShardRecord]:
    if not waiting:
        return
    import ray.data

    from raysft.ray_calls import check_processes_start

    check_processes_start()
    tasks = ray.data.from_items(waiting, override_num_blocks=len(waiting))
    write = partial_of(_write_chunk, spec=listing.image, on_bad_image=on_bad_image)
    written = tasks.map(write, num_cpus=0, **_placement(listing.everywhere))
    for row in written.iter_rows():
        yield ShardRecord(**json.loads(row["record"]))


def _bad_image(bad: Sequence[BadFile]) -> DataError:
    file, problem = bad[0]
    others = [readable(other) for other, _ in bad[1:]]
    also = f"; so are {join_names(others)}" if others else ""
    return DataError(
        readable(file), problem + also, "repair or remove them, or set data.on_bad_image to skip"
    )


def _write_chunk(row: RayRow, spec: ImageSpec, on_bad_image: OnBadImage) -> RayRow:
    """The task of Ray Data, of a `ChunkTask`: write its shard and then its `ShardRecord`.

    Errors come back in the record: raised, Ray would wrap them and print where in its own code.
    """
    path = storage_path(row["path"])
    try:
        rows = pickle.loads(row["chunk"]).read(spec)
    except DataError as error:
        fatal = (error.where, error.what, error.todo)
        return {"record": ShardRecord(row["split"], 0, [], fatal=fatal).to_json()}
    record = ShardRecord(row["split"], len(rows.ids), list(rows.bad))
    if rows.bad and on_bad_image == "fail":
        return {"record": record.to_json()}
    record = _write_rows(record, rows, path, spec)
    # After the shard: a record says that its shard is whole.
    write_text(record_path(path), record.to_json())
    return {"record": record.to_json()}


def _write_rows(
    record: ShardRecord, rows: ChunkRows, path: StoragePath, spec: ImageSpec
) -> ShardRecord:
    shard = write_shard(path, spec, rows.ids, rows.images, rows.labels)
    total, squares = rows.pixel_sum, rows.pixel_square_sum
    if total is None or squares is None:
        # Of raw images; those that stay encoded were summed as they were decoded.
        total, squares = pixel_sums(np.asarray(rows.images))
    return replace(
        record,
        path=shard.path,
        sha256=shard.sha256,
        decoded=rows.decoded,
        class_rows=np.bincount(rows.labels).tolist(),
        pixel_sum=total,
        pixel_square_sum=squares,
    )


def record_path(shard: StoragePath) -> StoragePath:
    """Where the record of a finished shard lies until the import is complete."""
    stem, _, _ = shard.name.partition(".")
    return shard.parent / f"{stem}.json"


def _read_record(shard: StoragePath) -> ShardRecord | None:
    """The record of a shard that an earlier, interrupted import finished."""
    try:
        record = ShardRecord(**json.loads(record_path(shard).read_text()))
        return record if sha256(shard) == record.sha256 else None
    except (OSError, ValueError, TypeError):
        # Not there, or not what was written: the chunk is read again.
        return None


# --- the manifest ------------------------------------------------------------------------------


def _build_manifest(listing: Listing, records: list[ShardRecord]) -> Manifest:
    splits = {split: _collect_split(listing, records, split) for split in listing.chunks}
    train = [record for record in records if record.split == "train"]
    mean, std = _mean_and_std(train, splits["train"].rows)
    bad = [file for record in records for file in record.bad]
    decoded = _sum_quirks(records)
    pixel_notes = describe_pixels(listing.image.decoding, decoded)
    return Manifest(
        listing.classes,
        listing.image,
        mean,
        std,
        splits,
        skipped=len(bad),
        source=listing.where,
        counts=_with_unreadable(listing, bad),
        notes=(*listing.notes, *_check_classes(listing, records), *pixel_notes),
        decoded=decoded,
    )


def _collect_split(listing: Listing, records: list[ShardRecord], split: str) -> Split:
    # In the order of their paths, for tasks end in any order.
    mine = [record for record in records if record.split == split]
    mine.sort(key=lambda record: record.path)
    files = tuple(ShardFile(each.path, each.rows, each.sha256) for each in mine if each.rows)
    if not files:
        raise DataError(listing.where, f"has no readable {split} image")
    return Split(sum(file.rows for file in files), files)


def _mean_and_std(
    train: list[ShardRecord], rows: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    mean = _total([record.pixel_sum for record in train]) / rows
    squares = _total([record.pixel_square_sum for record in train]) / rows
    # Rounding may leave a little less than nothing of a channel without any variation, which is
    # only shifted.
    spread = np.sqrt(np.maximum(squares - mean**2, 0))
    std = np.where(spread > 0, spread, 1.0)
    return _triple(mean), _triple(std)


def _total(sums: list[list[float]]) -> np.ndarray:
    """(3,) sums over shards."""
    # fsum rounds once: the result is the same in whatever order the shards were written.
    by_channel = zip(*sums, strict=True)
    return np.array([math.fsum(channel) for channel in by_channel])


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = values.tolist()
    return red, green, blue


def _sum_quirks(records: list[ShardRecord]) -> dict[str, int]:
    found = {}
    for quirk in QUIRKS:
        count = sum(record.decoded.get(quirk, 0) for record in records)
        if count:
            found[quirk] = count
    return found


def describe_pixels(decoding: Decoding, decoded: dict[str, int]) -> list[str]:
    """What was done to pixels, in words."""
    ranges = describe_ranges(decoding)
    return ranges + describe_quirks(decoded, decoding)


def _with_unreadable(listing: Listing, bad: Sequence[BadFile]) -> tuple[FileCounts, ...]:
    """The counts of the listing, with unreadable images among those left out."""
    counts = copy.deepcopy(listing.counts)
    by_folder = {each.folder: each for each in counts}
    for file, _ in bad:
        for folder in Path(file).parents:
            inside = by_folder.get(readable(folder))
            if inside is not None:
                inside.unreadable(Path(file))
                break
    return counts


def _check_classes(listing: Listing, records: list[ShardRecord]) -> list[str]:
    """Notes on the classes that unreadable images took from val or test.

    Raises DataError for those of train: a class without an example would still be an answer of the
    model, and count in none of its metrics.
    """
    found = []
    for split in listing.chunks:
        lost = _lost_classes(listing, records, split)
        if not lost:
            continue
        if split == "train":
            raise DataError(
                listing.where,
                f"has no readable training image of {join_names(lost)}",
                "repair the images, or remove the folder",
            )
        found.append(
            f"{split} has no readable image of {join_names(lost)}: its metrics are over the "
            "other classes"
        )
    return found


def _lost_classes(listing: Listing, records: list[ShardRecord], split: str) -> list[str]:
    """The classes of which a split had images, but none that could be read."""
    rows = np.zeros(len(listing.classes), np.int64)
    for record in records:
        if record.split == split:
            # A shard counts classes up to the largest label that it holds.
            rows[: len(record.class_rows)] += record.class_rows
    before = listing.labels.get(split, frozenset())
    lost = []
    for label, name in enumerate(listing.classes):
        if label in before and not rows[label]:
            lost.append(name)
    return lost
