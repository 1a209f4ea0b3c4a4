"""What a person sees: the plan, progress, trials, the leaderboard, errors. Nothing else in raysft
prints.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
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

from raysft.data.names import readable
from raysft.errors import RaysftError
from raysft.records.documents import ProgressDocument
from raysft.records.trial import TrialRecord, metric_value
from raysft.wording import config_text, count_text

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

    def json(self, document: object) -> None:
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

    def redirect_other_output(self, log: Path) -> None:
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


class PlainTable(Table):
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
        """A line that a run has for the person."""
        self.output.line(text)

    def progress(self, what: str, done: int, total: int) -> None:
        """Rows or bytes; without a terminal only the end is shown."""
        self._advance(what, done, total)
        if done == total and self.shown and not self.output.out.is_terminal:
            self.output.line(f"{what}: {done:,} of {total:,}")
        if done == total:
            self.bar.remove_task(self._tasks.pop(what))

    def starting(self) -> None:
        """Processes start; there is nothing to count until the first epoch."""
        self._advance(STARTING, 0, 0)

    def epochs(self, done: float, total: int, records: Sequence[TrialRecord]) -> None:
        """Epochs of all trials together, parts of them included."""
        if STARTING in self._tasks:
            self.bar.remove_task(self._tasks.pop(STARTING))
        self._advance("epochs", round(done, 1), total)

    def trial_ended(self, record: TrialRecord, ended: int, total: int) -> None:
        """One line a finished trial, on a terminal or not."""
        best = record.best(self.metric)
        score = record.error
        if best is not None:
            score = f"{self.metric} {metric_value(best, self.metric):.4f}"
        width = len(str(total))
        epochs = count_text(len(record.history), "epoch")
        self.output.line(
            f"[{ended:{width}d}/{total}] {record.trial}  {record.status:8}  {score}  {epochs}  "
            f"{record.seconds:.1f} s  {config_text(record.config)}"
        )

    def status(self, document: ProgressDocument, records: Sequence[TrialRecord]) -> None:
        """Nothing: the bar has told it."""

    def _advance(self, what: str, done: float, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self.bar.add_task(what, total=total or None)
        self.bar.update(self._tasks[what], completed=done)


def make_table(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[str],
    format: Callable[[object], str] = str,
) -> Table:
    """A plain table of some keys of each row; a key without a value is an empty cell."""
    table = PlainTable()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        values = [row.get(column) for column in columns]
        table.add_row(*("" if value is None else format(value) for value in values))
    return table
