"""Batches: every row once an epoch, in an order that the number of workers does not change."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysft.data.epochs import KeptSplit, StreamedSplit, keep_or_stream
from raysft.data.images import fit
from raysft.data.importer import import_dataset
from raysft.data.ingest import read_split, stream_rows
from raysft.data.shards import ImageSpec, read_manifest
from raysft.data.sources import Source
from raysft.data.splits import NetworkInputs, choose_resampling, choose_rows, split_sources
from raysft.errors import DataError
from raysft.job.batches import batch_sizes
from tests.conftest import make_images


@pytest.fixture
def dataset(ray_local, tmp_path) -> Path:
    root = tmp_path
    make_images(root / "images", {"a": 40, "b": 33, "c": 30})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysft.data.sources.SHARD_ROWS", 20)
        import_dataset(
            Source("imagefolder", str(root / "images")), root / "D", "fail", lambda *a: None
        )
    return root / "D"


@pytest.fixture
def sources(dataset):
    return split_sources(dataset, read_manifest(dataset), val_rows=9, limit=None, seed=0)


def test_splits_are_disjoint_stratified_and_seeded():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    ids = np.arange(100) * 3
    train, val = choose_rows(ids, labels, 10, None, seed=1)
    assert sorted([*train, *val]) == ids.tolist()
    assert np.bincount(labels[val // 3]).tolist() == [5, 3, 2]
    again = choose_rows(ids, labels, 10, None, seed=1)
    assert np.array_equal(again[1], val)
    assert not np.array_equal(choose_rows(ids, labels, 10, None, seed=2)[1], val)
    limited = choose_rows(ids, labels, 10, 50, seed=1)
    assert np.bincount(labels[np.concatenate(limited) // 3]).tolist() == [25, 15, 10]


@pytest.mark.parametrize("kind", ["kept", "streamed"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_row_is_seen_exactly_once_an_epoch(sources, kind, workers):
    source = sources["train"]
    reader = (
        KeptSplit(read_split(source))
        if kind == "kept"
        else StreamedSplit(source, window_bytes=25 * 8 * 8 * 3)
    )
    shares = [
        list(reader.epoch(0, 1, batch_sizes(len(reader), 7), rank, workers))
        for rank in range(workers)
    ]
    seen = np.concatenate([b.rows.ids for s in shares for b in s])
    assert sorted(seen.tolist()) == source.ids.tolist()
    order = np.concatenate([s[i].rows.ids for i in range(len(shares[0])) for s in shares])
    alone = np.concatenate(
        [b.rows.ids for b in reader.epoch(0, 1, batch_sizes(len(reader), 7), 0, 1)]
    )
    assert np.array_equal(order, alone)
    other = np.concatenate(
        [b.rows.ids for b in reader.epoch(0, 2, batch_sizes(len(reader), 7), 0, 1)]
    )
    assert not np.array_equal(other, alone)
    in_order = np.concatenate(
        [r.ids for rank in range(workers) for r in reader.in_order(7, rank, workers)]
    )
    assert sorted(in_order.tolist()) == source.ids.tolist()


@pytest.mark.parametrize("first", [0, 5])
def test_worker_decodes_only_its_share_still_untrained(sources, monkeypatch, first):
    source, decoded = sources["train"], []

    def stream(source, files, tasks=2):
        decoded.append((source.ids, {file.path for file in files}))
        return stream_rows(source, files, tasks)

    monkeypatch.setattr("raysft.data.epochs.stream_rows", stream)
    reader = StreamedSplit(source, window_bytes=25 * 8 * 8 * 3)
    whole = [list(reader.epoch(0, 1, batch_sizes(len(reader), 7), rank, 2)) for rank in range(2)]
    decoded.clear()
    shares = [
        list(reader.epoch(0, 1, batch_sizes(len(reader), 7), rank, 2, first)) for rank in range(2)
    ]
    assert len(decoded) == 2
    for (ids, _), batches, before in zip(decoded, shares, whole, strict=True):
        assert ids.tolist() == sorted(np.concatenate([b.rows.ids for b in batches]).tolist())
        assert [b.number for b in batches] == list(range(first, len(before)))
        for batch, known in zip(batches, before[first:], strict=True):
            assert (batch.first, batch.size) == (known.first, known.size)
            assert np.array_equal(batch.rows.ids, known.rows.ids)
            assert np.array_equal(batch.rows.images, known.rows.images)
            assert np.array_equal(batch.rows.labels, known.rows.labels)


def test_shards_without_rows_of_split_stay_unread(dataset, monkeypatch):
    read = []
    monkeypatch.setattr(
        "raysft.data.epochs.stream_rows",
        lambda source, files, tasks=2: (read.append(files), stream_rows(source, files, tasks))[1],
    )
    val = split_sources(dataset, read_manifest(dataset), val_rows=3, limit=12, seed=0)["val"]
    rows = list(StreamedSplit(val).in_order(8, 0, 1))
    assert np.concatenate([r.ids for r in rows]).tolist() == val.ids.tolist()
    with_rows = [file for file, ids in zip(val.files, val.ids_of_files, strict=True) if len(ids)]
    assert list(read[0]) == with_rows
    assert len(with_rows) < len(val.files)


def test_more_workers_than_rows_leave_some_without_any(sources):
    few = split_sources(sources["val"].folder, read_manifest(sources["val"].folder), 3, None, 0)[
        "val"
    ]
    shares = [list(StreamedSplit(few).in_order(8, rank, 5)) for rank in range(5)]
    assert sorted(i for share in shares for r in share for i in r.ids.tolist()) == few.ids.tolist()


def test_kept_and_streamed_rows_are_the_same_images(sources):
    kept = read_split(sources["val"])
    streamed = list(StreamedSplit(sources["val"]).in_order(4, 0, 1))
    assert np.array_equal(np.concatenate([r.images for r in streamed]), kept.images)
    assert np.array_equal(np.concatenate([r.labels for r in streamed]), kept.labels)


@pytest.mark.parametrize(
    ("image_size", "decoded"), [(6, 6), (12, 8)]
)  # larger ones are made where they are needed
def test_images_are_made_smaller_when_read(dataset, image_size, decoded):
    sources = split_sources(
        dataset, read_manifest(dataset), 9, None, 0, NetworkInputs({image_size})
    )
    assert read_split(sources["val"]).images.shape == (9, decoded, decoded, 3)


@pytest.mark.parametrize("interpolation", ["nearest", "bicubic"])
@pytest.mark.usefixtures("ray_local")
def test_mixed_sizes_use_the_jobs_interpolation(tmp_path, interpolation):
    make_images(tmp_path / "images/train", {"a": 4, "b": 4}, size=(20, 30))
    make_images(tmp_path / "images/test", {"a": 2, "b": 2}, size=(30, 20))
    import_dataset(
        Source("imagefolder", str(tmp_path / "images")), tmp_path / "D", "fail", lambda *_: None
    )
    manifest = read_manifest(tmp_path / "D")
    found = {}
    for name in (None, "bilinear", interpolation):
        sources = split_sources(tmp_path / "D", manifest, 2, None, 0, NetworkInputs({16}, {name}))
        assert {source.resampling for source in sources.values()} == {name or "bilinear"}
        found[name] = read_split(sources["test"]).images
    assert np.array_equal(found[None], found["bilinear"])
    assert not np.array_equal(found[None], found[interpolation])
    expected = fit(Image.open(tmp_path / "images/test/a/000.png"), 16, 16, interpolation)
    assert np.array_equal(found[interpolation][0], expected)
    with pytest.raises(DataError, match="differs between trials"):
        split_sources(
            tmp_path / "D", manifest, 2, None, 0, NetworkInputs({16}, {None, interpolation})
        )


def test_missing_interpolation_is_bilinear_for_mixed_sizes():
    spec = ImageSpec("encoded", None, None)
    assert choose_resampling(spec, (16, 16), {None, "bilinear"}) == "bilinear"
    with pytest.raises(DataError, match="differs between trials"):
        choose_resampling(spec, (16, 16), {None, "bilinear", "nearest"})


def test_the_budget_decides_and_says_why(sources):
    assert keep_or_stream(sources, 1.0, 1e9)[0] == "kept"
    assert keep_or_stream(sources, 1e-6, 1e9) == (
        "streamed",
        "19.8 kB decoded, more than data.budget_gb 1e-06",
    )
    how, why = keep_or_stream(sources, 1.0, 1e3)
    assert (how, why) == (
        "streamed",
        "19.8 kB decoded, more than the 600 bytes free in the object store",
    )
