"""The report of a run: one HTML file of figures, charts and pictures, readable offline."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from typing import TypedDict

import vl_convert
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from raysft.data.importer import cache_folder
from raysft.errors import StorageFullError, UserError
from raysft.job.space import SECTIONS
from raysft.records.documents import EpochMetrics, Takeover, Timing
from raysft.records.trial import metric_value
from raysft.results.charts import (
    CONFIG,
    EPOCHS,
    MOST_TRIALS,
    build_charts,
    epoch_values,
    trials_with_curves,
)
from raysft.results.document import Figures
from raysft.results.figures import gather_figures
from raysft.results.thumbnails import Images, Thumbnail
from raysft.storage import StoragePath, is_disk_full, read_json, write_json, write_text
from raysft.wording import config_text, count_text, metric_text, score_text

REPORT = "report.html"
MOST_ROWS = 500  # of a table


def write_report(folder: StoragePath, out: StoragePath | None = None) -> StoragePath:
    """Write the report of a run to `out`, else to report.html in its directory; returns the path.

    A run whose every trial failed has a report too. Raises UserError where the run has no results
    yet or the file cannot be written, StorageFullError.
    """
    document, images = gather_figures(folder)
    target = out or folder / REPORT
    text = render_page(document, images)
    try:
        write_text(target, text)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFullError(str(target)) from None
        raise UserError(
            str(target), f"cannot be written ({error.strerror or error})", "give another --out"
        ) from None
    return target


def render_page(document: Figures, images: Images | None) -> str:
    """The HTML of a report with the figures `document`."""
    library, program, style = chart_library(), _read_part("report.js"), _read_part("report.css")
    template = _environment().from_string(_read_part("report.html.jinja"))
    return template.render(
        f=document,
        lines=summary_lines(document),
        drawn=build_charts(document),
        # What the curves have in common stands once in the page, and not in each chart.
        chart_parts={"config": CONFIG, "datasets": {EPOCHS: epoch_values(document)}},
        pictures=_pictures(document, images),
        curves=len(trials_with_curves(document["trials"])),
        size_in=size_in,
        metrics=list(dict.fromkeys([document["metric"], "val_accuracy", "val_loss"])),
        heat=cell_style,
        shares=_time_shares(document["timing"]),
        epochs=_epoch_rows(document),
        takeovers=_takeovers(document),
        most=MOST_ROWS,
        most_trials=MOST_TRIALS,
        job=yaml.safe_dump(document["job"], sort_keys=False, allow_unicode=True),
        policy=_policy([library, program], style),
        # These three are raysft's own and are not escaped; all else comes from a run, and is.
        library=Markup(library),
        program=Markup(program),
        style=Markup(style),
    )


def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        # A figure that is misspelt in the template is an error, and not an empty cell.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # NaN is no JSON: a browser would show no chart at all.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "score": score_text,
        "config": config_text,
        "metric": _metric,
        "span": format_duration,
        "moment": format_moment,
        "count": count_text,
        "number": lambda value: f"{value:,}",
    }
    return environment


# --- words -------------------------------------------------------------------------------------


def summary_lines(document: Figures) -> list[tuple[str, str]]:
    """What was asked, what came out, and what it took."""
    return [
        ("Asked", _asked(document)),
        ("Came out", _came_out(document)),
        ("Took", _took(document)),
    ]


def _asked(document: Figures) -> str:
    job, data = document["job"], document["data"]
    network = f"{job['model']['name']} (weights {job['model']['weights']})"
    space = job["search"]["space"] if job["search"] else {}
    # The job's own network may be none of those that were trained.
    if "model" in space or "model.name" in space:
        network = "the networks of the search"
    rows = data["rows"]["train"]
    classes = len(data["classes"])
    return (
        f"{network} on {rows:,} training images in {classes} classes "
        f"({data['source']}); {_training(document, list(space))}."
    )


def _training(document: Figures, space: Sequence[str]) -> str:
    """How often a network was trained; space: what a search varied, by its keys in the job."""
    job = document["job"]
    most = count_text(job["train"]["epochs"], "epoch")
    if document["search"] is None:
        return f"one training of {most}"
    varied = ", ".join(key if key in SECTIONS else key.removeprefix("train.") for key in space)
    trials = count_text(len(document["trials"]), "trial")
    return (
        f"a {document['search']['algorithm']} search of {trials} over {varied}, "
        f"each of at most {most}, by {_metric(document['metric'])}"
    )


def _came_out(document: Figures) -> str:
    best, metric = document["best"], document["metric"]
    if best is None:
        # All have failed, most often for the same reason, which the first one tells.
        first = document["trials"][0]
        return f"No model: no trial finished an epoch. {first['trial']}: {first['error']}"
    spread = ""
    if "confirmed" in best:
        again = best["confirmed"]
        seeds = count_text(len(again["seeds"]), "seed")
        spread = f" ({again['mean']:.4f} ± {again['std']:.4f} over {seeds})"
    score = f"{_metric(metric)} {metric_value(best, metric):.4f}{spread}"
    test_rows = document["data"]["rows"]["test"]
    return (
        f"{best['trial']} ({config_text(best['config'])}), epoch {best['epoch']}: {score}; "
        f"test accuracy {best['test_accuracy']:.4f} on {test_rows:,} images that no trial has seen."
    )


def _took(document: Figures) -> str:
    timing, search = document["timing"], document["search"]
    total, startup = format_duration(timing["total_s"]), format_duration(timing["startup_s"])
    parts = [f"{total}, {startup} of it to start"]
    if timing["images_per_s"]:
        parts.append(f"{timing['images_per_s']:,.0f} training images a second")
    if search is not None:
        trials = count_text(len(document["trials"]), "trial")
        parts.append(f"{search['ended_early']} of {trials} ended early")
    if document["cost"] is not None:
        parts.append(f"cost {document['cost']:,.2f}")
    return "; ".join(parts) + "."


def _metric(metric: str) -> str:
    return metric_text(metric, short=False)


def format_duration(seconds: float) -> str:
    """A time as people say it: 4.2 s, 3 min 5 s, 2 h 10 min."""
    # Rounded first: 59.96 s is one minute and not 60.0 s.
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def format_moment(stamp: str) -> str:
    """A time of run.json (2026-11-24T20:46:35+0000) as people write it: 2026-11-24 20:46 UTC."""
    day, time, zone = stamp[:10], stamp[11:16], stamp[19:]
    # Without a zone the clock of a container is meant, which is UTC as a rule.
    if zone in ("+0000", ""):
        zone = "UTC"
    return f"{day} {time} {zone}"


# --- rows --------------------------------------------------------------------------------------


class TimeShare(TypedDict):
    """A part of the time of a run: where it begins on a bar and how wide it is, in %."""

    name: str
    seconds: float
    at: float
    width: float


def _time_shares(timing: Timing) -> list[TimeShare]:
    """Where the time of a run went."""
    # Each part is rounded for itself: their sum may be a hundredth more than the whole.
    rest = max(0.0, timing["total_s"] - timing["startup_s"] - timing["train_s"])
    parts = {
        "start": timing["startup_s"],
        "search and training": timing["train_s"],
        "test score and delivery": rest,
    }
    at = 0.0
    shares: list[TimeShare] = []
    for name, seconds in parts.items():
        width = 100 * seconds / (timing["total_s"] or 1.0)
        shares.append(
            {"name": name, "seconds": seconds, "at": round(at, 3), "width": round(width, 3)}
        )
        at += width
    return shares


class EpochRow(EpochMetrics):
    """An epoch in the table of all epochs."""

    trial: str
    best: bool
    """Whether it is the best one of its trial."""


def _epoch_rows(document: Figures) -> list[EpochRow]:
    """Epochs of trials, the best trial first, as many as a page can hold."""
    rows: list[EpochRow] = []
    for trial in document["trials"]:
        for epoch in trial["history"]:
            # By number: a trial that was resumed has each epoch once all the same.
            best = epoch["epoch"] == trial["best_epoch"]
            rows.append({**epoch, "trial": trial["trial"], "best": best})
    return rows[:MOST_ROWS]


class TakeoverRow(Takeover):
    """A row of the table of who went on from whom."""

    by: str


def _takeovers(document: Figures) -> list[TakeoverRow]:
    """Who went on from whom, trial by trial, as many as a page can hold."""
    rows: list[TakeoverRow] = []
    for trial in sorted(document["trials"], key=lambda trial: trial["trial"]):
        for taken in trial.get("came_from", []):
            rows.append({**taken, "by": trial["trial"]})
    return rows[:MOST_ROWS]


def cell_style(images: int, total: int, right: bool) -> str:
    """The style of a cell of the confusion matrix: of five shades, by the share of its row."""
    if not images:
        return "zero"
    share = images / total
    # A model worth looking at errs seldom: mistakes have their darkest shade from a fifth of the
    # row on, or none would be seen beside the diagonal.
    shade = math.ceil(share * 5) if right else math.ceil(share * 20)
    return f"{'hit' if right else 'miss'} h{min(5, shade)}"


# --- pictures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Thumbnails of the worst mistakes by row id and of samples by class, or why there are none."""

    worst: Mapping[int, Thumbnail] = field(default_factory=dict)
    samples: Mapping[int, Sequence[Thumbnail]] = field(default_factory=dict)
    unreached: str | None = None


