"""The report of a run: every figure in it is that of the run's files, and nothing in it is anything
but text.
"""

import base64
import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raysft.data.shards import (
    ImageSpec,
    Manifest,
    Split,
    read_manifest,
    read_table,
    unpack_rows,
    write_manifest,
    write_shard,
)
from raysft.data.walk import FileCounts
from raysft.errors import DataError, UserError
from raysft.job import Job
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.results import answers
from raysft.results.charts import log_ticks
from raysft.results.figures import read_figures
from raysft.results.predict import score_by_class
from raysft.results.report import format_duration, write_report
from raysft.results.thumbnails import Images
from raysft.storage import read_json
from raysft.train import metrics
from tests.results.made import CLASSES, config, epochs, make_run, some_records

RAYSFT = str(Path(sys.executable).parent / "raysft")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><b>",
    "' {{ 7 * 7 }} &lt;",
)


class Page(HTMLParser):
    """What a browser without JavaScript would see: the tables of each section, text, images and
    scripts.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.html = file.read_text()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.text: dict[str, str] = {}
        self.pictures: list[dict[str, str | None]] = []
        self.scripts: list[str] = []
        self.tags: set[str] = set()
        self._section, self._inside = "", []
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._inside.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"]
        elif tag == "table":
            self.tables.setdefault(self._section, []).append([])
        elif tag == "tr":
            self.tables[self._section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self._section][-1][-1].append("")
        elif tag == "img":
            self.pictures.append({"section": self._section, **dict(attrs)})
        elif tag == "script":
            self.scripts.append("")
        if tag in ("img", "meta", "rect", "br"):
            self._inside.pop()

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self._inside.pop() == tag

    def handle_data(self, data):
        if self._inside and self._inside[-1] == "script":
            self.scripts[-1] += data
        elif self._inside and self._inside[-1] != "style":
            self.text[self._section] = self.text.get(self._section, "") + data
            if "td" in self._inside or "th" in self._inside:
                self.tables[self._section][-1][-1][-1] += data

    @property
    def parts(self) -> dict:
        """The specifications of the charts with the data they share."""
        return json.loads(self.scripts[0])

    @property
    def charts(self) -> dict:
        return self.parts["charts"]

    def values(self, chart: str) -> list[dict]:
        return self.charts[chart]["data"]["values"]


def report_of(run: Run) -> Page:
    file = write_report(run.folder)
    assert file == run.folder / "report.html"
    return Page(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Run:
    repeats = [
        TrialRecord(
            f"t1-seed{seed}",
            config("adamw", 1e-3),
            "finished",
            epochs(3, 0.9 - seed / 100),
            0.0,
            4.5,
        )
        for seed in (8, 9)
    ]
    return make_run(tmp_path_factory.mktemp("made"), repeats=repeats, skipped=2)


@pytest.fixture(scope="module")
def page(made) -> Page:
    return report_of(made)


# --- every figure ------------------------------------------------------------------------------


def test_figures_of_trials_match_the_runs_files(made):
    found, results = read_figures(made.folder), read_json(made.folder / "results.json")
    for key in ("run", "status", "metric", "mode", "best", "timing"):
        assert found[key] == results[key]
    assert [t["trial"] for t in found["trials"]] == ["t1", "t2", "t0", "t3"]
    for trial, row in zip(found["trials"], results["trials"], strict=True):
        assert {key: trial[key] for key in row} == row
        record = read_json(made.folder / "trials" / row["trial"] / "trial.json")
        assert (trial["history"], trial["trace"]) == (record["history"], record["trace"])
    assert [(t["optimizer"], t["lr"], t["best_epoch"]) for t in found["trials"]] == [
        ("adamw", 1e-3, 3),
        ("sgd", 0.02, 3),
        ("sgd", 0.1, 1),
        ("sgd", 9.0, None),
    ]
    assert found["cost"] == pytest.approx(36 * 12.5 / 3600)
    assert [
        (h["host"], h["trials"], h["epochs"], h["images"], h["train_seconds"])
        for h in found["hosts"]
    ] == [("10.0.0.1", 2, 4, 80, 5.0), ("10.0.0.2", 1, 3, 60, 3.75)]


def test_figures_of_test_images_match_the_score(made):
    found, best = read_figures(made.folder)["test"], read_json(made.folder / "results.json")["best"]
    rows = pq.read_table(made.folder / "test_predictions.parquet").to_pydict()
    expected = score_by_class(np.array(rows["label"]), np.array(rows["predicted"]), CLASSES)
    assert found["confusion"] == expected["confusion"]
    for row, other in zip(found["classes"], expected["classes"], strict=True):
        assert row == pytest.approx(other)
    assert found["accuracy"] == pytest.approx(best["test_accuracy"])
    assert found["calibration"]["error"] == pytest.approx(best["test_calibration_error"], rel=1e-6)
    assert np.mean([row["f1"] for row in found["classes"]]) == pytest.approx(best["test_macro_f1"])
    assert (
        0
        < found["mistakes"]
        == 24 - np.trace(found["confusion"])
        == sum(p["images"] for p in found["confused"])
    )
    bins = found["calibration"]["bins"]
    assert len(bins) == answers.BINS == metrics.BINS
    assert sum(b["images"] for b in bins) == 24
    assert sum(b["images"] * b["accuracy"] for b in bins if b["images"]) == pytest.approx(
        24 * best["test_accuracy"]
    )


def test_the_surest_mistakes_come_first(made):
    rows = pq.read_table(made.folder / "test_predictions.parquet").to_pylist()
    wrong = sorted(
        (r for r in rows if r["label"] != r["predicted"]),
        key=lambda r: r["label_probability"] - r["probability"],
    )
    assert read_figures(made.folder)["test"]["worst"] == wrong


def test_the_tables_of_the_page_show_the_figures(made, page):
    found = read_figures(made.folder)
    board = page.tables["leaderboard"][0]
    assert board[0] == [
        "place",
        "trial",
        "status",
        "val accuracy",
        "val loss",
        "best epoch",
        "epochs",
        "seconds",
        "configuration",
    ]
    assert board[1] == [
        "1",
        "t1",
        "finished",
        "0.9000",
        "1.0000",
        "3",
        "3",
        "4.5",
        "adamw lr=0.001",
    ]
    assert board[4] == ["4", "t3", "diverged", "-", "-", "-", "0", "0.5", "sgd lr=9"]
    assert page.tables["leaderboard"][1][1:] == [["7", "0.9000"], ["8", "0.8200"], ["9", "0.8100"]]
    assert "0.8433 ± 0.0493" in page.text["leaderboard"]
    assert len(page.tables["curves"][0]) == 1 + 7
    assert page.tables["curves"][0][1] == ["t1", "1", "2.0000", "0.5000", "3.0000", "0.3000", "1.5"]
    matrix = page.tables["confusion"][0]
    assert [row[0] for row in matrix] == ["", *CLASSES]
    assert [[int(n) for n in row[1:]] for row in matrix[1:]] == found["test"]["confusion"]
    assert page.tables["classes"][0][1:] == [
        [row["class"], *(f"{row[key]:.4f}" for key in ("precision", "recall", "f1")), "8"]
        for row in found["test"]["classes"]
    ]
    shown = [(int(row[1]), row[3]) for row in page.tables["calibration"][0][1:]]
    assert shown == [
        (b["images"], "-" if b["accuracy"] is None else f"{b['accuracy']:.4f}")
        for b in found["test"]["calibration"]["bins"]
    ]
    assert [row[:3] for row in page.tables["data"][0][1:]] == [[name, "8", "8"] for name in CLASSES]
    assert "2 unreadable images" in page.text["data"]
    assert [row[1:] for row in page.tables["time"][0]] == [
        ["2.0 s", "16.0 %"],
        ["8.0 s", "64.0 %"],
        ["2.5 s", "20.0 %"],
        ["12.5 s", ""],
    ]
    assert [row[:5] for row in page.tables["time"][1][1:]] == [
        ["10.0.0.1", "2", "4", "80", "16"],
        ["10.0.0.2", "1", "3", "60", "16"],
    ]
    info = read_json(made.folder / "run.json")
    for known in (
        info["data"]["fingerprint"],
        info["job"],
        info["git"] or "repository",
        info["versions"]["torch"],
        "a" * 64,
        str(made.folder / "model"),
        "price_per_hour: 36.0",
    ):
        assert known in page.text["provenance"]


def test_summary_tells_search_score_and_cost(made, page):
    lines = " ".join(page.text[""].split())
    accuracy = read_json(made.folder / "results.json")["best"]["test_accuracy"]
    assert (
        "a random search of 4 trials over optimizer, each of at most 3 epochs, by val accuracy"
        in lines
    )
    assert (
        "t1 (adamw lr=0.001), epoch 3: val accuracy 0.9000 (0.8433 ± 0.0493 over 3 seeds); test "
        "accuracy "
        f"{accuracy:.4f} on 24 images"
    ) in lines
    assert (
        "12.5 s, 2.0 s of it to start; 18 training images a second; 2 of 4 trials ended early; "
        "cost 0.12" in lines
    )


def test_the_charts_show_the_figures(made, page):
    for name, key in (
        ("curve-metric", "val_accuracy"),
        ("curve-val-loss", "val_loss"),
        ("curve-train-loss", "train_loss"),
    ):
        assert page.charts[name]["data"] == {"name": "epochs"}
        assert page.charts[name]["encoding"]["y"]["field"] == key
        assert [
            (v["trial"], v["epoch"], v[key], v.get("best", False))
            for v in page.parts["datasets"]["epochs"]
        ] == [
            (t["trial"], e["epoch"], pytest.approx(e[key], rel=1e-5), t["trial"] == "t1")
            for t in read_figures(made.folder)["trials"]
            for e in t["history"]
        ]
    assert [(v["lr"], v["value"], v["ended"]) for v in page.values("rates")] == [
        (1e-3, 0.9, "to the end"),
        (0.02, 0.8, "to the end"),
        (0.1, 0.5, "stopped early"),
    ]
    assert [(v["trial"], v["so_far"]) for v in page.values("progress")] == [
        ("t0", 0.5),
        ("t1", 0.9),
        ("t2", 0.9),
    ]
    bins = read_figures(made.folder)["test"]["calibration"]["bins"]
    assert [v["images"] for v in page.values("certainty")] == [b["images"] for b in bins]
    assert [v["accuracy"] for v in page.values("reliability")] == pytest.approx(
        [b["accuracy"] for b in bins if b["images"]], rel=1e-5
    )
    assert "t3" in page.text["search"]  # no epoch, so no point


def test_pictures_are_those_of_the_rows(made, page):
    data = Path(read_json(made.folder / "run.json")["data"]["path"])
    manifest, pixels = read_manifest(data), {}
    for file in manifest.splits["test"].files:
        ids, images, _ = unpack_rows(read_table(data, file), manifest.image)
        pixels |= dict(zip(ids.tolist(), images, strict=True))
    worst = [mistake["id"] for mistake in read_figures(made.folder)["test"]["worst"]]
    shown = [p for p in page.pictures if p["section"] == "mistakes"]
    assert [p["alt"] for p in shown] == [f"test image {row}" for row in worst]
    for row, picture in zip(worst, shown, strict=True):
        raw = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw))), pixels[row])
        assert (picture["class"], picture["width"]) == (
            "tiny",
            "96",
        )  # 8 pixels enlarged by a whole number
    assert {p["alt"] for p in page.pictures if p["section"] == "data"} == set(CLASSES)


# --- what may be missing -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_whose_every_trial_failed_tells_why(tmp_path):
    records = [
        TrialRecord(
            f"t{i}",
            config("sgd", 0.1),
            "failed",
            [],
            0.0,
            0.5,
            "RuntimeError: not <today>",
            "Traceback (most recent call last): <here>",
        )
        for i in range(2)
    ]
    page = report_of(make_run(tmp_path, records=records))
    assert "No model: no trial finished an epoch. t0: RuntimeError: not <today>" in page.text[""]
    assert page.text["leaderboard"].count("Traceback (most recent call last): <here>") == 2
    assert "details" in page.tags
    assert page.charts == {}
    assert "The run has kept no predictions" in page.text["test"]


@pytest.mark.slow
def test_missing_predictions_are_one_line_in_report(tmp_path):
    page = report_of(make_run(tmp_path, predicted=False))
    assert (
        "The run has kept no predictions of its test images (test_predictions.parquet)."
        in page.text["test"]
    )
    assert not {"confusion", "calibration", "mistakes"} & page.text.keys()
    assert {"curve-metric", "rates"} <= page.charts.keys()


@pytest.mark.slow
def test_job_without_search_has_no_search_charts(tmp_path):
    page = report_of(make_run(tmp_path, records=some_records()[1:2]))
    assert "The job has no search" in page.text["search"]
    assert "one training of 3 epochs" in page.text[""]
    assert not {"rates", "progress"} & page.charts.keys()


def test_population_shows_who_went_on_from_whom(tmp_path):
    def with_rates(count, best, rate):
        return [{**epoch, "learning_rate": rate} for epoch in epochs(count, best)]

    weak = TrialRecord("t0", config("sgd", 0.5), "finished", with_rates(2, 0.1, 0.5), 0.0, 3.0)
    strong = with_rates(3, 0.9, 0.01)
    weak.take_over("t1", config("sgd", 0.012), strong[:2])
    weak.add({**strong[2], "learning_rate": 0.012})
    best = TrialRecord("t1", config("sgd", 0.01), "finished", strong, 0.0, 4.5)
    search = {"trials": 2, "scheduler": "pbt", "space": {"optimizer": ["sgd"]}}
    run = make_run(tmp_path, records=[best, weak], search=search)
    page = report_of(run)
    assert page.tables["search"][0][1:] == [
        ["t0", "t1", "2", "2", "sgd lr=0.012", "sgd lr=0.5"],
    ]
    drawn = [v for v in page.parts["datasets"]["epochs"] if v["trial"] == "t0"]
    assert [v["learning_rate"] for v in drawn] == [0.01, 0.01, 0.012]
    assert [v.get("from") for v in drawn] == [None, "t1", None]
    assert page.charts["curve-rate"]["encoding"]["y"]["field"] == "learning_rate"
    assert read_json(run.folder / "results.json")["trials"][1]["came_from"][0]["trial"] == "t1"


@pytest.mark.slow
def test_search_without_learning_rates_omits_their_chart(tmp_path):
    records = [
        TrialRecord(f"t{i}", {"train.batch_size": size}, "finished", epochs(2, 0.5), 0.0, 3.0)
        for i, size in enumerate((32, 64))
    ]
    page = report_of(make_run(tmp_path, records=records))
    assert "do not differ in the learning rate" in page.text["search"]
    assert "rates" not in page.charts
    assert "progress" in page.charts


@pytest.mark.slow
def test_missing_or_other_data_leaves_pictures_out(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "D").rename(tmp_path / "elsewhere")
    page = report_of(run)
    assert f"{tmp_path}/D: is not a data set" in page.text["data"]
    assert f"{tmp_path}/D: is not a data set" in page.text["mistakes"]
    assert page.pictures == []
    assert [row[0] for row in page.tables["data"][0][1:]] == list(CLASSES)
    (tmp_path / "other").mkdir()
    make_run(tmp_path / "other", ("x", "y"))
    (tmp_path / "other/D").rename(tmp_path / "D")
    assert "is not the data that the run was trained on" in report_of(run).text["data"]


@pytest.mark.slow
def test_damaged_shard_leaves_pictures_out(tmp_path):
    run = make_run(tmp_path)
    flip_a_pixel(tmp_path / "D/train/0000.parquet")
    page = report_of(run)
    assert "D/train/0000.parquet: does not have the checksum" in page.text["data"]
    assert page.pictures == []


def test_encoded_images_of_any_size_are_shown_small(tmp_path):
    (tmp_path / "train").mkdir()
    files = []
    for size in ((300, 200), (20, 40)):
        content = io.BytesIO()
        Image.new("RGB", size, (200, 30, 30)).save(content, "PNG")
        files.append(content.getvalue())
    spec = ImageSpec("file")
    shard = write_shard(
        tmp_path / "train/0000.parquet", spec, np.array([5, 9]), files, np.array([0, 1], np.int32)
    )
    manifest = Manifest(("a", "b"), spec, (0.5,) * 3, (0.25,) * 3, {"train": Split(2, (shard,))})
    write_manifest(tmp_path, manifest)
    images = Images({"path": str(tmp_path), "fingerprint": manifest.fingerprint})
    large, small = images.thumbnails("train", [9, 5]).values()
    assert (large.width, large.height, large.tiny) == (96, 64, False)
    assert (small.width, small.height, small.tiny) == (20, 40, True)
    assert large.uri.startswith("data:image/jpeg")
    assert images.samples("train") == {0: [large], 1: [small]}
    assert images.counts("train") == [1, 1]


def test_only_shards_with_wanted_rows_are_read(tmp_path):
    run = make_run(tmp_path)
    flip_a_pixel(tmp_path / "D/test/0001.parquet")
    images = Images(read_json(run.folder / "run.json")["data"])
    assert sorted(images.thumbnails("test", [2, 20])) == [2, 20]
    with pytest.raises(DataError, match=r"0001\.parquet"):
        images.thumbnails("test", [2, 8])


def flip_a_pixel(shard: Path) -> None:
    """Damage that reading ids and labels does not meet."""
    table = pq.read_table(shard)
    content, pixel = bytearray(shard.read_bytes()), table["image"][0].as_py()
    content[content.index(pixel[:32])] ^= 1
    shard.write_bytes(content)


def test_a_run_without_results_has_no_report(tmp_path):
    run = Run.create(Job(storage=str(tmp_path)), "young")
    with pytest.raises(UserError, match="young: has no results: its status is starting"):
        write_report(run.folder)


@pytest.mark.parametrize("damage", ["torn", "class", "share", "column", "empty"])
def test_predictions_that_are_none_are_told(tmp_path, damage):
    run = make_run(tmp_path)
    file = run.folder / "test_predictions.parquet"
    rows = pq.read_table(file).to_pydict()
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-20])
    else:
        changed = {
            "class": rows | {"predicted": [3] * 24},
            "share": rows | {"probability": [float("nan")] * 24},
            "column": {k: v for k, v in rows.items() if k != "label"},
            "empty": {k: v[:0] for k, v in rows.items()},
        }
        pq.write_table(pa.table(changed[damage]), file)
    with pytest.raises(
        UserError, match=r"predictions.parquet: (cannot be read|does not hold predictions of 3 cla)"
    ):
        read_figures(run.folder)


# --- only text, small, and quick ---------------------------------------------------------------


def test_names_and_errors_are_text_whatever_they_hold(tmp_path):
    records = [
        *some_records()[:3],
        TrialRecord("t3", config("sgd", 9.0), "failed", [], 0.0, 0.5, HOSTILE[0], HOSTILE[2]),
    ]
    page = report_of(make_run(tmp_path, HOSTILE, records))
    assert len(page.scripts) == 3  # figures, library, program: no other
    assert "alert" not in "".join(page.scripts[1:])
    assert [row[0] for row in page.tables["classes"][0][1:]] == list(HOSTILE)
    assert [row[0] for row in page.tables["confusion"][0][1:]] == list(HOSTILE)
    assert HOSTILE[0] in page.text["leaderboard"]
    assert "<script>alert" not in page.html
    assert "onerror" not in {name for picture in page.pictures for name in picture}
    assert page.html.count("</script>") == 3


@pytest.mark.slow
def test_large_report_stays_below_three_megabytes(tmp_path):
    classes = [f"class number {i}" for i in range(200)]
    records = [
        TrialRecord(
            f"t{i:03d}",
            config("sgd", 0.001 * (i + 1)),
            "finished",
            epochs(6, 0.2 + i / 1000),
            0.0,
            9.0,
        )
        for i in range(600)
    ]
    run = make_run(tmp_path, classes, records, rows=800, shard_rows=200, size=100)
    begun = time.process_time()  # not on the clock: others may hold the cores
    page = report_of(run)
    assert time.process_time() - begun < 10
    assert (run.folder / "report.html").stat().st_size < 3_000_000
    found = read_figures(run.folder)["test"]
    assert found["confusion"] is None
    assert len(page.tables["confusion"][0]) == 1 + 20
    assert [int(row[2]) for row in page.tables["confusion"][0][1:]] == [
        p["images"] for p in found["confused"]
    ]
    assert "Curves of 500 of 600 trials" in page.text["curves"]
    assert len(page.parts["datasets"]["epochs"]) == 500 * 6
    assert len(page.tables["leaderboard"][0]) == 1 + 500
    assert len(page.values("rates")) == 500
    assert all(picture["src"].startswith("data:image/jpeg") for picture in page.pictures)
    assert "Pictures of 24 of 200 classes" in page.text["data"]
    assert len(page.pictures) == 24 + 24 * 3  # of each class one from each of three shards


@pytest.mark.slow
def test_the_module_is_light_and_the_report_quick(made):
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, raysft.results.report\n"
            "print([m for m in ('torch', 'ray', 'sklearn') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"
    write_report(made.folder)  # the chart library is kept now
    begun = time.process_time()
    write_report(made.folder)
    assert time.process_time() - begun < 1


@pytest.mark.slow
def test_command_writes_given_file_or_prints_json(made, tmp_path):
    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAYSFT, "report", str(made.folder), *map(str, words)], capture_output=True, text=True
        )

    done = call("--out", tmp_path / "out.html")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out.html'}\n")
    assert (tmp_path / "out.html").read_text() == write_report(made.folder).read_text()
    assert json.loads(call("--json").stdout) == json.loads(json.dumps(read_figures(made.folder)))
    refused = call("--out", tmp_path / "nowhere/out.html")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(
        f"error: {tmp_path}/nowhere/out.html: cannot be written (No such file"
    )


def test_log_axis_has_few_round_ticks():
    assert log_ticks(0.0012, 0.13) == [0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
    assert log_ticks(1e-5, 0.2) == [1e-5, 1e-4, 1e-3, 1e-2, 0.1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.97, "1 min 0 s"),
        (59.9, "59.9 s"),
        (185, "3 min 5 s"),
        (3599.6, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (3.6e6, "1,000 h 0 min"),
    ],
)
def test_times_read_as_people_say_them(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.slow
def test_report_tells_how_data_was_read(tmp_path):
    run = make_run(tmp_path)
    manifest = read_manifest(tmp_path / "D")
    counts = (FileCounts("D/ant", 9, 8, {"hidden or system files": 1}),)
    write_manifest(
        tmp_path / "D", replace(manifest, counts=counts, notes=("train from <b>Training</b>/",))
    )
    text = report_of(run).text["data"]
    assert "train from <b>Training</b>/" in text
    assert "9 files seen, 8 used, 1 left out: 1 hidden or system files" in text
