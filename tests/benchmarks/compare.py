"""Measuring ways of doing the same thing side by side: interleaved rounds in one run, ratios of
medians.

Absolute times say little on a machine that others share; a ratio of rounds that took turns (A B B
A) says more.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from raysft.records.run import versions

SETTLE_SECONDS = (
    0.5  # for what was killed at the end of a round to be dead, and its CPU seconds known
)
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Timing:
    """The rounds of one way: seconds, CPU seconds (this process and all that ended under it), what
    it returned.
    """

    name: str
    wall: list[float]
    cpu: list[float]
    values: list[float]

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.wall)

    @property
    def value(self) -> float:
        """The median of what the rounds returned."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Figure:
    """A number that a comparison is about, and what it is held against."""

    name: str
    value: float
    target: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def take_turns(
    ways: Mapping[str, Callable[[], float | None]], rounds: int, warm_up: bool = True
) -> list[Timing]:
    """Time each way `rounds` times, forwards and backwards in turn, after one warm-up where that
    tells something.
    """
    _adopt_orphans()
    timings = [Timing(name, [], [], []) for name in ways]
    for way in ways.values() if warm_up else ():
        way()
    for number in range(rounds):
        for timing in timings if number % 2 == 0 else reversed(timings):
            _reap()
            began, cpu = time.perf_counter(), sum(os.times()[:4])
            value = ways[timing.name]()
            timing.wall.append(time.perf_counter() - began)
            time.sleep(SETTLE_SECONDS)
            _reap()
            timing.cpu.append(sum(os.times()[:4]) - cpu)
            if value is not None:
                timing.values.append(value)
            print(f"  {timing.name}: {timing.wall[-1]:.3f} s", file=sys.stderr, flush=True)
    return timings


def _adopt_orphans() -> None:
    """Let processes whose parents end before them become children of this one, so that their CPU
    seconds count.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def document(
    title: str, timings: Sequence[Timing], figures: Sequence[Figure], values: str = "", **more: Any
) -> dict[str, Any]:
    """One comparison: all rounds, the figures, where it was measured. `values` says what the rounds
    returned.
    """
    return {
        "benchmark": title,
        "machine": machine(),
        "versions": versions(),
        "values": values,
        "ways": [asdict(t) for t in timings],
        "figures": [asdict(f) | {"met": f.met} for f in figures],
        **more,
    }


def machine() -> dict[str, Any]:
    """The processor and its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
    }


def show(found: dict[str, Any]) -> None:
    """The tables of one comparison."""
    console, values = Console(width=120), found["values"]
    console.print(f"\n[bold]{found['benchmark']}[/]", highlight=False)
    ways = Table("way", *(["median s", "min – max s", "cpu s"]), *([values] if values else []))
    for row in found["ways"]:
        ways.add_row(
            row["name"],
            f"{statistics.median(row['wall']):.3f}",
            f"{min(row['wall']):.3f} – {max(row['wall']):.3f}",
            f"{statistics.median(row['cpu']):.2f}",
            *(
                [f"{statistics.median(row['values']):.4g}" if row["values"] else ""]
                if values
                else []
            ),
        )
    figures = Table("figure", "measured", "target", "")
    for row in found["figures"]:
        target = (
            ""
            if row["target"] is None
            else f"at {'least' if row['at_least'] else 'most'} {row['target']:g}"
        )
        met = {None: "", True: "met", False: "missed"}[row["met"]]
        figures.add_row(row["name"], f"{row['value']:.3f}", target, met)
    for table in (ways, figures):
        if table.row_count:
            console.print(table)


def show_machine() -> None:
    """One line before the tables: what was measured on."""
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    Console(width=120).print(
        f"{machine()['cores']} cores, {machine()['system']}; {named}", highlight=False
    )
