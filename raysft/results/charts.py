"""The charts of a report as Vega-Lite specifications: plain dictionaries without any data that is
not a figure.

Colours are names of the page's style sheet, so that they follow the colour scheme without being
drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from raysft.job.metrics import metric_mode
from raysft.records.trial import metric_value
from raysft.results.document import Bin, Figures, TrialFigures
from raysft.wording import metric_text

Spec = dict[str, object]

EPOCHS = "epochs"  # the data that the curves share
RATE = "learning_rate"
MOST_POINTS = 3000  # of learning curves, over all trials
MOST_TRIALS = 500  # of the pictures of a search
LOG_RATIO = 20.0
HEIGHT = 240
BAR: Spec = {"type": "rect", "opacity": 0.7, "stroke": "var(--card)", "strokeWidth": 1}
SHARES: Spec = {"format": ".1f", "values": [0, 0.2, 0.4, 0.6, 0.8, 1], "labelOverlap": False}
ENDS = {
    "finished": "to the end",
    "stopped": "stopped early",
    "diverged": "diverged",
    "failed": "failed",
}

CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "padding": 2,
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 500,
        "titlePadding": 8,
        "labelPadding": 5,
        "labelOverlap": "greedy",
    },
    "axisX": {"grid": False},
    "axisY": {"tickCount": 6},
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--soft)",
        "titleFontWeight": 500,
        "titleFontSize": 12,
        "labelFontSize": 12,
        "orient": "top",
        "columns": 3,
        "symbolStrokeWidth": 2,
        "labelLimit": 140,
        "layout": {"top": {"direction": "vertical"}},
    },
    "range": {"category": [f"var(--series-{i})" for i in range(1, 9)]},
    "mark": {"color": "var(--series-1)"},
    "text": {"color": "var(--ink)"},
}


def build_charts(figures: Figures) -> dict[str, Spec]:
    """The specifications of a run's charts by the id of the element that each is drawn into."""
    found = curve_charts(figures)
    if figures["search"] is not None:
        scored = scored_trials(figures)
        if figures["search"]["by_rate"]:
            found["rates"] = rates(scored, figures["metric"])
        # One point shows no progress.
        if len(scored) > 1:
            found["progress"] = progress(scored, figures["metric"])
    if figures["test"] is not None:
        bins = figures["test"]["calibration"]["bins"]
        found |= {"reliability": reliability(bins), "certainty": certainty(bins)}
    return found


# --- learning curves ---------------------------------------------------------------------------


def curve_charts(figures: Figures) -> dict[str, Spec]:
    """The metric, and both losses, over the epochs of every trial; they draw the values of
    `epoch_values`.
    """
    values = epoch_values(figures)
    names = {
        "curve-metric": figures["metric"],
        "curve-val-loss": "val_loss",
        "curve-train-loss": "train_loss",
    }
    # The metric has a chart already.
    if figures["metric"] == "val_loss":
        del names["curve-val-loss"]
    if is_population(figures["trials"]):
        names["curve-rate"] = RATE
    return {name: curves(values, key) for name, key in names.items()} if values else {}


def is_population(trials: Sequence[TrialFigures]) -> bool:
    """Whether any trial went on from another one's weights."""
    return any(trial.get("came_from") for trial in trials)


def epoch_values(figures: Figures) -> list[Spec]:
    """What curves show of each epoch, once for all of them; `best` is there in those of the best
    trial alone.
    """
    keys = dict.fromkeys([figures["metric"], "val_loss", "train_loss"])
    if is_population(figures["trials"]):
        keys[RATE] = None
    shown = trials_with_curves(figures["trials"])
    values: list[Spec] = []
    for trial in shown:
        taken = trial.get("came_from", [])
        for epoch in trial["history"]:
            value: Spec = {
                "trial": trial["trial"],
                "optimizer": trial["optimizer"],
                "epoch": epoch["epoch"],
            }
            for key in keys:
                value[key] = _rounded(metric_value(epoch, key))
            # Only where it is true: false would be written thousands of times.
            if trial is shown[0]:
                value["best"] = True
            # The curve until there is that of the other one's weights.
            if taken and taken[-1]["epoch"] == epoch["epoch"]:
                value["from"] = taken[-1]["trial"]
            values.append(value)
    return values


