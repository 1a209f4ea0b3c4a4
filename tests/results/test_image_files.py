"""`raysft predict` of what people give it: several files of which one is bad, folders, patterns,
standard input.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from raysft import cli
from raysft.cli import session
from raysft.errors import DataError, UserError
from raysft.results.image_files import find_given_images
from raysft.results.predict import Classifier
from raysft.results.ranking import Failed
from tests.conftest import make_images
from tests.deploy.models import make_model


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A current folder with photos/a and photos/b, two images each, and files that are none."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "photos", {"a": 2, "b": 2})
    (tmp_path / "photos/notes.txt").write_text("none")
    (tmp_path / "photos/._a.png").write_bytes(b"of a Mac")
    return tmp_path / "photos"


@pytest.fixture
def predict(capfd, monkeypatch, tmp_path):
    """Call `raysft predict` in this process: (status, lines of output, lines of errors)."""
    model = make_model(tmp_path / "model")

    def _call(*words):
        session.output.cache_clear()
        monkeypatch.setattr(cli, "_leave", sys.exit)
        monkeypatch.setattr(sys, "argv", ["raysft", "predict", str(model), *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        told = capfd.readouterr()
        return int(left.value.code or 0), told.out.splitlines(), told.err.splitlines()

    return _call


def names(*words: str) -> list[str]:
    return [each.name for each in find_given_images(words)[0]]


def test_a_bad_image_leaves_the_others_their_answers(photos, predict):
    (photos / "a/000.png").write_bytes(b"torn")
    status, out, err = predict(
        "photos/b/000.png", "photos/a/000.png", "missing.png", "photos/b/001.png"
    )
    assert status == 1
    assert [line.partition(":")[0] for line in out] == ["photos/b/000.png", "photos/b/001.png"]
    assert err == [
        "error: photos/a/000.png: is not a readable image (of no known format)",
        "error: missing.png: cannot be read (No such file or directory)",
    ]


def test_a_document_has_answers_and_errors_in_order(photos, predict):
    status, out, err = predict("photos/a/000.png", "photos/notes.txt", "photos/b/000.png", "--json")
    found = json.loads("".join(out))
    assert (status, err) == (1, [])
    assert [row["image"] for row in found] == [
        "photos/a/000.png",
        "photos/notes.txt",
        "photos/b/000.png",
    ]
    assert found[1] == {
        "image": "photos/notes.txt",
        "error": "is not a readable image (of no known format)",
    }
    assert found[0]["class"] == found[0]["top"][0]["class"]


def test_folder_gives_its_images_and_counts_rest(photos, predict):
    status, out, err = predict("photos")
    assert status == 0
    assert [line.partition(":")[0] for line in out] == [
        f"photos/{x}/00{n}.png" for x in "ab" for n in (0, 1)
    ]
    assert err == [
        "photos: 6 files seen, 4 used, 2 left out: 1 hidden or system files, 1 not images (.txt)"
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/a/*.png", ["photos/a/000.png", "photos/a/001.png"]),
        ("photos/*/000.*", ["photos/a/000.png", "photos/b/000.png"]),
        ("photos/[b]", ["photos/b/000.png", "photos/b/001.png"]),
        (
            "photos/**",
            ["photos/a/000.png", "photos/a/001.png", "photos/b/000.png", "photos/b/001.png"],
        ),
        ("photos/**/001.png", ["photos/a/001.png", "photos/b/001.png"]),
    ],
)
def test_a_pattern_that_the_shell_left_is_expanded(photos, pattern, expected):
    assert names(pattern) == expected


def test_a_pattern_passes_over_thumbnails(photos):
    make_images(photos / "a/@eaDir", {"000.png": 1})
    given, (counts,) = find_given_images(["photos/a/**"])
    assert [each.name for each in given] == ["photos/a/000.png", "photos/a/001.png"]
    assert (counts.seen, counts.left_out) == (3, {"hidden or system files": 1})


def test_a_file_may_be_named_like_a_pattern(photos):
    (photos / "a/000.png").rename("cat[1].png")
    assert names("cat[1].png", "photos/b/000.png") == ["cat[1].png", "photos/b/000.png"]


def test_an_image_is_known_by_its_contents(photos, predict):
    (photos / "a/000.png").rename("photo.txt")
    Image.open(photos / "b/000.png").save(photos / "b/001.png", "JPEG")
    assert predict("photo.txt", "photos/b/001.png")[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["empty"],
            "empty: holds no image: its 2 files are 1 hidden or system files, 1 not images (.txt)",
        ),
        (["empty/*"], "empty/*: matches no image: its 1 files are 1 not images (.txt)"),
        (["empty/*.png"], "empty/*.png: matches no image"),
        (["-", "-"], "-: is standard input, which holds one image"),
    ],
)
def test_what_stands_for_no_image_is_one_line(photos, predict, words, expected):
    Path("empty").mkdir()
    Path("empty/a.txt").write_text("")
    Path("empty/.b.png").write_text("")
    status, out, (line,) = predict(*words)
    assert (status, out) == (2, [])
    assert expected in line


def test_an_empty_folder_among_others_is_one_line(photos, predict):
    Path("empty").mkdir()
    status, out, (line,) = predict("empty", "photos/a")
    assert (status, len(out), line) == (
        1,
        2,
        "error: empty: holds no image; give images, or a folder of images",
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_standard_input_is_an_image(photos, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO((photos / "a/000.png").read_bytes()))
    )
    (given,), _ = find_given_images(["-"])
    assert (given.name, given.decode().image.size) == ("-", (8, 8))


@pytest.mark.parametrize(
    ("stdin", "error"), [(io.TextIOWrapper(io.BytesIO()), DataError), (Terminal(), UserError)]
)
def test_standard_input_that_brings_nothing_is_refused(monkeypatch, stdin, error):
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(error, match="standard input"):
        find_given_images(["-"])


def test_a_pipe_is_read_like_a_file(photos):
    os.mkfifo("pipe")
    with subprocess.Popen(["cp", "photos/a/000.png", "pipe"]):
        (given,), _ = find_given_images(["pipe"])
        assert given.decode().image.size == (8, 8)


def test_answers_keep_their_images_over_many_batches(tmp_path, photos, monkeypatch):
    monkeypatch.setattr("raysft.results.predict.batch_size_for", lambda card: 2)
    (photos / "a/001.png").write_bytes(b"torn")
    classifier = Classifier(make_model(tmp_path / "model"))
    found = list(classifier.answers(find_given_images(["photos"])[0]))
    assert [isinstance(each, Failed) for each in found] == [False, True, False, False]
    for each in (found[0], *found[2:]):
        (alone,) = classifier.predict([each.image])
        assert each.classes[0][0] == alone.classes[0][0]
        assert each.classes[0][1] == pytest.approx(alone.classes[0][1], abs=1e-6)
