"""What a person sees: the plan, progress, trials, the leaderboard, errors. Nothing else in raysft
prints.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from raysft.data.kinds import by_kind
from raysft.data.names import clipped, listed, readable
from raysft.errors import RaysftError
from raysft.job import Job
from raysft.job.plan import Outline, Plan, Slot
from raysft.train.architecture import foreign_module
from raysft.wording import config_text, count_text, metric_text, score_text

WIDTH_WITHOUT_TERMINAL = 120
STARTING = "starting Ray and the workers"


class Output:
    """Standard output and error as they were when the command began, whatever is done to them
    later.
    """

    def __init__(self) -> None:
        self._out_fd, self._err_fd = os.dup(1), os.dup(2)
        self.out = _console(self._out_fd)
        self.err = _console(self._err_fd)

    def line(self, text: str = "") -> None:
        """One line of plain text to standard output."""
        self.out.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        """A table to standard output."""
        self.out.print(table)

    def json(self, document: Any) -> None:
        """One JSON document to standard output."""
        self.line(json.dumps(document, indent=1, default=str))

    def errors(self, error: RaysftError) -> None:
        """One red line a problem to standard error."""
        for problem in error.problems:
            text = f"error: {without_controls(str(problem))}"
            self.err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    def trace(self, error: BaseException) -> None:
        """The traceback of an error to standard error."""
        self.err.print(
            "".join(traceback.format_exception(error)),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def warning(self, text: str) -> None:
        """One yellow line to standard error."""
        self.err.print(
            without_controls(text), style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    def live(self) -> Live:
        """A place on a terminal that shows one thing in place of the one before."""
        return Live(
            console=self.out, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def send_others_to(self, log: Path) -> None:
        """Send what everyone else prints from now on, also from native code, to a log file.

        There is no way back: Ray's threads have something to say up to the last moment of the
        process.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


def _console(descriptor: int) -> Console:
    stream = os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="replace", buffering=1)
    # Nothing is markup: rich would make an emoji of a class that is named :smile:, also in a
    # document.
    return Console(
        file=stream,
        width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL,
        markup=False,
        emoji=False,
    )


class Rows(Table):
    """A plain table: its cells are text, whatever they hold. Markup stays as it is, a line break is
    shown as one.
    """

    def __init__(self) -> None:
        super().__init__(box=None, pad_edge=False, header_style="bold")

    def add_column(self, header: str = "", **options: Any) -> None:  # type: ignore[override]
        """A column under a heading."""
        super().add_column(Text(readable(header)), **options)

    def add_row(self, *cells: str) -> None:  # type: ignore[override]
        """A row, a cell a column."""
        super().add_row(*(Text(readable(cell)) for cell in cells))


def without_controls(text: str) -> str:
    """Text that cannot do anything to a terminal: of control characters it has line breaks and tabs
    alone.
    """
    return "".join(char if char in "\n\t" else readable(char) for char in text)


