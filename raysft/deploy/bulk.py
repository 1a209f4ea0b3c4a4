"""A delivered model on any number of images, on Ray Data: streamed, resumable, one row an image in
one Parquet file.

The rows of each chunk of images are written to a part beside the result, whole or not at all, and
joined at the end. A prediction that was interrupted goes on with the chunks that have no part yet.
A bad image is a row with an error.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysft.data.names import as_utf8
from raysft.data.parquet import read_plain
from raysft.deploy.image_sources import Chunk, Item, Source
from raysft.deploy.prediction import Predicted
from raysft.errors import DataError, RaysftError, RunError, UserError
from raysft.results.model import ModelCard, check_trust, read_card
from raysft.storage import (
    RemotePath,
    StoragePath,
    atomic_file,
    read_json,
    remove_folder,
    storage_path,
    write_bytes,
    write_json,
)
from raysft.train.allocator import keep_freed_memory

PLAN = "plan.json"
AGAIN = (
    "make room or get permission to write there, then run the same command again: it continues "
    "where it stopped"
)
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


class _Identity(TypedDict):
    """What must be the same for parts to be of the same prediction."""

    model: str
    source: str
    probabilities: bool


class _ChunkRow(TypedDict):
    """What Ray Data hands to an actor."""

    number: int
    chunk: bytes
    """Pickled: Ray Data holds columns, not objects."""


class ChunkReport(TypedDict):
    """What an actor tells of a chunk; times in seconds of the epoch."""

    images: int
    began: float
    ended: float
    fatal: bytes
    """A pickled error that ends the whole prediction, or nothing."""


def check_out(out: StoragePath) -> None:
    """Raise UserError where there is something where the result is to go."""
    if out.exists():
        raise UserError(str(out), "already exists", "remove it, or give another --out")
    # Not completed by raysft: a person looks for the name that they gave.
    if not str(out).endswith(".parquet"):
        raise UserError(
            f"--out {out}", "is not a Parquet file", "give a name that ends in .parquet"
        )


def predict_all(
    model: StoragePath,
    source: Source,
    out: StoragePath,
    probabilities: bool,
    progress: Progress,
    trust_code: bool = False,
) -> Predicted:
    """Predict all images of `source` on the Ray this process is connected to, and write them to
    `out`.

    probabilities: whether each row also has those of all classes. trust_code: as for
    `raysft.results.model.load_model`, also from the current folder. Continues what an interrupted
    call has left. Raises UserError for a model, images or parts that cannot be used, DataError for
    a shard that is torn, and RunError where the result cannot be written.
    """
    check_out(out)
    card = read_card(model)
    check_trust(model, card, trust_code)
    parts = out.parent / f"{out.name}.parts"
    _prepare(
        parts,
        {
            "model": card.weights_sha256,
            "source": source.fingerprint,
            "probabilities": probabilities,
        },
    )
    # A part is there whole or not at all, so that its being there says that its chunk is done.
    waiting = [i for i in range(len(source.chunks)) if not _part(parts, i).is_file()]
    done = source.images - sum(source.chunks[i].images for i in waiting)
    progress("predict", done, source.images)
    reports: list[ChunkReport] = []
    if waiting:
        # Processes of Ray start elsewhere: a module beside the model is found where the person is.
        import_from = os.getcwd() if trust_code else None
        for report in _run(model, source, parts, waiting, probabilities, import_from):
            reports.append(report)
            done += report["images"]
            progress("predict", done, source.images)
    return _join(parts, out, source, card, _rate(reports))


def _rate(reports: list[ChunkReport]) -> float | None:
    """Images a second from the beginning of the first chunk to the end of the last."""
    if not reports:
        return None
    # Of this call alone: what an interrupted one predicted took time that nobody has measured.
    images = sum(report["images"] for report in reports)
    began = min(report["began"] for report in reports)
    ended = max(report["ended"] for report in reports)
    return images / (ended - began)


def _prepare(parts: StoragePath, identity: _Identity) -> None:
    """Keep the parts that are there only if they are of the same prediction."""
    plan = parts / PLAN
    if plan.is_file():
        try:
            before = read_json(plan)
        except (OSError, ValueError) as error:
            raise UserError(
                str(plan), f"cannot be read ({error})", f"remove {parts} to begin again"
            ) from None
        # The weights' digest, not the model's folder: a model that was moved is the same model.
        changed = [key for key, value in identity.items() if before.get(key) != value]
        if changed:
            raise UserError(
                str(parts),
                f"is of another prediction: different {' and '.join(changed)}",
                "remove it to begin again, or give another --out",
            )
        return
    with _writable(plan):
        # An object store has no folders to make.
        if not isinstance(parts, RemotePath):
            parts.mkdir(parents=True, exist_ok=True)
        write_json(plan, identity)


def _part(parts: StoragePath, number: int) -> StoragePath:
    return parts / f"{number:05d}.parquet"


# --- on Ray Data -------------------------------------------------------------------------------


def _run(
    model: StoragePath,
    source: Source,
    parts: StoragePath,
    waiting: list[int],
    probabilities: bool,
    import_from: str | None,
) -> Iterator[ChunkReport]:
    """Predict chunks with one actor a GPU, or a CPU where there is none; yields what each tells
    when it is done.
    """
    import ray.data

    cpus, gpus = _cluster_resources()
    actors = min(gpus or cpus, len(waiting))
    # A network on a GPU waits for its images: all CPUs decode ahead of the GPUs.
    threads = max(1, cpus // gpus) if gpus else 1
    settings = PredictorSettings(
        str(model), str(parts), source.labelled, probabilities, threads, bool(gpus), import_from
    )
    rows: list[_ChunkRow] = [
        {"number": i, "chunk": pickle.dumps(source.chunks[i])} for i in waiting
    ]
    actor: Any = Predictor  # Ray Data's types know no class that is called with a TypedDict
    # A block a chunk: Ray Data may put several rows in one, which go to one actor together.
    predicted = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        actor,
        fn_constructor_args=(settings,),
        # Two, so that an actor need not wait for its next chunk to be handed over.
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        num_cpus=threads if gpus else 1,
        num_gpus=1 if gpus else 0,
    )
    for row in predicted.iter_rows():
        if row["fatal"]:
            # It came as a value: Ray wraps what an actor raises in errors of its own.
            raise pickle.loads(row["fatal"])
        yield {
            "images": row["images"],
            "began": row["began"],
            "ended": row["ended"],
            "fatal": row["fatal"],
        }


def _cluster_resources() -> tuple[int, int]:
    """(CPUs, GPUs) of the cluster, with Ray made ready to work on them."""
    import ray
    import ray.data

    from raysft.ray_calls import check_processes_start

    # Ray Data would wait without a word for actors that can never start.
    check_processes_start()
    # Bars of Ray's own would be drawn over the one of raysft.
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray has no types there
    return int(resources.get("CPU", 1)), int(resources.get("GPU", 0))


@dataclass(frozen=True)
class PredictorSettings:
    """What an actor is started with; plain values, as they are sent to its process."""

    model: str
    parts: str
    labelled: bool
    probabilities: bool
    threads: int
    """That decode images ahead of the network; one decodes them in between."""
    gpu: bool
    import_from: str | None
    """Where a network of a person's own may be imported from; None: nowhere."""