def trials_with_curves(trials: Sequence[TrialFigures]) -> list[TrialFigures]:
    """The best of the trials that have epochs, as many as charts have room for, at least one."""
    shown: list[TrialFigures] = []
    points = 0
    for trial in trials:
        points += len(trial["history"])
        if trial["history"] and (not shown or points <= MOST_POINTS):
            shown.append(trial)
    return shown


def curves(values: Sequence[Spec], key: str) -> Spec:
    """One value of every epoch of some trials, the best of which is drawn thicker."""
    title = metric_text(key, short=False)
    scale, axis = _scale([metric_value(value, key) for value in values])
    several = len({value["trial"] for value in values})
    lines = _curve_layers(several)
    if any("from" in value for value in values):
        lines.append(_takeovers(title, key))
    return _chart(
        f"{title} of every trial over its epochs",
        {"name": EPOCHS},
        {
            "encoding": {
                "x": {
                    "field": "epoch",
                    "type": "quantitative",
                    "title": "epoch",
                    "scale": {"zero": False, "nice": False},
                    "axis": {"format": "d", "tickMinStep": 1},
                },
                "y": {
                    "field": key,
                    "type": "quantitative",
                    "scale": scale,
                    "axis": axis,
                    "title": title + (" (log scale)" if "type" in scale else ""),
                },
                "detail": {"field": "trial"},
                **_by_optimizer(values),
                "tooltip": [
                    *([_tip("trial"), _tip("optimizer")] if several > 1 else []),
                    _tip("epoch"),
                    _tip(key, title, ".4f"),
                ],
            },
            "layer": lines,
        },
    )


def _curve_layers(trials: int) -> list[Spec]:
    """A layer of thin lines for all but the best of so many trials, and one for the best."""
    # Many curves lie over each other: the more there are, the fainter each, but never unseen.
    opacity = min(0.55, max(0.12, 8 / trials))
    lines: list[Spec] = [
        {
            "transform": [{"filter": "!datum.best"}],
            "mark": {
                "type": "line",
                "opacity": opacity,
                "strokeWidth": 1.5,
                "point": {"size": 12, "opacity": opacity},
            },
        },
        {
            "transform": [{"filter": "datum.best"}],
            "mark": {"type": "line", "strokeWidth": 3, "point": {"size": 36}},
        },
    ]
    return lines if trials > 1 else lines[1:]


def _takeovers(title: str, key: str) -> Spec:
    """Points where trials went on from the weights of others."""
    return {
        "transform": [{"filter": "datum.from"}],
        "mark": {"type": "point", "shape": "diamond", "size": 90, "strokeWidth": 2},
        "encoding": {
            "tooltip": [
                _tip("trial"),
                _tip("from", "went on from"),
                _tip("epoch", "after epoch"),
                _tip(key, title, ".4g"),
            ]
        },
    }