class Watcher:
    """A run on the console: a bar where there is a terminal, one line a finished trial
    everywhere.
    """

    def __init__(self, output: Output, metric: str, shown: bool = True) -> None:
        self.output, self.metric, self.shown = output, metric, shown
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.bar = Progress(
            *columns,
            console=output.out,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not (shown and output.out.is_terminal),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Watcher:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        self.output.line(text)

    def progress(self, what: str, done: int, total: int) -> None:
        """Rows or bytes; without a terminal only the end is told."""
        self._advance(what, done, total)
        if done == total and self.shown and not self.output.out.is_terminal:
            self.output.line(f"{what}: {done:,} of {total:,}")
        if done == total:
            self.bar.remove_task(self._tasks.pop(what))

    def starting(self) -> None:
        """Processes start; there is nothing to count until the first epoch."""
        self._advance(STARTING, 0, 0)

    def epochs(self, done: float, total: int, records: Sequence[Any]) -> None:
        if STARTING in self._tasks:
            self.bar.remove_task(self._tasks.pop(STARTING))
        self._advance("epochs", round(done, 1), total)

    def trial_ended(self, record: Any, ended: int, total: int) -> None:
        best = record.best(self.metric)
        score = f"{self.metric} {best[self.metric]:.4f}" if best else record.error
        width = len(str(total))
        epochs = count_text(len(record.history), "epoch")
        self.output.line(
            f"[{ended:{width}d}/{total}] {record.trial}  {record.status:8}  {score}  {epochs}  "
            f"{record.seconds:.1f} s  {config_text(record.config)}"
        )

    def status(self, document: dict[str, Any], records: Sequence[Any]) -> None:
        """Nothing: the bar has told it."""

    def _advance(self, what: str, done: float, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self.bar.add_task(what, total=total or None)
        self.bar.update(self._tasks[what], completed=done)


# --- a plan ------------------------------------------------------------------------------------


def plan_lines(job: Job, outline: Outline, plan: Plan, where: str, results: str) -> list[str]:
    """The plan of a job, one fact a line."""
    epochs = count_text(job.train.epochs, "epoch")
    slots = "; ".join(count_text(s.teams, "team") + f" of {_workers_text(s)}" for s in plan.slots)
    gpus = f", {job.resources.gpus_per_worker:g} GPU" if job.resources.gpus_per_worker else ""
    searched = ""
    if job.search is not None:
        stop, whole = job.search.scheduler.name, plan.trials * job.train.epochs
        how = f" proposed by {job.search.algorithm}" if job.search.algorithm != "random" else ""
        early = {
            "asha": f", asha trains {plan.epochs:,} of {count_text(whole, 'epoch')}",
            "median": ", median may end them early",
        }.get(stop, "")
        again = (
            f"; the best again with {count_text(job.search.confirm, 'other seed')}"
            if job.search.confirm
            else ""
        )
        searched = f"{how}, by {job.search.metric}{early}{again}"
    return [
        f"job      {job.name} on {where}",
        f"data     {job.data.source} ({outline.where}): {plan.train_rows:,} train, "
        f"{plan.val_rows:,} val, "
        f"{plan.test_rows:,} test images in {plan.classes} classes",
        *(f"         {note}" for note in outline.notes),
        f"classes  {first_names(outline.classes)}",
        f"model    {job.model.name}{_code(job)}, weights {job.model.weights}, new head of "
        f"{plan.classes} classes",
        f"train    {epochs} of {count_text(plan.steps_per_epoch, 'step')}, batch "
        f"{job.train.batch_size} "
        f"(at most {plan.batch_per_worker} a worker)",
        f"search   {count_text(plan.trials, 'trial')}, {plan.teams} at a time{searched}",
        f"workers  {slots}; {job.resources.cpus_per_worker} CPU{gpus} a worker",
        f"results  {results}",
    ]


def first_names(names: Sequence[str], most: int = 10) -> str:
    """The first of some names in one line, and how many there are besides."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(listed, names[:most])) + more


def _code(job: Job) -> str:
    """What a job file runs that a person has written, which holds for one that was sent to them
    too.
    """
    module = foreign_module(job.model.name)
    return "" if module is None else f" (runs the code of the module {module})"


def _workers_text(slot: Slot) -> str:
    return (f"{slot.least} to " if slot.least else "") + count_text(slot.workers, "worker")


def plan_json(job: Job, outline: Outline, plan: Plan, results: str) -> dict[str, Any]:
    """The plan as a document."""
    return {
        "job": job.name,
        "rows": {"train": plan.train_rows, "val": plan.val_rows, "test": plan.test_rows},
        "classes": plan.classes,
        "class_names": list(outline.classes),
        "notes": list(outline.notes),
        "trials": plan.trials,
        "trials_at_a_time": plan.teams,
        "slots": [
            {"teams": s.teams, "workers": s.workers}
            | ({"least_workers": s.least} if s.least else {})
            for s in plan.slots
        ],
        "steps_per_epoch": plan.steps_per_epoch,
        "epochs": job.train.epochs,
        "epochs_of_all_trials": plan.epochs,
        "batch_per_worker": plan.batch_per_worker,
        "results": results,
    }


# --- results -----------------------------------------------------------------------------------


def show_outcome(
    results: dict[str, Any], folder: str, output: Output, run: str | None = None
) -> None:
    """The leaderboard, the outcome, where its report is, and the commands a person will want next.

    run: how the run is named in a command; None: by its folder.
    """
    output.line()
    output.show(leaderboard_table(results))
    for line in result_lines(results):
        output.line(line)
    output.line(f"report   {folder}/report.html")
    output.line()
    trust = " --trust-code" if (results["best"] or {}).get("module") is not None else ""
    for command in (
        f"results {run or folder}",
        f"evaluate{trust} {folder}/model DATA",
        f"predict{trust} {folder}/model IMAGE…",
    ):
        output.line(f"  raysft {command}")


def leaderboard_table(results: dict[str, Any], most: int = 10) -> Table:
    """The best trials of a results.json."""
    metrics = list(dict.fromkeys([results["metric"], "val_accuracy", "val_loss"]))
    table = Rows()
    for name, justify in (
        ("", "right"),
        ("trial", "left"),
        ("status", "left"),
        *((metric_text(m), "right") for m in metrics),
        ("epochs", "right"),
        ("seconds", "right"),
        ("config", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")
    for place, row in enumerate(results["trials"][:most], 1):
        scores = [score_text(row.get(metric)) for metric in metrics]
        table.add_row(
            str(place),
            row["trial"],
            row["status"],
            *scores,
            str(row["epochs"]),
            f"{row['seconds']:.1f}",
            config_text(row["config"]),
        )
    return table


def result_lines(results: dict[str, Any]) -> list[str]:
    """The outcome under the leaderboard."""
    best, timing = results["best"], results["timing"]
    hidden = len(results["trials"]) - 10
    lines = [f"… and {hidden} more"] if hidden > 0 else []
    if best is not None:
        shown = list(dict.fromkeys([results["metric"], "val_accuracy", "test_accuracy"]))
        scores = ", ".join(f"{metric_text(m, short=False)} {best[m]:.4f}" for m in shown)
        lines.append(f"best     {best['trial']}, epoch {best['epoch']}: {scores}")
        if (again := best.get("confirmed")) is not None:
            lines.append(
                f"confirm  {metric_text(again['metric'], short=False)} {again['mean']:.4f} ± "
                f"{again['std']:.4f} over {count_text(len(again['seeds']), 'seed')}"
            )
    lines += [
        f"doubt    {doubt}" for doubt in results.get("doubts", ())
    ]  # those of older runs have none
    rate = f", {timing['images_per_s']:,.0f} images/s" if timing["images_per_s"] else ""
    waited = timing["data_wait_fraction"]
    wait = f", {100 * waited:.1f} % of it waiting for data" if waited is not None else ""
    lines.append(
        f"time     {timing['total_s']:.1f} s: start {timing['startup_s']:.1f}, training "
        f"{timing['train_s']:.1f}{rate}{wait}"
    )
    return lines


def show_scores(scores: dict[str, Any], output: Output, most: int = 20) -> None:
    """What `raysft evaluate` found: the whole, then each class, then the confusion matrix where it
    can be read.
    """
    whole = ", ".join(
        f"{metric_text(k, short=False)} {v:.4f}" for k, v in scores.items() if isinstance(v, float)
    )
    output.line(f"{whole} on {scores['images']:,} images")
    for note in scores["notes"]:
        output.line(note)
    output.line()
    classes = [row | {"class": clipped(row["class"])} for row in scores["classes"]]
    output.show(
        table_of(
            classes,
            ("class", "precision", "recall", "f1", "support"),
            lambda v: f"{v:.4f}" if isinstance(v, float) else str(v),
        )
    )
    names = [row["class"] for row in scores["classes"]]
    if len(names) <= most:
        output.line()
        output.line("images of a class (row) by what they were taken for (column):")
        table = Rows()
        for heading in ("", *names):
            table.add_column(clipped(heading), overflow="fold")
        for name, counts in zip(names, scores["confusion"], strict=True):
            table.add_row(clipped(name), *map(str, counts))
        output.show(table)


def show_predicted(predicted: Any, output: Output) -> None:
    """What `raysft predict --out` came to."""
    found = [
        {"class": clipped(name), "images": images}
        for name, images in predicted.classes.items()
        if images
    ]
    output.show(
        table_of(
            sorted(found, key=lambda row: -row["images"])[:20],
            ("class", "images"),
            lambda v: f"{v:,}" if isinstance(v, int) else v,
        )
    )
    bad = f", {count_text(predicted.errors, 'bad image')} with an error" if predicted.errors else ""
    left_out = f"; left out {by_kind(predicted.left_out)}" if predicted.left_out else ""
    rate = f", {predicted.images_per_s:,.0f} images/s" if predicted.images_per_s else ""
    output.line(f"{predicted.out}: {count_text(predicted.images, 'row')}{bad}{rate}{left_out}")


def export_lines(made: dict[str, Any]) -> list[str]:
    """What was exported, and how it compares with its model."""
    checked = made["checked"]
    size = sum(file["bytes"] for file in made["files"].values()) / 1e6
    ends = [
        f"{end['type']} ({', '.join(map(str, end['shape']))})"
        for end in (made["input"], made["output"])
    ]
    return [
        f"export   {made['path']}/{made['file']}, {size:.1f} MB: {' to '.join(ends)}",
        f"checked  {checked['images']:,} {checked['split']} images of {checked['data']}: accuracy "
        f"{checked['accuracy']:.4f}, the model's {checked['model_accuracy']:.4f}; probabilities "
        "differ by up to "
        f"{checked['largest_difference']:.1g}, {checked['tolerance']:g} is allowed; "
        f"{checked['seconds']:.1f} s",
    ]


def table_of(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], format: Callable[[Any], str] = str
) -> Table:
    """A plain table of some keys of each row."""
    table = Rows()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(c) is None else format(row[c]) for c in columns))
    return table