class Predictor:
    """The actor of Ray Data: takes chunk after chunk, writes and times the part of each."""

    def __init__(self, settings: PredictorSettings) -> None:
        import torch

        from raysft.results.predict import Classifier

        trusted = settings.import_from is not None
        if not settings.gpu:
            # Batches of the same size come and go: returned memory would be faulted in each time.
            keep_freed_memory()
        if settings.import_from is not None:
            # Behind the libraries: a file of that folder must not take the place of one of theirs.
            sys.path.append(settings.import_from)
        # An actor a CPU: with torch's default each would start as many threads as there are CPUs.
        torch.set_num_threads(settings.threads)
        device = "cuda" if settings.gpu else "cpu"
        self.classifier = Classifier(storage_path(settings.model), device, trusted)
        self.parts = storage_path(settings.parts)
        self.labelled = settings.labelled
        self.with_probabilities = settings.probabilities
        self.pool = ThreadPoolExecutor(settings.threads) if settings.threads > 1 else None

    def __call__(self, row: _ChunkRow) -> ChunkReport:
        """Predict a chunk and write its part."""
        began = time.time()
        chunk: Chunk = pickle.loads(row["chunk"])
        try:
            table = self.table(chunk)
            _write_part(_part(self.parts, int(row["number"])), table)
        except RaysftError as error:  # not of one image but of all
            return {"images": 0, "began": began, "ended": began, "fatal": pickle.dumps(error)}
        return {"images": chunk.images, "began": began, "ended": time.time(), "fatal": b""}

    def table(self, chunk: Chunk) -> pa.Table:
        """The rows of a chunk: (image, [label,] class, probability, error[, probabilities])."""
        card = self.classifier.card
        made = [self._rows(items, images) for items, images in self._batches(chunk)]
        return pa.Table.from_pylist(
            list(itertools.chain.from_iterable(made)),
            schema=result_schema(card, self.labelled, self.with_probabilities),
        )

    def _batches(self, chunk: Chunk) -> Iterator[tuple[list[Item], list[np.ndarray | DataError]]]:
        """Items with their decoded images, or why there is none, as many as go through the network
        at once.
        """
        from raysft.results.predict import batch_size_for

        card = self.classifier.card
        items, size = list(chunk.items(card)), batch_size_for(self.classifier.card)
        decoded = self.pool.map(_decoded, items) if self.pool else map(_decoded, items)
        # The pool decodes ahead of what is taken here, while the network has the batch before.
        for start in range(0, len(items), size):
            part = items[start : start + size]
            yield part, list(itertools.islice(decoded, len(part)))

    def _rows(
        self, items: list[Item], images: list[np.ndarray | DataError]
    ) -> Iterator[dict[str, object]]:
        # Bad images are left out of the batch, and put back as rows with an error.
        good = [image for image in images if isinstance(image, np.ndarray)]
        found = iter(self.classifier.probabilities(np.stack(good)) if good else ())
        for item, image in zip(items, images, strict=True):
            row: dict[str, object] = {"image": as_utf8(item.name), "label": item.label}
            if isinstance(image, DataError):
                yield row | {"error": image.what}
                continue
            probabilities = next(found)
            best = int(probabilities.argmax())
            yield row | {
                "class": self.classifier.card.classes[best],
                "probability": probabilities[best],
                "probabilities": probabilities if self.with_probabilities else None,
            }


