"""Which folders are splits and which are classes: as people name them, and never guessed without a
word.
"""

import os
from pathlib import Path

import pytest
from PIL import Image

from raysft.data.folders import Folders
from raysft.data.layout import detect_layout, parse_split_name
from raysft.errors import DataError
from tests.conftest import make_images

CLASSES = {"ant": 5, "bee": 5}


def make_splits(root: Path, *splits: str, classes=CLASSES) -> Path:
    for number, split in enumerate(splits):
        make_images(root / split, classes, seed=number)
    return root


def rows(found: Folders) -> dict[str, int]:
    return {split: len(files) for split, files in found.splits.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "val", "test"), {"train": "train", "val": "val", "test": "test"}),
        (("train", "test"), {"train": "train", "test": "test"}),
        (("train", "val"), {"train": "train", "val": "val"}),
        (("Training", "Testing"), {"train": "Training", "test": "Testing"}),
        (("TRAIN", "Valid", "tst"), {"train": "TRAIN", "val": "Valid", "test": "tst"}),
        (("trn", "dev"), {"train": "trn", "val": "dev"}),
        (("training_set", "test_set"), {"train": "training_set", "test": "test_set"}),
        (("trainset", "valset"), {"train": "trainset", "val": "valset"}),
        (("train2017", "val2017"), {"train": "train2017", "val": "val2017"}),
        (("seg_train", "seg_test", "seg_pred"), {"train": "seg_train", "test": "seg_test"}),
        (("train", "eval"), {"train": "train", "val": "eval"}),
        (("trainval", "test"), {"train": "trainval", "test": "test"}),
        (("train-val", "test"), {"train": "train-val", "test": "test"}),
        (("train",), {"train": "train"}),
        (("train", "test", "masks"), {"train": "train", "test": "test"}),
    ],
)
def test_usual_names_of_splits(tmp_path, names, expected):
    make_splits(tmp_path / "D", *names)
    layout = detect_layout(tmp_path / "D")
    assert layout.splits == {split: tmp_path / "D" / name for split, name in expected.items()}
    assert any(f"train from {expected['train']}/" in note for note in layout.notes)
    found = Folders.find(tmp_path / "D", None)
    assert found.classes == ("ant", "bee")
    assert rows(found) == {"test": 2, "train": 8} | {
        s: 10 for s in expected if s != "train" or "test" in expected
    }


@pytest.mark.parametrize(
    "name", ["cat", "testament", "trainer", "station", "validator", "attest", "no", "12"]
)
def test_other_words_name_no_split(name):
    assert parse_split_name(name) is None


@pytest.mark.parametrize("name", ["train_station", "test_tube", "dev_board"])
def test_classes_named_like_splits_stay_classes(tmp_path, name):
    make_images(tmp_path / "D", {name: 5, "cat": 5, "test_pattern": 5})
    assert Folders.find(tmp_path / "D", None).classes == tuple(
        sorted([name, "cat", "test_pattern"])
    )


def test_folders_beside_splits_are_left_out_and_noted(tmp_path):
    make_splits(tmp_path / "D", "train", "test")
    make_images(tmp_path / "D", {"unlabelled": 7})
    found = Folders.find(tmp_path / "D", None)
    assert any(
        "left out, as neither a split nor a class: unlabelled/" in note for note in found.notes
    )
    assert sum(each.left_out.get("outside of the class folders", 0) for each in found.counts) == 7


def test_flat_test_folder_is_replaced_by_holdout(tmp_path):
    make_splits(tmp_path / "D", "train")
    make_images(tmp_path / "D", {"test": 7})
    found = Folders.find(tmp_path / "D", None)
    assert (found.classes, rows(found)) == (("ant", "bee"), {"train": 8, "test": 2})
    assert any("left out" in note and "test/" in note for note in found.notes)
    assert any("test held out of train" in note for note in found.notes)


