"""The data of a run: imported on first use, checked, split, kept in memory or streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from raysft.data.epochs import keep_or_stream
from raysft.data.importer import describe_pixels, ensure_dataset
from raysft.data.ingest import read_split
from raysft.data.layout import SplitName
from raysft.data.shards import Manifest, read_manifest, verify_checksums
from raysft.data.sources import describe_unreadable, outline_dataset
from raysft.data.splits import NetworkInputs, SplitSource, split_sources
from raysft.job.plan import Node, RunPlan, make_plan
from raysft.records.documents import DataDocument
from raysft.records.run import Run
from raysft.run.data_identity import compare, identity, note_missing
from raysft.run.listener import Listener
from raysft.run.slot_pool import SlotPool
from raysft.storage import StoragePath
from raysft.train.queue.assignment import HandedSplit


@dataclass(frozen=True)
class RunData:
    """What is known of a run's data before its images are read, and the plan that follows."""

    plan: RunPlan
    manifest: Manifest
    sources: dict[SplitName, SplitSource]
    in_memory: bool
    """Whether the splits are kept in memory; else workers stream them."""

    def load(self) -> Mapping[str, HandedSplit]:
        """What workers are given of each split: where it lies in Ray's object store, or its source.

        Takes as long as the images take to read.
        """
        if not self.in_memory:
            return {str(name): source for name, source in self.sources.items()}
        splits: dict[str, HandedSplit] = {}
        for name, source in self.sources.items():
            # Through the store every worker of a node maps the same memory.
            splits[name] = ray.put(read_split(source))
        return splits


def open_data(
    run: Run,
    nodes: Sequence[Node],
    listener: Listener,
    datasets: StoragePath | None,
    slots: SlotPool | None,
) -> RunData:
    """The data of a run, imported to `datasets` on first use; raises DataError.

    A run that was reopened must find what it began with.
    """
    job = run.job
    # An import needs a CPU, and the workers of a pool hold theirs also when they wait.
    before_import = None if slots is None else slots.make_room
    folder = ensure_dataset(job.data, listener.progress, datasets, before_import)
    manifest = read_manifest(folder)
    if job.data.verify:  # reads all of it, so only where a person asks
        verify_checksums(folder, manifest)
    if manifest.skipped:
        listener.note(describe_unreadable(manifest))
    for line in describe_pixels(manifest.image.decoding, manifest.decoded):
        listener.note(line)
    # Before anything is written: a run on other data keeps its records as they are.
    compare(run, manifest, folder)
    # The plan that was shown came from the outline of the source; unreadable images are gone now.
    plan = make_plan(job, outline_dataset(folder, manifest), nodes)
    inputs = NetworkInputs(job.image_sizes(), job.interpolations())
    sources = split_sources(folder, manifest, plan.val_rows, job.data.limit, job.seed, inputs)
    note_missing(manifest, sources["val"], listener.note)
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray annotates none
    room = resources.get("object_store_memory", 0)
    how, why = keep_or_stream(sources, job.data.budget_gb, room)
    listener.note(f"data {how}: {why}")
    rows = {str(name): len(source.ids) for name, source in sources.items()}
    data: DataDocument = {**identity(manifest), "path": str(folder), "rows": rows, "read": how}
    run.save(status="running", trials=plan.trials, data=data)
    return RunData(plan, manifest, sources, how == "kept")
