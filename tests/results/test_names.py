"""Classes and files whose names hold anything: one row stays one row, and what a reader gets is
what went in.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from starlette.responses import JSONResponse

from raysft import console
from raysft.console import Output
from raysft.data.folders import Folders
from raysft.data.images import NO_END, QUIRKS
from raysft.data.names import MAX_NAME_LENGTH, as_utf8, clipped, first_names, readable
from raysft.data.samples import DARK
from raysft.data.shards import read_manifest
from raysft.deploy.bulk import Predicted, Predictor, PredictorSettings
from raysft.deploy.export import _write_onnx, _write_torch_export
from raysft.deploy.image_sources import list_source
from raysft.display.answers import show_answers
from raysft.display.dataset import show_data
from raysft.display.predictions import show_predicted, show_scores
from raysft.display.watch import picture
from raysft.errors import DataError
from raysft.records.reading import read_results
from raysft.records.trial import TrialRecord
from raysft.results.image_files import GivenImage
from raysft.results.model import read_card
from raysft.results.predict import Classifier, score_by_class
from raysft.results.ranking import Failed, Prediction, ranking_json
from raysft.results.readme import model_readme
from raysft.storage import read_json
from tests.conftest import make_images
from tests.deploy.models import make_model
from tests.results.made import make_run, some_records
from tests.results.test_readme import a_card, a_job, known_of
from tests.results.test_readme import parts as parts_of_card
from tests.results.test_readme import table as table_of_card
from tests.results.test_report import report_of

NAMES = (
    "line\nbreak",
    "carriage\rreturn",
    "tab\there",
    "a=b",
    "one, two",
    'it\'s "quoted"',
    "<b>bold</b>",
    "[red]",
    "[/red]",
    "[link=x]y[/link]",
    ":smile:",
    "👩‍🔬 🐈",
    "عربي",
    "\u202eevil",
    "no",
    "true",
    "null",
    "007",
    "1e3",
    " leading",
    "trailing ",
    "\x1b[31mred\x1b[0m",
    "\x07bell\x08",
    "\x9b2J",
    "a|b",
    "`code`",
    "{{ 7 * 7 }}",
    "x" * 300,
    "naïve 猫",
    "-",
    "# one",
    "&amp;",
    "%s {0}",
    "\\n",
    "\u2028next",
)
NO_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]")  # but line breaks


@pytest.fixture
def shown(capfd):
    """Call a function with a console; the lines that it shows there."""

    def _shown(show, *arguments) -> list[str]:
        capfd.readouterr()
        show(*arguments, Output())
        told = capfd.readouterr()
        assert not NO_CONTROLS.search(told.out + told.err)
        return told.out.splitlines() + told.err.splitlines()

    return _shown


def test_list_of_names_is_one_readable_line():
    assert not NO_CONTROLS.search(first_names(NAMES, 99))
    assert "\n" not in first_names(NAMES, 99)
    assert first_names(["a, b", "c", " d", ""]) == '"a, b", c, " d", ""'
    assert first_names(["x" * 300]) == "x" * (MAX_NAME_LENGTH - 1) + "…"


def test_names_change_only_where_utf8_is_invalid():
    assert [as_utf8(name) for name in NAMES] == list(NAMES)
    assert as_utf8(os.fsdecode(b"caf\xe9\n")) == "caf\\xe9\n"
    assert as_utf8("\ud83d") == "\\ud83d"
    assert [readable(name) for name in ("👩‍🔬", "عربي", "猫", "[red]")] == [
        "👩‍🔬",
        "عربي",
        "猫",
        "[red]",
    ]


def test_scores_have_a_row_a_class(shown):
    numbers = np.arange(len(NAMES))
    scores = {
        "images": len(NAMES),
        "notes": [],
        "accuracy": 1.0,
        **score_by_class(numbers, numbers, NAMES),
    }
    lines = shown(show_scores, scores)
    assert len(lines) == 3 + len(NAMES)
    for name, line in zip(NAMES, lines[3:], strict=True):
        assert line.startswith(clipped(name))


@pytest.mark.parametrize("start", [0, 9, 18])
def test_a_confusion_table_has_a_row_a_class(shown, monkeypatch, start):
    monkeypatch.setattr(console, "WIDTH_WITHOUT_TERMINAL", 2000)
    names = NAMES[start : start + 9]
    numbers = np.arange(len(names))
    lines = shown(
        show_scores,
        {"images": 9, "notes": [], "accuracy": 1.0, **score_by_class(numbers, numbers, names)},
    )
    heading, *rows = lines[-len(names) - 1 :]
    for name, row in zip(names, rows, strict=True):
        assert clipped(name) in heading
        assert row.startswith(clipped(name))
        assert row.removeprefix(clipped(name)).split() == [
            "1" if name == other else "0" for other in names
        ]


def test_predictions_are_a_line_an_image(shown):
    names = [*NAMES, os.fsdecode(b"caf\xe9.png")]
    answers = [Prediction(name, ((name, 0.5),)) for name in names]
    lines = shown(show_answers, answers, [], False)
    assert lines == [f"{readable(name)}: {readable(name)} 0.500" for name in names]
    failed = [Failed(name, DataError(readable(name), "is bad")) for name in names]
    assert shown(show_answers, failed, [], False) == [
        f"error: {readable(name)}: is bad" for name in names
    ]
    document = json.loads("".join(shown(show_answers, answers, [], True)))
    assert [(row["image"], row["class"]) for row in document[:-1]] == [
        (name, name) for name in NAMES
    ]
    assert document[-1]["image"] == "caf\\xe9.png"


def test_pixel_notes_are_counted_under_predictions(shown):
    answers = [
        Prediction("a.png", (("cat", 0.5),), (DARK, NO_END)),
        Prediction("b.png", (("cat", 0.5),), (DARK,)),
    ]
    for as_json in (False, True):
        lines = shown(show_answers, answers, [], as_json)
        assert lines[-2:] == [f"images {QUIRKS[NO_END]}: 1", f"images {QUIRKS[DARK]}: 2"]


def test_dark_images_of_unknown_range_are_counted(tmp_path):
    classifier = Classifier(make_model(tmp_path / "model"))
    folder = tmp_path / "photos" / classifier.card.classes[0]
    folder.mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(folder / "dark.png")
    Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(folder / "bright.png")
    dark, bright = (GivenImage(name, folder / name) for name in ("dark.png", "bright.png"))
    assert [answer.notes for answer in classifier.answers([dark, bright])] == [(DARK,), ()]
    assert (
        classifier.evaluate(tmp_path / "photos", "test")["notes"][-1] == f"images {QUIRKS[DARK]}: 1"
    )


def test_what_was_predicted_has_a_row_a_class(shown):
    names = NAMES[:20]
    lines = shown(
        show_predicted, Predicted("out.parquet", 20, 0, None, dict.fromkeys(names, 1), {})
    )
    assert [
        line.startswith(clipped(name)) for name, line in zip(names, lines[1:], strict=False)
    ] == [True] * 20
    assert len(lines) == 22


def test_watched_run_shows_names_and_errors_escaped(shown):
    document = {
        "run": "[red]",
        "status": "failed",
        "started": None,
        "metric": "val_accuracy",
        "trials": [
            {
                "trial": "t0",
                "status": "failed",
                "history": [],
                "seconds": 1.0,
                "config": {"model": {"name": "[b]x\n"}},
            }
        ],
        "progress": None,
        "errors": ["error: [Errno 2] \x1b[31m"],
    }
    text = "\n".join(shown(lambda output: output.out.print(picture(document, 0.0))))
    assert "[red]: failed" in text
    assert "[b]x\\n" in text
    assert "[Errno 2] \\x1b[31m" in text


@pytest.mark.slow
def test_a_report_shows_the_names(tmp_path):
    page = report_of(make_run(tmp_path, NAMES, some_records(), rows=2 * len(NAMES)))
    shown = [row[0] for row in page.tables["classes"][0][1:]]
    assert shown == [name.replace("\r", "\n") for name in NAMES] or shown == list(NAMES)
    assert not {"b", "red"} & (page.tags - {"b"})
    json.dumps(page.parts).encode()


def test_a_model_and_its_card_hold_the_names(tmp_path):
    assert read_card(make_model(tmp_path / "model", NAMES)).classes == NAMES
    text = model_readme(
        a_card(NAMES), replace(known_of(a_job()), class_rows=tuple(range(100, 100 + len(NAMES))))
    )
    matter, body = parts_of_card(text)
    assert matter["library_name"] == "raysft"
    assert list(table_of_card(body, "class").values()) == [
        [f"{count}"] for count in range(100, 100 + len(NAMES))
    ]


def test_a_data_set_holds_the_names(tmp_path, shown):
    make_run(tmp_path, NAMES, some_records(), rows=2 * len(NAMES))
    assert read_manifest(tmp_path / "D").classes == NAMES
    document = json.loads("".join(shown(show_data, str(tmp_path / "D"), None, True)))
    assert tuple(document["classes"]) == NAMES
    assert len(shown(show_data, str(tmp_path / "D"), None, False)) == 4


def test_results_of_a_run_hold_the_names(tmp_path):
    record = TrialRecord(
        "t0", {"model": {"name": "[red]\n\x1b"}}, "finished", some_records()[1].history, 0.0, 1.0
    )
    run = make_run(tmp_path, NAMES, [record], rows=2 * len(NAMES))
    assert read_results(str(run.folder))["best"]["config"] == record.config
    assert read_json(run.folder / "run.json")["data"]["classes"] == list(NAMES)


def test_answers_of_a_server_hold_the_names():
    body = JSONResponse([ranking_json(((name, 1.0),)) for name in NAMES]).body
    assert tuple(row["class"] for row in json.loads(body)) == NAMES


@pytest.mark.slow
def test_exports_hold_the_names(tmp_path):
    model = make_model(tmp_path / "model", NAMES)
    classifier = Classifier(model)
    _write_onnx(tmp_path / "model.onnx", model, classifier)
    stored = {each.key: each.value for each in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert tuple(json.loads(stored["classes"])) == NAMES
    _write_torch_export(tmp_path / "model.pt2", model, classifier)
    torch.export.load(tmp_path / "model.pt2", extra_files=(extra := {"classes.json": ""}))
    assert tuple(json.loads(extra["classes.json"])) == NAMES


@pytest.fixture
def photos(tmp_path) -> Path:
    """Images with all the names that files can have, one of which is not UTF-8."""
    content = next(make_images(tmp_path / "one", {"a": 1}).rglob("*.png")).read_bytes()
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (*NAMES, os.fsdecode(b"caf\xe9"), "x" * 240):
        if len(name) < 250 and "/" not in name:
            (folder / f"{name}.png").write_bytes(content)
    (folder / os.fsdecode(b"torn\xe9.png")).write_bytes(b"torn")
    return folder


def test_bulk_predictions_hold_the_names_of_files(tmp_path, photos):
    model = make_model(tmp_path / "model", NAMES)
    (chunk,) = list_source(photos).chunks
    table = Predictor(
        PredictorSettings(str(model), str(tmp_path), False, True, 1, False, "")
    ).table(chunk)
    pq.write_table(table, tmp_path / "out.parquet")
    read = pq.read_table(tmp_path / "out.parquet")
    rows = {row["image"]: row for row in read.to_pylist()}
    whole = {f"{name}.png" for name in (*NAMES, "x" * 240) if len(name) < 250 and "/" not in name}
    assert set(rows) == whole | {"caf\\xe9.png", "torn\\xe9.png"}
    assert "is not a readable image" in rows["torn\\xe9.png"]["error"]
    assert {row["class"] for row in rows.values()} <= {*NAMES, None}
    assert tuple(json.loads(read.schema.metadata[b"classes"])) == NAMES


def test_files_of_any_name_are_predicted(tmp_path, photos):
    classifier = Classifier(make_model(tmp_path / "model"))
    files = sorted(map(str, photos.iterdir()))
    answers = list(classifier.answers(GivenImage(file, Path(file)) for file in files))
    assert [answer.image for answer in answers] == files
    assert sum(isinstance(answer, Failed) for answer in answers) == 1


def test_folders_of_any_name_are_shown(tmp_path, shown):
    names = [name for name in NAMES if 0 < len(name) < 250 and "/" not in name]
    for name in names:
        make_images(tmp_path / "photos", {name: 6})
    found = Folders.find(tmp_path / "photos", None)
    assert sorted(found.classes) == sorted(names)
    lines = shown(show_data, str(tmp_path / "photos"), None, False)
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("class ")) :]
    for name, line in zip(found.classes[:20], table[1:], strict=False):
        assert line.startswith(clipped(name))
