"""The report of a run: one HTML file of figures, charts and pictures that needs no network to be
read.
"""

from __future__ import annotations

import base64
import hashlib
import math
from contextlib import suppress
from importlib import resources
from importlib.metadata import version
from typing import Any

import vl_convert
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from raysft.data.importer import cache_folder
from raysft.errors import StorageFull, UserError
from raysft.job.space import SECTIONS
from raysft.records.documents import Timing
from raysft.records.trial import metric_value
from raysft.results.charts import (
    CONFIG,
    EPOCHS,
    MOST_TRIALS,
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
    """Write the report of a run to `out`, else to report.html in its directory; returns where it
    is.

    A run whose every trial failed has a report too. Raises UserError where the run has no results
    yet or the file cannot be written, StorageFull.
    """
    document, images = gather_figures(folder)
    target = out or folder / REPORT
    text = page(document, images)
    try:
        write_text(target, text)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull(str(target)) from None
        raise UserError(
            str(target), f"cannot be written ({error.strerror or error})", "give another --out"
        ) from None
    return target


def page(document: Figures, images: Images | None) -> str:
    """The HTML of a report with the figures `document`."""
    library, program, style = chart_library(), _part("report.js"), _part("report.css")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
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
    template = environment.from_string(_part("report.html.jinja"))
    return template.render(
        f=document,
        lines=summary_lines(document),
        drawn=build_charts(document),
        chart_parts={"config": CONFIG, "datasets": {EPOCHS: epoch_values(document)}},
        pictures=_pictures(document, images),
        curves=len(trials_with_curves(document["trials"])),
        size_in=size_in,
        metrics=list(dict.fromkeys([document["metric"], "val_accuracy", "val_loss"])),
        heat=heat,
        shares=_shares(document["timing"]),
        epochs=_epoch_rows(document),
        most=MOST_ROWS,
        most_trials=MOST_TRIALS,
        job=yaml.safe_dump(document["job"], sort_keys=False, allow_unicode=True),
        policy=_policy([library, program], style),
        library=Markup(library),
        program=Markup(program),
        style=Markup(style),
    )


# --- words -------------------------------------------------------------------------------------


def summary_lines(document: Figures) -> list[tuple[str, str]]:
    """What was asked, what came out, and what it took."""
    return [
        ("Asked", _asked(document)),
        ("Came out", _came_out(document)),
        ("Took", _took(document)),
    ]


def _asked(document: Figures) -> str:
    job, data, trials = document["job"], document["data"], document["trials"]
    space = job["search"]["space"] if job["search"] else {}
    network = f"{job['model']['name']} (weights {job['model']['weights']})"
    if "model" in space or "model.name" in space:
        network = "the networks of the search"
    most = count_text(job["train"]["epochs"], "epoch")
    how = f"one training of {most}"
    if job["search"]:
        over = ", ".join(key if key in SECTIONS else key.removeprefix("train.") for key in space)
        how = (
            f"a {job['search']['algorithm']} search of {count_text(len(trials), 'trial')} over "
            f"{over}, each of "
            f"at most {most}, by {_metric(document['metric'])}"
        )
    return (
        f"{network} on {data['rows']['train']:,} training images in {len(data['classes'])} classes "
        f"({data['source']}); {how}."
    )


def _came_out(document: Figures) -> str:
    best, metric = document["best"], document["metric"]
    if best is None:
        first = document["trials"][0]
        return f"No model: no trial came to the end of an epoch. {first['trial']}: {first['error']}"
    again = best.get("confirmed")
    spread = (
        f" ({again['mean']:.4f} ± {again['std']:.4f} over "
        f"{count_text(len(again['seeds']), 'seed')})"
        if again is not None
        else ""
    )
    return (
        f"{best['trial']} ({config_text(best['config'])}), epoch {best['epoch']}: "
        f"{_metric(metric)} "
        f"{metric_value(best, metric):.4f}{spread}; test accuracy {best['test_accuracy']:.4f} on "
        f"{document['data']['rows']['test']:,} images that no trial has seen."
    )


def _took(document: Figures) -> str:
    timing, search = document["timing"], document["search"]
    parts = [
        f"{format_duration(timing['total_s'])}, {format_duration(timing['startup_s'])} of it to start"
    ]
    if timing["images_per_s"]:
        parts.append(f"{timing['images_per_s']:,.0f} training images a second")
    if search is not None:
        parts.append(
            f"{search['ended_early']} of {count_text(len(document['trials']), 'trial')} ended early"
        )
    if document["cost"] is not None:
        parts.append(f"cost {document['cost']:,.2f}")
    return "; ".join(parts) + "."


def _metric(metric: str) -> str:
    return metric_text(metric, short=False)


def format_duration(seconds: float) -> str:
    """A time as people say it: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def format_moment(stamp: str) -> str:
    """A time of run.json (2026-11-24T20:46:35+0000) as people write it: 2026-11-24 20:46 UTC."""
    zone = stamp[19:]
    return f"{stamp[:10]} {stamp[11:16]} {'UTC' if zone in ('+0000', '') else zone}"


# --- rows --------------------------------------------------------------------------------------


def _shares(timing: Timing) -> list[dict[str, Any]]:
    """Where the time of a run went: name, seconds, and where its part of the whole begins and how
    wide it is, in %.
    """
    rest = max(0.0, timing["total_s"] - timing["startup_s"] - timing["train_s"])
    at, shares = 0.0, []
    for name, seconds in (
        ("start", timing["startup_s"]),
        ("search and training", timing["train_s"]),
        ("test score and delivery", rest),
    ):
        width = 100 * seconds / (timing["total_s"] or 1.0)
        shares.append(
            {"name": name, "seconds": seconds, "at": round(at, 3), "width": round(width, 3)}
        )
        at += width
    return shares


def _epoch_rows(document: Figures) -> list[dict[str, Any]]:
    """Epochs of trials, the best trial first, as many as a page can hold."""
    rows = [
        {"trial": trial["trial"], "best": epoch["epoch"] == trial["best_epoch"], **epoch}
        for trial in document["trials"]
        for epoch in trial["history"]
    ]
    return rows[:MOST_ROWS]


def heat(images: int, total: int, right: bool) -> str:
    """The style of a cell of the confusion matrix: of five shades, by the share of its row;
    mistakes show sooner.
    """
    if not images:
        return "zero"
    share = images / total
    shade = math.ceil(share * 5) if right else math.ceil(share * 20)
    return f"{'hit' if right else 'miss'} h{min(5, shade)}"


# --- pictures ----------------------------------------------------------------------------------


def _pictures(document: Figures, images: Images | None) -> dict[str, Any]:
    """Thumbnails of the worst mistakes by row id and of samples by class, or why there are none."""
    none: dict[str, Any] = {"worst": {}, "samples": {}}
    if images is None:
        return none | {"unreached": document["data"]["unreached"]}
    worst = [mistake["id"] for mistake in document["test"]["worst"]] if document["test"] else []
    try:
        return {
            "worst": images.thumbnails("test", worst),
            "samples": images.samples("train"),
            "unreached": None,
        }
    except UserError as error:
        return none | {"unreached": str(error)}


def size_in(picture: Thumbnail, box: int) -> tuple[int, int]:
    """(width, height) of a thumbnail in a box: small ones are enlarged by a whole number, others
    scaled to fit.
    """
    factor = box / max(picture.width, picture.height)
    if picture.tiny:
        factor = max(1, int(factor))
    return max(1, round(picture.width * factor)), max(1, round(picture.height * factor))


# --- parts of the file -------------------------------------------------------------------------


def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, kept in the cache: it takes a second to put
    together.
    """
    file = cache_folder() / f"charts-{version('vl-convert-python')}.json"
    with suppress(OSError, ValueError):  # not there yet, or damaged: it is made again
        return read_json(file)["script"]
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    with suppress(OSError):  # a cache that cannot be written costs the next report a second
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"script": script})
    return script


def _part(name: str) -> str:
    return resources.files("raysft.results").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: list[str], style: str) -> str:
    """A content security policy under which this page's scripts and style count, and no others, and
    nothing is fetched.

    The charts need no `eval`: report.js has Vega interpret its expressions.
    """
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