def _pictures(document: Figures, images: Images | None) -> Pictures:
    if images is None:
        return Pictures(unreached=document["data"]["unreached"])
    test = document["test"]
    worst = [mistake["id"] for mistake in test["worst"]] if test is not None else []
    try:
        return Pictures(images.thumbnails("test", worst), images.samples("train"))
    except UserError as error:
        # The figures are worth a page without pictures, which says why there are none.
        return Pictures(unreached=str(error))


def size_in(picture: Thumbnail, box: int) -> tuple[int, int]:
    """(width, height) of a thumbnail in a box."""
    factor = box / max(picture.width, picture.height)
    # Pixels that are to be seen one by one must all have the same size: whole numbers only.
    if picture.tiny:
        factor = max(1, int(factor))
    width, height = round(picture.width * factor), round(picture.height * factor)
    return max(1, width), max(1, height)


# --- parts of the file -------------------------------------------------------------------------


def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    # Putting it together takes a second, so that it is kept in the cache.
    file = cache_folder() / f"charts-{version('vl-convert-python')}.json"
    with suppress(OSError, ValueError):  # not there yet, or damaged: it is made again
        kept: str = read_json(file)["script"]
        return kept
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    with suppress(OSError):  # a cache that cannot be written costs the next report a second
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"script": script})
    return script


def _read_part(name: str) -> str:
    return resources.files("raysft.results").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], style: str) -> str:
    """A content security policy under which only this page's scripts and style count, and nothing
    is fetched.
    """
    # Names of classes and files may hold anything; should one ever get past the escaping, a
    # browser still runs none of it. Vega needs no `eval`: report.js has it interpret expressions.
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