def _decoded(item: Item) -> np.ndarray | DataError:
    try:
        return item.decode()
    except DataError as error:
        return error


def result_schema(card: ModelCard, labelled: bool, probabilities: bool) -> pa.Schema:
    """The columns of a result; the classes, in the order of `probabilities`, are in its
    metadata.
    """
    # All may be null: a bad image has a name and an error, and nothing else.
    named = {
        "image": pa.string(),
        **({"label": pa.string()} if labelled else {}),
        "class": pa.string(),
        "probability": pa.float32(),
        "error": pa.string(),
    }
    if probabilities:
        # Not a list of fixed size: in one, Parquet cannot hold the nulls of bad images.
        named["probabilities"] = pa.list_(pa.float32())
    about = {"classes": json.dumps(card.classes), "model": card.weights_sha256}
    return pa.schema(list(named.items()), metadata=about)


# --- the end -----------------------------------------------------------------------------------


def _join(
    parts: StoragePath, out: StoragePath, source: Source, card: ModelCard, rate: float | None
) -> Predicted:
    """Make one file of all parts, in the order of the images, and remove them."""
    counts = dict.fromkeys(card.classes, 0)
    images = errors = 0
    writer = None
    with _opened(out) as file:
        for number, chunk in enumerate(source.chunks):
            # One part at a time: the result may be larger than the memory.
            table = _read_part(_part(parts, number), chunk)
            # With checksums, so that a flipped bit of a disk is found by whoever reads the result.
            writer = writer or pq.ParquetWriter(file, table.schema, write_page_checksum=True)
            writer.write_table(table)
            images += len(table)
            errors += len(table) - table["error"].null_count
            for each in table["class"].value_counts().to_pylist():
                if each["values"] is not None:
                    counts[each["values"]] += each["counts"]
        assert writer is not None
        writer.close()
    # Only once the result is there: until then the parts are all that has been predicted.
    remove_folder(parts)
    return Predicted(str(out), images, errors, rate, counts, source.left_out)


@contextmanager
def _opened(out: StoragePath) -> Iterator[IO[bytes] | pa.NativeFile]:
    """A file to write, which is there at its end, whole or not at all; raises RunError where it
    cannot be written.
    """
    with _writable(out):
        if isinstance(out, RemotePath):
            # An object appears when its upload is closed, so nobody sees half of one.
            with out.fs.open_output_stream(out.key) as stream:
                yield stream
        else:
            with atomic_file(out) as beside, beside.open("wb") as file:
                yield file


def _write_part(part: StoragePath, table: pa.Table) -> None:
    # In memory: a chunk's rows are few, and an object store takes them in one request.
    content = io.BytesIO()
    pq.write_table(table, content, write_page_checksum=True)
    with _writable(part):
        write_bytes(part, content.getvalue())


@contextmanager
def _writable(file: StoragePath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(str(file), f"cannot be written ({error.strerror or error})", AGAIN) from None


def _read_part(file: StoragePath, chunk: Chunk) -> pa.Table:
    try:
        # A part may have been damaged between two calls, which may lie days apart.
        table = read_plain(pa.BufferReader(file.read_bytes()), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            str(file),
            f"cannot be read ({str(error).splitlines()[0]})",
            "remove it and run the same command again",
        ) from None
    if len(table) != chunk.images:
        raise RunError(
            str(file),
            f"has {len(table)} rows for {chunk.images} images",
            "remove it and run the same command again",
        )
    return table