def test_test_folder_beside_classes_becomes_test_split(tmp_path):
    make_images(tmp_path / "D", CLASSES)
    make_images(tmp_path / "D/test", {"ant": 3, "bee": 3}, seed=1)
    found = Folders.find(tmp_path / "D", None)
    assert (found.classes, rows(found)) == (("ant", "bee"), {"train": 10, "test": 6})


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda root: make_splits(root, "train", "Training", "test"),
            "several folders for train: Training/, train/",
        ),
        (lambda root: make_splits(root, "train", "val", "dev"), "several folders for val"),
        (
            lambda root: make_splits(root, "val", "test"),
            "has no folder to train on beside test/, val/",
        ),
        (
            lambda root: make_images(root, {"train": 5, "test": 5}),
            "look like splits, without class folders",
        ),
        (
            lambda root: make_splits(root, "my_train", "other"),
            "look like splits: all hold ant, bee",
        ),
        (
            lambda root: (make_images(root, CLASSES), make_splits(root, "train")),
            "classes both in train/ and beside it",
        ),
    ],
)
def test_splits_that_cannot_be_told_apart_are_refused(tmp_path, make, expected):
    make(tmp_path / "D")
    with pytest.raises(DataError, match=expected):
        Folders.find(tmp_path / "D", None)


def test_splits_inside_of_class_folders(tmp_path):
    for name in CLASSES:
        make_images(tmp_path / "D" / name, {"Train": 4, "valid": 2, "test": 3})
    found = Folders.find(tmp_path / "D", None)
    assert (found.classes, rows(found)) == (("ant", "bee"), {"train": 8, "val": 4, "test": 6})
    assert found.notes[0] == (
        "train from ant/Train/, bee/Train/, val from ant/valid/, bee/valid/, "
        "test from ant/test/, bee/test/"
    )
    assert all(Path(file).parts[-3] == found.classes[label] for file, label in found.test)


def nested(root: Path) -> Path:
    make_splits(root, "train", "test")
    make_images(root / "train/val", CLASSES)
    return root


def held_out_inside(root: Path) -> Path:
    make_images(root, CLASSES)
    make_images(root / "unseen", CLASSES)
    return root


def with_one_flat(root: Path) -> Path:
    for name in CLASSES:
        make_images(root / name, {"train": 4, "test": 2})
    make_images(root, {"cow": 5})
    return root


def with_one_stray(root: Path) -> Path:
    for name in CLASSES:
        make_images(root / name, {"train": 4, "test": 2})
    Image.new("RGB", (8, 8)).save(root / "ant/stray.png")
    return root


def beside_unlabelled(root: Path) -> Path:
    make_splits(root, "train")
    make_images(root, {"unlabelled": 9})
    return root


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (nested, "train/val: holds folders with names of the classes beside it (ant, bee)"),
        (held_out_inside, "unseen: holds folders with names of the classes beside it (ant, bee)"),
        (
            with_one_flat,
            "ant: holds test/, train/ as splits, and not all class folders beside it do so",
        ),
        (
            with_one_stray,
            "ant: holds test/, train/ as splits, and not all class folders beside it do so",
        ),
        (
            beside_unlabelled,
            "train: has the name of a split and holds ant/, bee/, beside unlabelled/, which are "
            "no splits",
        ),
    ],
)
def test_splits_among_classes_are_never_trained_on(tmp_path, make, expected):
    with pytest.raises(DataError) as caught:
        Folders.find(make(tmp_path / "D"), None)
    assert expected in str(caught.value)


def test_nested_class_beside_flat_ones_is_noted(tmp_path):
    make_images(tmp_path / "D/data", CLASSES)
    make_images(tmp_path / "D", {"docs": 5})
    assert (
        "the images of data/ all lie in folders of their own: ant/, bee/"
        in Folders.find(tmp_path / "D", None).notes
    )


def test_class_without_images_names_its_files(tmp_path):
    make_images(tmp_path / "D", CLASSES)
    (tmp_path / "D/annotations").mkdir()
    (tmp_path / "D/annotations/a.xml").write_text("<a/>")
    with pytest.raises(
        DataError, match=r"annotations: has no images: its files are 1 not images \(.xml\)"
    ):
        Folders.find(tmp_path / "D", None)


@pytest.mark.parametrize("inner", ["photos", "archive/photos", "photos/train"])
def test_one_folder_around_everything_is_looked_into(tmp_path, inner):
    make_images(tmp_path / "D" / inner, CLASSES)
    make_images(tmp_path / "D/__MACOSX", {"photos": 3})
    found = Folders.find(tmp_path / "D", None)
    assert found.classes == ("ant", "bee")
    assert any(f"read from {inner.removesuffix('/train')}/" in note for note in found.notes)
    assert sum(each.left_out.get("hidden or system files", 0) for each in found.counts) == 3


