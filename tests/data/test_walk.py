"""Every file below a folder is used, or left out for a reason that is counted."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from raysft.data.folders import Folders, describe_files
from raysft.data.names import readable
from raysft.data.walk import FileCounts, list_images
from raysft.errors import DataError
from tests.conftest import make_images


def read(folder: Path) -> tuple[list[str], FileCounts]:
    counts = FileCounts("D")
    return [str(path.relative_to(folder)) for path in list_images(folder, counts)], counts


def test_contents_decide_and_not_endings(tmp_path):
    for name in ("a.jpg", "a.jfif", "a.jpe", "a.JPEG", "a", "a.dat", "a.heic"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "JPEG")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.nef", "TIFF")
    (tmp_path / "notes.txt").write_text("BMW and P5 are not pictures")
    (tmp_path / "table.csv").write_text("P5,2,3")
    (tmp_path / "empty").write_bytes(b"")
    names, counts = read(tmp_path)
    assert names == ["a", "a.JPEG", "a.dat", "a.heic", "a.jfif", "a.jpe", "a.jpg"]
    assert counts.unusual == {"no ending": 1, ".dat": 1}
    assert counts.left_out == {
        "not images (.nef)": 1,
        "not images (.txt)": 1,
        "not images (.csv)": 1,
        "not images (no ending)": 1,
    }
    assert counts.seen == 11


@pytest.mark.parametrize(
    "name",
    [
        "._photo.jpg",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        ".ipynb_checkpoints/a.jpg",
        ".thumbnails/a.jpg",
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/._a.jpg",
        "#recycle/a.jpg",
        ".git/objects/ab/cd",
        "lost+found/a.jpg",
    ],
)
def test_hidden_and_system_files_are_skipped_and_counted(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(tmp_path / name, "JPEG")
    names, counts = read(tmp_path)
    assert names == []
    assert counts.left_out == {"hidden or system files": 1}
    assert counts.examples == {"hidden or system files": [str(tmp_path / name)]}


def test_linked_folders_are_read(tmp_path):
    make_images(tmp_path / "elsewhere", {"more": 4})
    make_images(tmp_path, {"ant": 3})
    (tmp_path / "ant/more").symlink_to(tmp_path / "elsewhere/more")
    names, counts = read(tmp_path / "ant")
    assert len(names) == counts.used == 7


def test_broken_circular_and_duplicate_links_are_counted(tmp_path):
    make_images(tmp_path, {"ant": 3, "bee": 2})
    (tmp_path / "ant/gone.jpg").symlink_to("nowhere")
    (tmp_path / "ant/back").symlink_to(tmp_path)
    (tmp_path / "ant/inside").mkdir()
    (tmp_path / "ant/inside/self").symlink_to(tmp_path / "ant")
    (tmp_path / "ant/again.png").symlink_to("000.png")
    os.link(tmp_path / "ant/001.png", tmp_path / "ant/hard.png")
    names, counts = read(tmp_path / "ant")
    assert names == ["000.png", "001.png", "002.png"]
    assert counts.left_out == {
        "broken links": 1,
        "links to folders that are read already": 2,
        "links to images that are used already": 2,
    }


def test_image_in_two_splits_or_classes_is_noted(tmp_path):
    make_images(tmp_path / "train", {"ant": 3, "bee": 3})
    make_images(tmp_path / "test", {"ant": 1, "bee": 1}, seed=1)
    (tmp_path / "test/ant/000.png").unlink()
    (tmp_path / "test/ant/000.png").symlink_to(tmp_path / "train/ant/000.png")
    os.link(tmp_path / "train/ant/001.png", tmp_path / "train/bee/x.png")
    notes = Folders.find(tmp_path, None).notes
    assert "1 images of test are in train too, as links to the same files" in notes
    assert "1 images of train are in two classes, as links to the same files" in notes


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert read(tmp_path)[1].left_out == {"sockets, pipes or devices": 1}


def test_file_names_that_are_not_utf8(tmp_path):
    make_images(tmp_path, {"ant": 5, "bee": 5})
    os.rename(tmp_path / "ant/000.png", os.fsencode(tmp_path) + b"/ant/caf\xe9.png")
    found = Folders.find(tmp_path, None)
    assert len(found.train) + len(found.test) == 10
    assert readable(os.fsdecode(b"caf\xe9\n\x1b[31m.png")) == r"caf\xe9\n\x1b[31m.png"


def test_images_outside_of_class_folders_are_counted(tmp_path):
    make_images(tmp_path, {"ant": 5, "bee": 5})
    Image.new("RGB", (8, 8)).save(tmp_path / "cover.png")
    (tmp_path / "README.md").write_text("about")
    lines = describe_files(Folders.find(tmp_path, None).counts)
    assert lines == [
        "12 files seen, 10 used, 2 left out: 1 not images (.md), 1 outside of the class folders"
    ]


NAMES = st.sampled_from(
    ["a.png", "b.jpg", "c", "notes.txt", ".hidden", "._a.png", "Thumbs.db", "x.NEF", "d.jfif"]
)
FOLDERS = st.sampled_from(
    ["ant", "bee", "train", "test", "val", "deep", ".git", "@eaDir", "__MACOSX", "Training"]
)
CONTENTS = st.sampled_from(["png", "jpeg", "text", "empty", "broken"])
FILES = st.lists(st.tuples(st.lists(FOLDERS, max_size=4), NAMES, CONTENTS), max_size=25)


@settings(
    max_examples=3 * settings.default.max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(files=FILES)
def test_sums_agree_for_any_tree(tmp_path, files):
    """Every file is counted once, in trees that are not refused (how those are is in
    test_layout).
    """
    root = tmp_path / "D"
    shutil.rmtree(root, ignore_errors=True)
    make_images(root, {"ant": 3, "bee": 3})
    for folders, name, content in files:
        _write(root.joinpath(*folders), name, content)
    there = sum(len(names) for _, _, names in os.walk(root))
    try:
        found = Folders.find(root, None)
    except DataError:
        return
    used = sum(len(labelled) for labelled in found.splits.values())
    assert sum(each.used for each in found.counts) == used
    assert sum(each.seen for each in found.counts) == there
    assert all(each.seen == each.used + sum(each.left_out.values()) for each in found.counts)


def _write(folder: Path, name: str, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.exists() or path.is_symlink():
        return
    if content == "broken":
        path.symlink_to("nowhere")
    elif content in ("png", "jpeg"):
        Image.new("RGB", (4, 4)).save(path, content)
    else:
        path.write_text("some text" if content == "text" else "")
