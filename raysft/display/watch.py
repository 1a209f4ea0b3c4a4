"""`raysft status --watch`: a run as it goes on, as a table on a terminal, as lines or as JSON
elsewhere.

Documents come in, one about every second; what they show is worked out here, and only the console
prints.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from raysft import interrupts
from raysft.console import Output, PlainTable, without_controls
from raysft.display.status import known_metric, run_errors, run_metric
from raysft.job.metrics import sort_key
from raysft.records.documents import (
    CLOCK,
    ProgressDocument,
    StatusDocument,
    TeamProgress,
    TrialDocument,
)
from raysft.records.liveness import is_going_on
from raysft.records.trial import GOING_ON, metric_value
from raysft.wording import config_text, count_text, metric_text, score_text

SILENT_SECONDS = 60.0  # after which the age of the last sign of progress is shown
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 16  # characters of a learning curve
FRAME_ROWS = 8  # of the screen: headline, headings, empty lines, the shell's prompt
LEAST_TRIALS = 3  # shown however small the terminal is


def watch(documents: Iterator[StatusDocument], output: Output, as_json: bool) -> None:
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


def _as_json(documents: Iterator[StatusDocument], output: Output) -> None:
    for document in documents:
        # On one line, so that a program can read one document after the other.
        text = json.dumps(document, default=str)
        output.line(text)


def _as_table(documents: Iterator[StatusDocument], output: Output) -> None:
    with output.live() as live:
        for document in documents:
            # The height each time: a window may be resized while a run goes on.
            frame = picture(document, time.time(), output.out.height)
            live.update(frame, refresh=True)


def _as_lines(documents: Iterator[StatusDocument], output: Output) -> None:
    before: StatusDocument | None = None
    for document in documents:
        for line in changes(before, document):
            output.line(line)
        before = document


# --- a moment of a run -------------------------------------------------------------------------


def picture(document: StatusDocument, now: float, height: int = 50) -> Group:
    """A run at the moment `now` (seconds of the epoch): a line on the whole, its trials, its
    teams.
    """
    progress = document["progress"]
    # The teams of a run that has ended are those of its last moment.
    teams = progress["teams"] if progress and is_going_on(document) else []
    # A table that is higher than the screen would scroll away its own head with each refresh.
    room = max(LEAST_TRIALS, height - len(teams) - FRAME_ROWS)
    trials = _in_order(document)
    parts: list[RenderableType] = [
        Text(without_controls(headline(document, now))),
        "",
        trial_table(document, trials[:room]),
    ]
    if len(trials) > room:
        parts.append(f"… and {len(trials) - room} more")
    if teams:
        parts += ["", team_table(teams)]
    # As text, not as rich's markup: an error may quote whatever a file holds.
    parts += [Text(without_controls(error)) for error in run_errors(document)]
    return Group(*parts)


def headline(document: StatusDocument, now: float) -> str:
    """Run, status, how long it has been going, how long it still will, how far it is."""
    duration = _duration(document, now)
    words = [f"{document['run']}: {document['status']}{duration}"]
    progress = document["progress"]
    if progress and is_going_on(document):
        words += _outlook(progress, now)
    best = _best_text(document)
    if best is not None:
        words.append(best)
    return ", ".join(words)


def _best_text(document: StatusDocument) -> str | None:
    metric = run_metric(document)
    scored = [trial for trial in document["trials"] if known_metric(trial, metric) is not None]
    if not scored:
        return None
    # By the order of the search, in which equal accuracies are told apart by their losses.
    best = min(scored, key=lambda trial: sort_key(trial, metric))
    value = metric_value(best, metric)
    return f"best {best['trial']} with {metric_text(metric)} {value:.4f}"


def _duration(document: StatusDocument, now: float) -> str:
    # From its last start: between two attempts nobody has worked.
    starts = [document["started"], *document.get("resumed", [])]
    begun = _parse_clock(starts[-1])
    if begun is None:
        return ""
    if is_going_on(document):
        span = _span(now - begun)
        return f" for {span}"
    # A run that was killed has not written when it ended.
    ended = _parse_clock(document.get("ended")) or now
    span = _span(ended - begun)
    return f" after {span}"


def _outlook(progress: ProgressDocument, now: float) -> list[str]:
    """How far a run is, how long it will go on, and whether it has been silent for long."""
    epochs, left = progress["epochs"], progress["left_s"]
    done, total = epochs["done"], epochs["total"]
    words = [f"{done:.1f} of {total} epochs"]
    if left is not None:
        # How many trials a median rule or a target ends early is not known before it does.
        bound = "at most" if progress["may_end_early"] else "about"
        words.append(f"{bound} {_span(left)} left")
    silent = now - progress["at"]
    if silent > SILENT_SECONDS:
        span = _span(silent)
        words.append(f"last heard from {span} ago")
    return words


def trial_table(document: StatusDocument, trials: Sequence[TrialDocument]) -> PlainTable:
    """Trials, a row each."""
    metric = run_metric(document)
    curves = {trial["trial"]: _curve(trial, metric) for trial in document["trials"]}
    # One scale for all curves: a trial that is worse than the others has to look it.
    values = [value for curve in curves.values() for value in curve]
    table = PlainTable()
    table.add_column("trial", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("epochs", no_wrap=True, justify="right")
    table.add_column(metric_text(metric), no_wrap=True, justify="right")
    table.add_column("curve", no_wrap=True)
    table.add_column("seconds", no_wrap=True, justify="right")
    table.add_column("config", overflow="fold")  # the one that may be longer than the screen
    for trial in trials:
        table.add_row(
            trial["trial"],
            trial["status"],
            _epochs_text(trial, document["progress"]),
            score_text(known_metric(trial, metric)),
            curve_text(curves[trial["trial"]], values),
            f"{trial['seconds']:.1f}",
            config_text(trial["config"]),
        )
    return table


def _curve(trial: TrialDocument, metric: str) -> list[float]:
    curve = []
    for epoch in trial["history"]:
        if metric in epoch:
            curve.append(metric_value(epoch, metric))
    return curve


def _epochs_text(trial: TrialDocument, progress: ProgressDocument | None) -> str:
    """Epochs of a trial, with the part of the one it is in, of those it may have."""
    done: float = len(trial["history"])
    if trial["status"] == "running":
        if progress:
            done += progress["inside"].get(trial["trial"], 0.0)
        text = f"{done:.1f}"
    else:
        text = f"{done:g}"
    each = _epochs_of_a_trial(progress)
    return f"{text}/{each}" if each else text


def _epochs_of_a_trial(progress: ProgressDocument | None) -> int | None:
    return progress["epochs"]["each"] if progress else None


def team_table(teams: Sequence[TeamProgress]) -> PlainTable:
    """Teams, a row each: what it does, how fast."""
    table = PlainTable()
    table.add_column("slot", no_wrap=True, justify="right")
    table.add_column("team", no_wrap=True, justify="right")
    table.add_column("doing", no_wrap=True)
    table.add_column("images/s", no_wrap=True, justify="right")
    table.add_column("data wait", no_wrap=True, justify="right")
    table.add_column("GPU", no_wrap=True, justify="right")
    for team in teams:
        rate, wait, busy = team["images_per_s"], team["data_wait"], team["gpu"]
        table.add_row(
            str(team["slot"]),
            str(team["team"]),
            _doing_text(team),
            "-" if rate is None else f"{rate:,.0f}",
            "-" if wait is None else f"{100 * wait:.1f} %",
            "-" if busy is None else f"{busy:.0f} %",
        )
    return table


def _doing_text(team: TeamProgress) -> str:
    doing = team["doing"]
    if doing == "training":
        doing += f" {team['trial']}"
    if team["step"] is not None:
        doing += f", step {team['step']} of {team['steps']}"
    return doing


def curve_text(curve: Sequence[float], all_values: Sequence[float]) -> str:
    """A metric epoch by epoch as blocks between the lowest and the highest of all trials."""
    if not curve:
        return ""
    count = len(curve)
    step = math.ceil(count / CURVE)
    # Of each stretch of epochs its last, so that a long curve ends with the newest epoch.
    ends = [min(first + step, count) for first in range(0, count, step)]
    low = min(all_values)
    high = max(all_values)
    span = (high - low) or 1.0  # all values are equal
    top = len(BLOCKS) - 1
    blocks = []
    for end in ends:
        height = (curve[end - 1] - low) / span
        blocks.append(BLOCKS[round(top * height)])
    return "".join(blocks)


# --- what has changed --------------------------------------------------------------------------


def changes(before: StatusDocument | None, now: StatusDocument) -> list[str]:
    """What is new in a document, a line each: epochs, ends of trials, the status of the run."""
    is_new = before is None or before["status"] != now["status"]
    status = f"{now['run']}: {now['status']}"
    lines = []
    if is_new and is_going_on(now):
        lines.append(status)
    known: dict[str, TrialDocument] = {}
    if before is not None:
        known = {trial["trial"]: trial for trial in before["trials"]}
    each = _epochs_of_a_trial(now["progress"])
    metric = run_metric(now)
    for trial in now["trials"]:
        earlier = known.get(trial["trial"])
        line = _trial_change(earlier, trial, metric, each)
        if line is not None:
            lines.append(line)
    if is_new and not is_going_on(now):
        # Last, as the run's end comes after those of its trials.
        lines += [*run_errors(now), status]
    return lines


def _trial_change(
    before: TrialDocument | None, trial: TrialDocument, metric: str, each: int | None
) -> str | None:
    """What is new of a trial; None where nothing is."""
    was_over = before is not None and before["status"] == trial["status"]
    if _is_over(trial) and not was_over:
        return _end_text(trial, metric)
    epochs = len(trial["history"])
    epochs_before = len(before["history"]) if before else 0
    if epochs <= epochs_before:
        return None
    # The newest alone: of epochs that came together, as after a lost connection, no more is news.
    last = trial["history"][-1]
    of = f" of {each}" if each else ""
    score = score_text(known_metric(last, metric))
    return f"{trial['trial']}  epoch {last['epoch']}{of}  {metric_text(metric)} {score}"


def _end_text(trial: TrialDocument, metric: str) -> str:
    score = trial["error"]
    value = known_metric(trial, metric)
    if value is not None:
        score = f"{metric_text(metric)} {value:.4f}"
    epochs = count_text(len(trial["history"]), "epoch")
    config = config_text(trial["config"])
    return f"{trial['trial']}  {trial['status']}  {score}  {epochs}  {config}"


def _is_over(trial: TrialDocument) -> bool:
    return trial["status"] not in GOING_ON


def _in_order(document: StatusDocument) -> list[TrialDocument]:
    """Trials in training, then those that have paused or ended from best to worst, then those that
    wait.
    """
    metric = run_metric(document)

    def key(trial: TrialDocument) -> tuple[float, ...]:
        if trial["status"] == "running":
            return (0, math.inf)
        if trial["status"] == "pending":
            return (2, math.inf)
        if known_metric(trial, metric) is None:
            return (1, math.inf)
        return (1, *sort_key(trial, metric))

    return sorted(document["trials"], key=key)


def _parse_clock(clock: str | None) -> float | None:
    """Seconds of the epoch of a time as run.json writes it."""
    if not clock:
        return None
    # With its offset from UTC: the run may have started in another time zone.
    moment = datetime.strptime(clock, CLOCK)
    return moment.timestamp()


def _span(seconds: float) -> str:
    """A time in words: 42 s, 3 min 5 s, 2 h 10 min."""
    # Never negative: the clock of another machine may be ahead of this one's.
    whole = max(0, round(seconds))
    minutes = whole // 60
    hours = whole // 3600
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{minutes} min {whole % 60} s"
    return f"{hours} h {minutes % 60} min"