def _scale(values: Sequence[float]) -> tuple[Spec, Spec]:
    """(scale, axis) of values, logarithmic where they differ by more than a factor of 20."""
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_RATIO:
        ticks = log_ticks(low, high)
        # Vega would leave every other one out where there are more than tickCount.
        return {"type": "log", "nice": False, "padding": 6}, {
            "values": ticks,
            "tickCount": len(ticks),
            "format": "~g",
        }
    return {"zero": False}, {}


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`: powers of ten, with twice and five times them where those
    are few.
    """
    steps = (1, 2, 5) if high / low < 300 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = []
    for power in range(first, last + 1):
        for step in steps:
            # Read from text, so that it is the float nearest to what the axis shows.
            tick = float(f"{step}e{power}")
            if low <= tick <= high:
                ticks.append(tick)
    return ticks


# --- the search --------------------------------------------------------------------------------


class TrialPoint(TypedDict):
    """What charts of a search show of a trial."""

    trial: str
    number: int
    """1 for the first that was proposed."""
    optimizer: str
    lr: float
    value: float
    epochs: int
    ended: str
    best: bool


def scored_trials(figures: Figures) -> list[TrialPoint]:
    """The trials with an epoch, as many as charts have room for, the best first."""
    names = sorted(trial["trial"] for trial in figures["trials"])
    numbers = {name: number for number, name in enumerate(names, 1)}
    scored = [trial for trial in figures["trials"] if trial["history"]]
    points: list[TrialPoint] = []
    for trial in scored[:MOST_TRIALS]:
        points.append(
            {
                "trial": trial["trial"],
                "number": numbers[trial["trial"]],
                "optimizer": trial["optimizer"],
                "lr": trial["lr"],
                "value": _rounded(metric_value(trial, figures["metric"])),
                "epochs": trial["epochs"],
                "ended": ENDS.get(trial["status"], trial["status"]),
                "best": trial is scored[0],
            }
        )
    return points


def rates(values: list[TrialPoint], metric: str) -> Spec:
    """The metric of each trial over its learning rate."""
    title = metric_text(metric, short=False)
    low, high = min(value["lr"] for value in values), max(value["lr"] for value in values)
    x: Spec = {
        "field": "lr",
        "type": "quantitative",
        "title": "learning rate (log scale)",
        "scale": {"type": "log", "nice": False, "padding": 16},
        "axis": {"format": "~g", "grid": True, "values": log_ticks(low, high)},
    }
    y: Spec = {
        "field": "value",
        "type": "quantitative",
        "title": title,
        # Accuracies of a search lie close together: from zero on all would look the same.
        "scale": {"zero": False, "padding": 12},
    }
    tooltip = [
        _tip("trial"),
        _tip("optimizer"),
        _tip("lr", "learning rate", ".3~g"),
        _tip("value", title, ".4f"),
        _tip("epochs"),
        _tip("ended", "trained"),
    ]
    name: Spec = {
        "transform": [{"filter": "datum.best"}],
        "encoding": {"text": {"field": "trial"}},
        "mark": {"type": "text", "dy": -13, "fontWeight": 600, "fontSize": 12},
    }
    return _chart(
        f"{title} of each trial over its learning rate",
        values,
        {
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
            "layer": [*_trial_points(values), name],
        },
        height=300,
    )


def _trial_points(values: Sequence[TrialPoint]) -> list[Spec]:
    """Layers of points, filled for trials that came to their end, hollow for the others."""
    ends = [end for end in ENDS.values() if any(value["ended"] == end for value in values)]
    # Shapes, and not colours, which say the optimizer.
    shapes = dict(zip(ENDS.values(), ("circle", "triangle-down", "cross", "square"), strict=True))
    legend = {"symbolFillColor": "transparent", "symbolStrokeColor": "var(--soft)"}
    shape: Spec = {
        "field": "ended",
        "type": "nominal",
        "title": None,
        "scale": {"domain": ends, "range": [shapes[end] for end in ends]},
        # A legend of one shape would explain nothing.
        "legend": legend if len(ends) > 1 else None,
    }
    finished = ENDS["finished"]
    layers: list[Spec] = []
    # `filled` holds for a whole layer: one for each of the two kinds that there are.
    for filled in sorted({value["ended"] == finished for value in values}, reverse=True):
        is_shown = f"(datum.ended === '{finished}') === {str(filled).lower()}"
        layers.append(
            {
                "transform": [{"filter": is_shown}],
                "mark": {"type": "point", "filled": filled, "size": 90, "strokeWidth": 2},
                "encoding": {"shape": shape, **_by_optimizer(values)},
            }
        )
    return layers


def progress(values: list[TrialPoint], metric: str) -> Spec:
    """The metric of the trials in the order they were proposed, and the best so far."""
    title = metric_text(metric, short=False)
    better = min if metric_mode(metric) == "min" else max
    line: list[Spec] = []
    best = None
    for value in sorted(values, key=lambda v: v["number"]):
        best = value["value"] if best is None else better(best, value["value"])
        line.append({**value, "so_far": best})
    x = {
        "field": "number",
        "type": "quantitative",
        "title": "trial, in the order of the search",
        "scale": {"zero": False, "nice": False, "padding": 12},
        "axis": {"format": "d", "tickMinStep": 1},
    }
    y: Spec = {"type": "quantitative", "title": title, "scale": {"zero": False, "padding": 12}}
    values_of_trials: Spec = {
        "y": {"field": "value", **y},
        "tooltip": [
            _tip("trial"),
            _tip("value", title, ".4f"),
            _tip("so_far", "best so far", ".4f"),
        ],
    }
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2.5},
            "encoding": {"y": {"field": "so_far", **y}},
        },
        {
            "mark": {"type": "point", "size": 50, "strokeWidth": 2, "color": "var(--soft)"},
            "encoding": values_of_trials,
        },
    ]
    return _chart(
        f"{title} of the trials in their order, and the best so far",
        line,
        {"encoding": {"x": x}, "layer": layers},
        height=300,
    )


# --- calibration -------------------------------------------------------------------------------


def reliability(bins: list[Bin]) -> Spec:
    """Accuracy in bins of the probability, beside the diagonal of perfect calibration."""
    shown: list[Bin] = []
    for each in bins:
        probability, accuracy = each["probability"], each["accuracy"]
        # A bin without images has neither, and no bar.
        if probability is not None and accuracy is not None:
            rounded: Bin = {**each, "probability": _rounded(probability)}
            shown.append({**rounded, "accuracy": _rounded(accuracy)})
    ends = {"scale": {"domain": [0, 1]}, "type": "quantitative"}
    diagonal = {
        "data": {"values": [{"at": 0}, {"at": 1}]},
        "mark": {"type": "line", "color": "var(--ink)", "strokeDash": [4, 4]},
        "encoding": {"x": {"field": "at", **ends}, "y": {"field": "at", **ends}},
    }
    bars = {
        "mark": BAR,
        "encoding": {
            "x": {
                "field": "low",
                "title": "probability of the predicted class",
                "axis": SHARES,
                **ends,
            },
            "x2": {"field": "high"},
            "y": {"field": "accuracy", "title": "accuracy", "axis": SHARES, **ends},
            "y2": {"datum": 0},
            "tooltip": [
                _tip("probability", "mean probability", ".4f"),
                _tip("accuracy", format=".4f"),
                _tip("images", format=",d"),
            ],
        },
    }
    return _chart(
        "Accuracy in 15 bins of the probability of the predicted class",
        shown,
        {"layer": [bars, diagonal]},
        height=300,
    )


def certainty(bins: list[Bin]) -> Spec:
    """How many images are in each bin of the probability."""
    return _chart(
        "Images in 15 bins of the probability of the predicted class",
        [{key: b[key] for key in ("low", "high", "images")} for b in bins],
        {
            "mark": BAR,
            "encoding": {
                "x": {
                    "field": "low",
                    "type": "quantitative",
                    "title": "probability of the predicted class",
                    "scale": {"domain": [0, 1]},
                    "axis": SHARES,
                },
                "x2": {"field": "high"},
                "y": {
                    "field": "images",
                    "type": "quantitative",
                    "title": "images",
                    "axis": {"format": "~s"},
                },
                "y2": {"datum": 0},
                "tooltip": [
                    _tip("low", "from", ".3f"),
                    _tip("high", "to", ".3f"),
                    _tip("images", format=",d"),
                ],
            },
        },
        height=300,
    )


# --- parts -------------------------------------------------------------------------------------


def _chart(
    description: str, data: Sequence[Mapping[str, object]] | Spec, rest: Spec, height: int = HEIGHT
) -> Spec:
    """A chart as wide as its place on the page, of values of its own or of named data."""
    return {
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": data if isinstance(data, Mapping) else {"values": data},
        **rest,
    }


def _tip(field: str, title: str | None = None, format: str | None = None) -> Spec:
    tip: Spec = {"field": field, "title": title or field}
    return tip if format is None else {**tip, "type": "quantitative", "format": format}


def _by_optimizer(values: Iterable[Mapping[str, object]]) -> Spec:
    """A colour for each optimizer, where there are several."""
    known = sorted({str(value["optimizer"]) for value in values})
    if len(known) < 2:
        return {}
    return {
        "color": {
            "field": "optimizer",
            "type": "nominal",
            "title": None,
            "scale": {"domain": known},
        }
    }


def _rounded(value: float) -> float:
    """Six digits are more than a chart can show."""
    return float(f"{value:.6g}")
