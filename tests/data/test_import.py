"""Imports: complete or absent, restartable, and clear about what is wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from raysft.data import importer
from raysft.data.decoding import LEGACY_DECODING
from raysft.data.folders import Folders
from raysft.data.images import open_rgb, read_size
from raysft.data.importer import import_dataset
from raysft.data.ingest import read_split
from raysft.data.shards import MANIFEST, iter_tables, read_manifest, unpack_rows, verify_checksums
from raysft.data.sources import Source
from raysft.data.splits import NetworkInputs, split_sources
from raysft.errors import DataError
from raysft.storage import read_json, write_json
from tests.conftest import make_images

pytestmark = pytest.mark.usefixtures("ray_local")


def quiet(what: str, done: int, total: int) -> None:
    pass


def run(images: Path, out: Path, on_bad_image="fail", test="test"):
    return import_dataset(
        Source("imagefolder", str(images / "train"), str(images / test)), out, on_bad_image, quiet
    )


def rows_of(folder: Path, split: str):
    manifest = read_manifest(folder)
    return [unpack_rows(t, manifest.image) for t in iter_tables(folder, manifest.splits[split])]


def test_a_folder_becomes_shards_that_hold_its_pixels(images, tmp_path):
    progress = []
    manifest = import_dataset(
        Source("imagefolder", str(images / "train"), str(images / "test")),
        tmp_path / "D",
        "fail",
        lambda *seen: progress.append(seen),
    )
    assert manifest.classes == ("ant", "bee", "cow")
    assert (manifest.splits["train"].rows, manifest.splits["test"].rows) == (60, 15)
    assert manifest.image.shape == (8, 8, 3)
    assert progress[-1] == ("import", 75, 75)
    ids, pixels, labels = rows_of(tmp_path / "D", "train")[0]
    files = Folders.find(images / "train", images / "test").train
    assert ids.tolist() == list(range(60))
    for i in (0, 25, 59):
        assert labels[i] == files[i][1]
        assert np.array_equal(pixels[i], np.asarray(Image.open(files[i][0])))
    everything = np.stack([np.asarray(Image.open(f)) for f, _ in files]) / 255
    assert np.allclose(manifest.mean, everything.mean(axis=(0, 1, 2)))
    assert np.allclose(manifest.std, everything.std(axis=(0, 1, 2)))
    verify_checksums(tmp_path / "D", manifest)
    left = {p.name for p in (tmp_path / "D").rglob("*") if p.is_file()}
    assert left == {MANIFEST, "0000.parquet"}


def test_mixed_sizes_and_formats_stay_encoded(tmp_path):
    root = tmp_path / "mixed"
    make_images(root / "a", {"x": 6}, size=(30, 20))
    make_images(root / "b", {"x": 6}, size=(17, 40), suffix=".jpg")
    (root / "a/x").rename(root / "one")
    (root / "b/x").rename(root / "two")
    shutil.rmtree(root / "a")
    shutil.rmtree(root / "b")
    Image.new("L", (9, 9), 200).save(root / "one/grey.bmp")
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(root / "two/alpha.webp")
    manifest = import_dataset(Source("imagefolder", str(root)), tmp_path / "D", "fail", quiet)
    assert manifest.image.encoding == "file"
    assert manifest.splits["train"].rows + manifest.splits["test"].rows == 14


def test_digits_need_no_network(tmp_path):
    manifest = import_dataset(Source("digits"), tmp_path / "D", "fail", quiet)
    assert (manifest.splits["train"].rows, manifest.splits["test"].rows) == (1437, 360)
    assert manifest.image.shape == (32, 32, 3)
    labels = np.concatenate([r[2] for r in rows_of(tmp_path / "D", "test")])
    assert np.bincount(labels).min() >= 34


def save(file: Path, image: np.ndarray, **options) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if image.dtype == np.float32:
        tifffile.imwrite(file, image)
    else:
        Image.fromarray(image).save(file, **options)


def test_floats_are_scaled_by_data_set_range(tmp_path):
    for label, name in enumerate(("dark", "light")):
        for i in range(5):
            save(
                tmp_path / "images" / name / f"{i}.tif",
                np.full((6, 6), 200 * label + 25 * i, np.float32),
            )
    manifest = import_dataset(
        Source("imagefolder", str(tmp_path / "images")), tmp_path / "D", "fail", quiet
    )
    assert manifest.image.decoding.ranges == {"float32": (0.0, 300.0)}
    assert "float32 samples: 0 is black, 300 is white" in manifest.notes
    levels = sorted(
        int(v)
        for split in ("train", "test")
        for v in rows_of(tmp_path / "D", split)[0][1][:, 0, 0, 0]
    )
    assert levels == [
        round((200 * label + 25 * i) * 255 / 300) for label in (0, 1) for i in range(5)
    ]
    assert {p.name for p in (tmp_path / "D").rglob("*") if p.is_file()} == {
        MANIFEST,
        "0000.parquet",
    }


def test_images_that_stretch_the_range_are_named(tmp_path, monkeypatch):
    for name in ("dark", "light"):
        for i in range(5):
            save(
                tmp_path / "images" / name / f"{i}.tif",
                np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6),
            )
    save(tmp_path / "images/dark/0.tif", np.full((6, 6), -9999, np.float32))
    write = importer._build_manifest
    monkeypatch.setattr(importer, "_build_manifest", lambda *_: 1 / 0)
    for _ in range(2):  # what was found is kept for the import that goes on
        with pytest.raises(ZeroDivisionError):
            import_dataset(
                Source("imagefolder", str(tmp_path / "images")), tmp_path / "D", "fail", quiet
            )
    monkeypatch.setattr(importer, "_build_manifest", write)
    manifest = import_dataset(
        Source("imagefolder", str(tmp_path / "images")), tmp_path / "D", "fail", quiet
    )
    assert manifest.image.decoding.ranges == {"float32": (-9999.0, 1.0)}
    assert [note for note in manifest.notes if "dark/0.tif)" in note and "1 of 10 images" in note]


@pytest.mark.parametrize(("background", "level"), [((255, 255, 255), 255), ((0, 0, 0), 0)])
def test_transparency_and_missing_ends_are_counted(tmp_path, background, level):
    icon = np.zeros((6, 6, 4), np.uint8)
    icon[:3, :, 0], icon[:3, :, 3] = 200, 255
    for i in range(5):
        save(tmp_path / "images/icons" / f"{i}.png", icon)
        save(tmp_path / "images/photos" / f"{i}.jpg", np.full((6, 6, 3), 10 * i, np.uint8))
    first = tmp_path / "images/photos/0.jpg"
    first.write_bytes(first.read_bytes()[:-2])
    manifest = import_dataset(
        Source("imagefolder", str(tmp_path / "images"), None, background),
        tmp_path / "D",
        "fail",
        quiet,
    )
    assert manifest.decoded == {"no_end": 1, "composited": 5}
    assert manifest.image.decoding.background == background
    assert any("end marker" in note and note.endswith(": 1") for note in manifest.notes)
    assert rows_of(tmp_path / "D", "train")[0][1][0, 5, 0].tolist() == [level] * 3


def test_mixed_sizes_keep_values_and_their_range(tmp_path):
    for i in range(5):
        save(tmp_path / "images/a" / f"{i}.tif", np.full((6, 6 + i), 1000.0, np.float32))
        save(tmp_path / "images/b" / f"{i}.tif", np.full((6, 6 + i), 500.0, np.float32))
    save(tmp_path / "images/b/5.tif", np.zeros((6, 6), np.float32))
    manifest = import_dataset(
        Source("imagefolder", str(tmp_path / "images")), tmp_path / "D", "fail", quiet
    )
    assert manifest.image.encoding == "file"
    rows = read_split(
        split_sources(tmp_path / "D", manifest, 2, None, 0, NetworkInputs({8}))["train"]
    )
    assert set(rows.images.reshape(-1).tolist()) <= {0, 128, 255}
    assert 128 in rows.images
    other = import_dataset(
        Source("imagefolder", str(tmp_path / "images"), None, (0, 0, 0)),
        tmp_path / "E",
        "fail",
        quiet,
    )
    assert other.fingerprint != manifest.fingerprint


def test_small_rotated_tiffs_are_imported_upright(tmp_path):
    for name in ("a", "b"):
        for i in range(5):
            file = tmp_path / "images" / name / f"{i}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(
                file,
                np.full((6, 9, 3), 20 * i, np.uint8),
                photometric="rgb",
                extratags=[(274, "H", 1, 6, True)],
            )
    manifest = import_dataset(
        Source("imagefolder", str(tmp_path / "images")), tmp_path / "D", "fail", quiet
    )
    assert manifest.image.shape == (9, 6, 3)


def test_older_data_set_keeps_its_legacy_decoding(images, tmp_path):
    made = run(images, tmp_path / "D")
    stored = read_json(tmp_path / "D" / MANIFEST)
    del stored["image"]["decoding"], stored["decoded"]
    write_json(tmp_path / "D" / MANIFEST, stored | {"format": 2})
    old = read_manifest(tmp_path / "D")
    assert old.image.decoding == LEGACY_DECODING
    assert old.fingerprint == made.fingerprint


def test_an_interrupted_import_takes_up_what_it_wrote(images, tmp_path, monkeypatch):
    monkeypatch.setattr("raysft.data.sources.SHARD_ROWS", 10)

    class Stop(Exception):
        pass

    def interrupt(what, done, total):
        if done >= 20:
            raise Stop

    with pytest.raises(Stop):
        import_dataset(
            Source("imagefolder", str(images / "train"), str(images / "test")),
            tmp_path / "D",
            "fail",
            interrupt,
        )
    assert not (tmp_path / "D").exists()
    first = next((tmp_path / "D.partial").glob("train/*.parquet"))
    written = first.stat().st_mtime_ns
    assert run(images, tmp_path / "D").splits["train"].rows == 60
    assert (tmp_path / "D/train" / first.name).stat().st_mtime_ns == written
    assert not (tmp_path / "D.partial").exists()


def test_changed_source_discards_an_earlier_partial_import(images, tmp_path):
    partial = tmp_path / "D.partial"
    (partial / "train").mkdir(parents=True)
    (partial / "source.json").write_text("another source")
    (partial / "train/0000.json").write_text("{}")
    assert run(images, tmp_path / "D").splits["train"].rows == 60


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def test_truncated_image_is_named_and_leaves_nothing(images, tmp_path):
    bad = truncate(images / "train/bee/003.png")
    with pytest.raises(DataError, match="is not a readable image") as caught:
        run(images, tmp_path / "D")
    assert caught.value.where == str(bad)
    assert "on_bad_image" in caught.value.todo
    assert not list(tmp_path.glob("D*"))


def test_bad_images_can_be_skipped_and_are_counted(images, tmp_path):
    truncate(images / "train/bee/003.png")
    (images / "test/cow/000.png").write_bytes(b"")
    manifest = run(images, tmp_path / "D", on_bad_image="skip")
    assert manifest.skipped == 2
    assert (manifest.splits["train"].rows, manifest.splits["test"].rows) == (59, 14)


def test_manifest_accounts_for_every_file(images, tmp_path):
    truncate(images / "train/bee/003.png")
    (images / "train/bee/notes.txt").write_text("bees")
    (images / "train/._x.png").write_bytes(b"")
    manifest = run(images, tmp_path / "D", on_bad_image="skip")
    assert read_manifest(tmp_path / "D") == manifest
    left_out = {Path(each.folder).name: each.left_out for each in manifest.counts if each.left_out}
    assert left_out == {
        "bee": {"unreadable images": 1, "not images (.txt)": 1},
        "train": {"hidden or system files": 1},
    }
    assert all(each.seen == each.used + sum(each.left_out.values()) for each in manifest.counts)
    assert sum(each.used for each in manifest.counts) == sum(
        split.rows for split in manifest.splits.values()
    )


def test_class_without_readable_training_image_is_refused(images, tmp_path):
    for file in (images / "train/bee").iterdir():
        file.write_text("<html>not found</html>")
    with pytest.raises(DataError, match="no readable training image of bee"):
        run(images, tmp_path / "D", on_bad_image="skip")
    assert not list(tmp_path.glob("D*"))


def test_class_without_readable_test_image_is_noted(images, tmp_path):
    for file in (images / "test/bee").iterdir():
        file.write_text("<html>not found</html>")
    assert any(
        "test has no readable image of bee" in note
        for note in run(images, tmp_path / "D", "skip").notes
    )


def test_own_validation_split_is_imported_and_used(images, tmp_path):
    make_images(images / "valid", {"ant": 4, "bee": 4}, seed=2)
    manifest = import_dataset(Source("imagefolder", str(images)), tmp_path / "D", "fail", quiet)
    assert {name: split.rows for name, split in manifest.splits.items()} == {
        "train": 60,
        "val": 8,
        "test": 15,
    }
    sources = split_sources(tmp_path / "D", manifest, 8, limit=30, seed=0)
    assert {name: sum(source.class_rows) for name, source in sources.items()} == {
        "train": 30,
        "val": 8,
        "test": 15,
    }
    assert sources["val"].class_rows == (4, 4, 0)
    val = read_split(sources["val"])
    assert np.array_equal(val.images[0], np.asarray(Image.open(images / "valid/ant/000.png")))


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda root: shutil.rmtree(root / "train"), "does not exist"),
        (lambda root: [p.unlink() for p in (root / "train/bee").iterdir()], "bee: has no images"),
        (lambda root: [shutil.rmtree(root / "train" / c) for c in ("bee", "cow")], "single class"),
        (lambda root: (root / "test/bee").rename(root / "test/dog"), "lack: dog; it lacks bee"),
        (
            lambda root: [shutil.rmtree(p) for p in (root / "train").iterdir()],
            "has no class folders",
        ),
    ],
)
def test_folders_that_cannot_be_used(images, tmp_path, prepare, expected):
    prepare(images)
    with pytest.raises(DataError, match=expected):
        run(images, tmp_path / "D")
    assert not list(tmp_path.glob("D*"))


def test_class_too_small_for_holdout_is_named(tmp_path):
    make_images(tmp_path / "images", {"ant": 20, "bee": 2})
    with pytest.raises(DataError, match=r"bee: has too few images \(2\) to hold one out"):
        Folders.find(tmp_path / "images", None)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_pillow_does(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "a.png")), expected)
    assert read_size(tmp_path / "a.png") == expected.shape[:2]


@pytest.mark.filterwarnings("ignore:.*(Tag data|EXIF):UserWarning")
def test_damaged_exif_does_not_cost_the_image(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    exif += b"\x9b\x82\x05\0\xff\xff\xff\x7f\xff\xff\xff\xff"
    Image.new("RGB", (9, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert open_rgb(tmp_path / "a.jpg").size in {(9, 6), (6, 9)}


def test_a_data_set_is_never_overwritten(images, tmp_path):
    (tmp_path / "D").mkdir()
    with pytest.raises(DataError, match="already exists"):
        run(images, tmp_path / "D")


def test_a_wrong_checksum_names_the_shard(images, tmp_path):
    manifest = run(images, tmp_path / "D")
    shard = tmp_path / "D/train/0000.parquet"
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match="checksum") as caught:
        verify_checksums(tmp_path / "D", manifest)
    assert caught.value.where == str(shard)
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        verify_checksums(tmp_path / "D", manifest)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m | {"format": 99}, "has format 99, this raysft reads up to 3"),
        (lambda m: {"format": 1}, "is not a manifest"),
        (lambda m: m | {"mean": [0.5]}, "is not a manifest"),
        (lambda m: m | {"splits": {"train": {"rows": 0, "files": []}}}, "the split train is empty"),
    ],
)
def test_manifests_that_cannot_be_understood(images, tmp_path, change, expected):
    run(images, tmp_path / "D")
    path = tmp_path / "D" / MANIFEST
    write_json(path, change(read_json(path)))
    with pytest.raises(DataError, match=expected):
        read_manifest(tmp_path / "D")


def test_missing_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="raysft data import"):
        read_manifest(tmp_path)


def test_the_cache_holds_one_data_set_a_source(images, monkeypatch):
    from raysft.job.spec import Data

    data = Data(source="imagefolder", path=str(images))
    black = Data(source="imagefolder", path=str(images), background="black")
    assert importer.ensure_dataset(black, quiet) != importer.ensure_dataset(data, quiet)
    first = importer.ensure_dataset(data, quiet)
    monkeypatch.setattr(importer, "import_listing", lambda *a: pytest.fail("imported twice"))
    assert importer.ensure_dataset(data, quiet) == first