def test_split_around_same_named_folder_is_found(tmp_path):
    make_splits(tmp_path / "D", "seg_train/seg_train", "seg_test/seg_test")
    assert rows(Folders.find(tmp_path / "D", None)) == {"train": 10, "test": 10}


def test_folders_with_same_subfolders_suggest_split_names(tmp_path):
    make_splits(tmp_path / "D", "part1", "part2")
    found = Folders.find(tmp_path / "D", None)
    assert any("if they are splits, name them train, val and test" in note for note in found.notes)


def test_given_test_folder_overrides_the_existing_one(tmp_path):
    make_splits(tmp_path / "D", "train", "test")
    make_splits(tmp_path, "other", classes={"ant": 2, "bee": 2})
    found = Folders.find(tmp_path / "D", tmp_path / "other")
    assert rows(found) == {"train": 10, "test": 4}
    assert any("test/ is left out" in note for note in found.notes)


def test_the_training_folder_cannot_be_the_test_folder(tmp_path):
    make_splits(tmp_path / "D", "train")
    with pytest.raises(DataError, match="is the folder of the training images too"):
        Folders.find(tmp_path / "D/train", tmp_path / "D/train")


# --- classes -----------------------------------------------------------------------------------

E_ONE, E_TWO = "caf\u00e9", "cafe\u0301"  # é as one code point and as two


def test_names_in_two_unicode_forms_are_one_class(tmp_path):
    make_images(tmp_path / "D/train", {E_ONE: 3, "tea": 3})
    make_images(tmp_path / "D/test", {E_TWO: 2, "tea": 2}, seed=1)
    found = Folders.find(tmp_path / "D", None)
    assert found.classes == (E_ONE, "tea")
    assert rows(found) == {"train": 6, "test": 4}


def test_unicode_twin_folders_merge_into_one_class(tmp_path):
    make_images(tmp_path / "D", {E_ONE: 5, E_TWO: 5, "tea": 5})
    found = Folders.find(tmp_path / "D", None)
    assert found.classes == (E_ONE, "tea")
    assert any("in two Unicode forms" in note for note in found.notes)
    assert len(found.train) + len(found.test) == 15


def test_a_class_that_test_lacks_is_told(tmp_path):
    make_splits(tmp_path / "D", "train")
    make_images(tmp_path / "D/test", {"ant": 2}, seed=1)
    found = Folders.find(tmp_path / "D", None)
    assert any(
        "test has no image of bee: its metrics are over the other classes" in note
        for note in found.notes
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_an_error(tmp_path, split):
    make_splits(tmp_path / "D", "train")
    make_images(tmp_path / "D" / split, {"ant": 2, "cow": 2}, seed=1)
    with pytest.raises(DataError, match="classes that the training images lack: cow; it lacks bee"):
        Folders.find(tmp_path / "D", None)


def test_class_name_outside_utf8_is_refused(tmp_path):
    make_images(tmp_path / "D", CLASSES)
    os.rename(os.fsencode(tmp_path / "D/bee"), os.fsencode(tmp_path / "D") + b"/caf\xe9")
    with pytest.raises(
        DataError, match=r"caf\\xe9: is not named in UTF-8; in Latin-1 it reads 'café'"
    ):
        Folders.find(tmp_path / "D", None)


def test_labelled_images_may_lack_classes_and_other_splits(tmp_path):
    make_images(tmp_path / "one/ant", {"2020": 3, "2021": 2})
    found = Folders.find_labelled(tmp_path / "one", "test", ["ant", "bee"])
    assert (found.classes, len(found.test)) == (("ant",), 5)
    assert "no image of bee: the metrics are over the other classes" in found.notes
    make_splits(tmp_path / "D", "val", "test")
    found = Folders.find_labelled(tmp_path / "D", "val", CLASSES)
    assert (len(found.test), found.notes[0]) == (10, "the split val alone, of val, test")
    make_splits(tmp_path / "E", "validation")
    with pytest.raises(DataError, match="has no split test; it has val"):
        Folders.find_labelled(tmp_path / "E", "test", CLASSES)
