"""`raysft status --watch`: a run as it goes on, as a table on a terminal, as lines or as JSON
elsewhere.

Documents come in, one about every second; what they show is worked out here, and only the console
prints.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from raysft import interrupts
from raysft.console import Output, PlainTable, without_controls
from raysft.job.metrics import sort_key
from raysft.records.liveness import is_going_on
from raysft.records.trial import GOING_ON
from raysft.wording import config_text, count_text, metric_text, score_text

Document = Mapping[str, Any]

SILENT_SECONDS = 60.0
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 16  # characters


def watch(documents: Iterator[Document], output: Output, as_json: bool) -> None:
    """Show documents until there are no more, or Ctrl-C, which leaves the run alone."""
    try:
        if as_json:
            _as_json(documents, output)
        elif output.out.is_terminal:
            _as_table(documents, output)
        else:
            _as_lines(documents, output)
    except KeyboardInterrupt:
        interrupts.acknowledge()
        output.warning("no longer watching; the run keeps running")
        raise


def _as_json(documents: Iterator[Document], output: Output) -> None:
    for document in documents:
        output.line(json.dumps(document, default=str))


def _as_table(documents: Iterator[Document], output: Output) -> None:
    with output.live() as live:
        for document in documents:
            live.update(picture(document, time.time(), output.out.height), refresh=True)


def _as_lines(documents: Iterator[Document], output: Output) -> None:
    before: Document = {}
    for document in documents:
        for line in changes(before, document):
            output.line(line)
        before = document


# --- what it looks like ------------------------------------------------------------------------


def picture(document: Mapping[str, Any], now: float, height: int = 50) -> Group:
    """A run at the moment `now` (seconds of the epoch): a line on the whole, its trials, its
    teams.
    """
    teams = (document.get("progress") or {}).get("teams", []) if is_going_on(document) else []
    room = max(3, height - len(teams) - 8)
    shown, hidden = _in_order(document), 0
    if len(shown) > room:
        shown, hidden = shown[:room], len(shown) - room
    parts: list[Any] = [
        Text(without_controls(headline(document, now))),
        "",
        trial_table(document, shown),
    ]
    if hidden:
        parts.append(f"… and {hidden} more")
    if teams:
        parts += ["", team_table(teams)]
    return Group(*parts, *(Text(without_controls(error)) for error in document.get("errors", [])))


def headline(document: Mapping[str, Any], now: float) -> str:
    """Run, status, how long it has been going, how long it still will, how far it is."""
    progress = document.get("progress") or {}
    begun = _seconds(
        [document.get("started"), *document.get("resumed", [])][-1]
    )  # the time between is nobody's
    words = [f"{document['run']}: {document['status']}"]
    if begun is not None:
        until = now if is_going_on(document) else _seconds(document.get("ended")) or now
        words[0] += f" {'for' if is_going_on(document) else 'after'} {_span(until - begun)}"
    epochs = progress.get("epochs")
    if epochs and is_going_on(document):
        words.append(f"{epochs['done']:.1f} of {epochs['total']} epochs")
        if progress["left_s"] is not None:
            words.append(
                f"{'at most' if progress['may_end_early'] else 'about'} "
                f"{_span(progress['left_s'])} left"
            )
        silent = now - progress["at"]
        if silent > SILENT_SECONDS:
            words.append(f"last heard of {_span(silent)} ago")
    metric = document.get("metric", "val_accuracy")
    best = [trial for trial in document["trials"] if trial.get(metric) is not None]
    if best:
        first = min(best, key=lambda trial: sort_key(trial, metric))
        words.append(f"best {first['trial']} with {metric_text(metric)} {first[metric]:.4f}")
    return ", ".join(words)


def trial_table(document: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Table:
    """Trials, a row each."""
    metric = document.get("metric", "val_accuracy")
    progress = document.get("progress") or {}
    inside, each = progress.get("inside", {}), progress.get("epochs", {}).get("each")
    curves = {
        trial["trial"]: [epoch[metric] for epoch in trial["history"] if metric in epoch]
        for trial in document["trials"]
    }
    values = [value for curve in curves.values() for value in curve]
    table = PlainTable()
    for name, right in (
        ("trial", False),
        ("status", False),
        ("epochs", True),
        (metric_text(metric), True),
        ("curve", False),
        ("seconds", True),
        ("config", False),
    ):
        table.add_column(
            name, justify="right" if right else "left", no_wrap=name != "config", overflow="fold"
        )
    for trial in trials:
        running = trial["status"] == "running"
        done = len(trial["history"]) + (inside.get(trial["trial"], 0.0) if running else 0.0)
        epochs = f"{done:.1f}" if running else f"{done:g}"
        table.add_row(
            trial["trial"],
            trial["status"],
            f"{epochs}/{each}" if each else epochs,
            score_text(trial.get(metric)),
            curve_text(curves[trial["trial"]], values),
            f"{trial['seconds']:.1f}",
            config_text(trial["config"]),
        )
    return table


def team_table(teams: Sequence[Mapping[str, Any]]) -> Table:
    """Teams, a row each: what it does, how fast."""
    table = PlainTable()
    for name, right in (
        ("slot", True),
        ("team", True),
        ("doing", False),
        ("images/s", True),
        ("data wait", True),
        ("GPU", True),
    ):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for team in teams:
        doing = team["doing"] + (f" {team['trial']}" if team["doing"] == "training" else "")
        if team["step"] is not None:
            doing += f", step {team['step']} of {team['steps']}"
        rate, wait, busy = team["images_per_s"], team["data_wait"], team["gpu"]
        table.add_row(
            str(team["slot"]),
            str(team["team"]),
            doing,
            "-" if rate is None else f"{rate:,.0f}",
            "-" if wait is None else f"{100 * wait:.1f} %",
            "-" if busy is None else f"{busy:.0f} %",
        )
    return table


def curve_text(curve: Sequence[float], all_values: Sequence[float]) -> str:
    """A metric epoch by epoch as blocks between the lowest and the highest of all trials; the last
    ones of many.
    """
    if not curve:
        return ""
    low, high = min(all_values), max(all_values)
    step = math.ceil(len(curve) / CURVE)
    picked = [curve[min(first + step, len(curve)) - 1] for first in range(0, len(curve), step)]
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (value - low) / span)] for value in picked)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is new in a document, a line each: epochs, ends of trials, the status of the run."""
    metric = now.get("metric", "val_accuracy")
    known = {trial["trial"]: trial for trial in before.get("trials", [])}
    each = ((now.get("progress") or {}).get("epochs") or {}).get("each")
    lines = (
        [f"{now['run']}: {now['status']}"]
        if is_going_on(now) and now["status"] != before.get("status")
        else []
    )
    for trial in now["trials"]:
        was = known.get(trial["trial"], {"status": "pending", "history": []})
        if _is_over(trial) and trial["status"] != was["status"]:
            score = (
                f"{metric_text(metric)} {trial[metric]:.4f}"
                if trial.get(metric) is not None
                else trial["error"]
            )
            lines.append(
                f"{trial['trial']}  {trial['status']}  {score}  "
                f"{count_text(len(trial['history']), 'epoch')}  {config_text(trial['config'])}"
            )
        elif len(trial["history"]) > len(was["history"]):
            last = trial["history"][-1]
            of = f" of {each}" if each else ""
            lines.append(
                f"{trial['trial']}  epoch {last['epoch']}{of}  {metric_text(metric)} "
                f"{score_text(last.get(metric))}"
            )
    if not is_going_on(now) and now["status"] != before.get("status"):
        lines += [*now.get("errors", []), f"{now['run']}: {now['status']}"]
    return lines


def _is_over(trial: Mapping[str, Any]) -> bool:
    return trial["status"] not in GOING_ON


def _in_order(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Trials in training, then those that have paused or ended from best to worst, then those that
    wait.
    """
    metric = document.get("metric", "val_accuracy")

    def key(trial: Mapping[str, Any]) -> tuple[float, ...]:
        turn = {"running": 0, "pending": 2}.get(trial["status"], 1)
        scored = turn == 1 and trial.get(metric) is not None
        return (turn, *(sort_key(trial, metric) if scored else (math.inf,)))

    return sorted(document["trials"], key=key)


def _seconds(clock: str | None) -> float | None:
    """Seconds of the epoch of a time as run.json writes it."""
    return datetime.strptime(clock, "%Y-%m-%dT%H:%M:%S%z").timestamp() if clock else None


def _span(seconds: float) -> str:
    """A time in words: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60} s"
        if whole < 3600
        else f"{whole // 3600} h {whole % 3600 // 60} min"
    )
