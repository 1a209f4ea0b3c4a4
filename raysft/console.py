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

from rich.console import Console, JustifyMethod, OverflowMethod
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
        # Copies: what is redirected later takes the place of 1 and 2, and not of these.
        self._out_fd = os.dup(1)
        self._err_fd = os.dup(2)
        self.out = _console(self._out_fd)
        self.err = _console(self._err_fd)

    def line(self, text: str = "") -> None:
        """One line of plain text to standard output."""
        # A wrapped line could not be copied as a command or read by a program.
        _print_plain(self.out, text)

    def show(self, table: Table) -> None:
        """A table to standard output."""
        self.out.print(table)

    def json(self, document: object) -> None:
        """One JSON document to standard output."""
        text = json.dumps(document, indent=1, default=str)
        self.line(text)

    def errors(self, error: RaysftError) -> None:
        """One red line a problem to standard error."""
        for problem in error.problems:
            # A message quotes names of files and classes, which may hold escape sequences.
            text = without_controls(str(problem))
            _print_plain(self.err, f"error: {text}", style="red")

    def trace(self, error: BaseException) -> None:
        """The traceback of an error to standard error."""
        lines = traceback.format_exception(error)
        _print_plain(self.err, "".join(lines))

    def warning(self, text: str) -> None:
        """One yellow line to standard error."""
        shown = without_controls(text)
        _print_plain(self.err, shown, style="yellow")

    def live(self) -> Live:
        """A place on a terminal that shows one thing in place of the one before."""
        return Live(
            console=self.out, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def redirect_other_output(self, log: Path) -> None:
        """Send what everyone else prints from now on, also from native code, to a log file."""
        # There is no way back: Ray's threads have something to say up to the last moment of the
        # process.
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        # The descriptors and not sys.stdout, which C++ and started processes know nothing of.
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


def _console(descriptor: int) -> Console:
    stream = os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="replace", buffering=1)
    # Nothing is markup: rich would make an emoji of a class that is named :smile:, also in a
    # document.
    return Console(
        file=stream,
        # A log has no width: at rich's 80 columns a leaderboard would be folded.
        width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL,
        markup=False,
        emoji=False,
    )


def _print_plain(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class PlainTable(Table):
    """A plain table: its cells are text, whatever they hold. Markup stays as it is, a line break is
    shown as one.
    """

    def __init__(self) -> None:
        super().__init__(box=None, pad_edge=False, header_style="bold")

    # rich takes anything that can be drawn; here all is text, or names of files would be markup.
    def add_column(  # type: ignore[override]
        self,
        header: str = "",
        *,
        justify: JustifyMethod = "left",
        overflow: OverflowMethod = "ellipsis",
        no_wrap: bool = False,
    ) -> None:
        """A column under a heading."""
        heading = Text(readable(header))
        super().add_column(heading, justify=justify, overflow=overflow, no_wrap=no_wrap)

    def add_row(self, *cells: str) -> None:  # type: ignore[override]
        """A row, a cell a column."""
        texts = [Text(readable(cell)) for cell in cells]
        super().add_row(*texts)


def without_controls(text: str) -> str:
    """Text that cannot do anything to a terminal: of control characters it has line breaks and tabs
    alone.
    """
    shown = []
    for char in text:
        shown.append(char if char in "\n\t" else readable(char))
    return "".join(shown)


class Watcher:
    """A run on the console: a bar where there is a terminal, one line a finished trial
    everywhere.
    """

    def __init__(self, output: Output, metric: str, shown: bool = True) -> None:
        self.output = output
        self.metric = metric
        self.shown = shown
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.bar = Progress(
            *columns,
            console=output.out,
            # What stays on the terminal are the lines: one a trial, and the leaderboard.
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            # In a pipe or a log, a bar would be a line each time that it moves.
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
        if done != total:
            return
        if self.shown and not self.output.out.is_terminal:
            self.output.line(f"{what}: {done:,} of {total:,}")
        self._remove(what)

    def starting(self) -> None:
        """Processes start; there is nothing to count until the first epoch."""
        self._advance(STARTING, 0, 0)

    def epochs(self, done: float, total: int, records: Sequence[TrialRecord]) -> None:
        """Epochs of all trials together, parts of them included."""
        if STARTING in self._tasks:
            self._remove(STARTING)
        shown = round(done, 1)
        self._advance("epochs", shown, total)

    def trial_ended(self, record: TrialRecord, ended: int, total: int) -> None:
        """One line a finished trial, on a terminal or not."""
        score = record.error
        best = record.best(self.metric)
        if best is not None:
            value = metric_value(best, self.metric)
            score = f"{self.metric} {value:.4f}"
        width = len(str(total))
        epochs = count_text(len(record.history), "epoch")
        config = config_text(record.config)
        # Status and number are of one width, so that lines of many trials can be compared.
        head = f"[{ended:{width}d}/{total}] {record.trial}  {record.status:8}"
        self.output.line(f"{head}  {score}  {epochs}  {record.seconds:.1f} s  {config}")

    def status(self, document: ProgressDocument, records: Sequence[TrialRecord]) -> None:
        """Nothing: the bar has told it."""

    def _advance(self, what: str, done: float, total: int) -> None:
        task = self._tasks.get(what)
        if task is None:
            # A total of 0 is not known: the bar then only moves to and fro.
            task = self.bar.add_task(what, total=total or None)
            self._tasks[what] = task
        self.bar.update(task, completed=done)

    def _remove(self, what: str) -> None:
        # Taken away, not only full: the same step may come again, with a clock of its own.
        task = self._tasks.pop(what)
        self.bar.remove_task(task)


def make_table(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[str],
    format: Callable[[object], str] = str,
) -> Table:
    """A plain table of some keys of each row; a key without a value is an empty cell."""
    table = PlainTable()
    for column in columns:
        # Folded and never cut: a name that is cut cannot be copied.
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column)
            cells.append("" if value is None else format(value))
        table.add_row(*cells)
    return table
