"""Measuring ways of doing the same thing side by side: interleaved rounds in one run, ratios of medians.

Absolute times say little on a machine that others share; a ratio of rounds that took turns (A B B A) says more.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from raysft.results.run import versions


@dataclass(frozen=True)
class Timing:
    """Seconds of the rounds of one way, and its CPU seconds (this process and children that have ended)."""

    name: str
    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def take_turns(ways: Mapping[str, Callable[[], Any]], rounds: int, warm_up: bool = True) -> list[Timing]:
    """Time each way `rounds` times, forwards and backwards in turn, after one warm-up where that tells something."""
    timings = [Timing(name, [], []) for name in ways]
    for way in ways.values() if warm_up else ():
        way()
    for number in range(rounds):
        for timing in timings if number % 2 == 0 else reversed(timings):
            began, cpu = time.perf_counter(), sum(os.times()[:4])
            ways[timing.name]()
            timing.wall.append(time.perf_counter() - began)
            timing.cpu.append(sum(os.times()[:4]) - cpu)
    return timings


def document(title: str, timings: list[Timing], baseline: str, targets: Mapping[str, float]) -> dict[str, Any]:
    """Medians, spreads and ratios to `baseline` with the targets they are held against, and where it was measured."""
    base = next(t for t in timings if t.name == baseline)
    rows = [asdict(t) | {"median_s": t.median, "ratio": t.median / base.median, "target": targets.get(t.name)}
            for t in timings]
    return {"benchmark": title, "baseline": baseline, "machine": machine(), "versions": versions(), "ways": rows}


def machine() -> dict[str, Any]:
    """The processor and its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"system": platform.platform(), "processor": platform.processor() or platform.machine(), "cores": cores}


def show(found: dict[str, Any]) -> None:
    """The table of one benchmark."""
    table = Table(title=f"{found['benchmark']} (ratio to {found['baseline']})", title_justify="left")
    for column in ("way", "median s", "min – max s", "cpu s", "ratio", "target"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in found["ways"]:
        target = "" if row["target"] is None else f"at most {row['target']:g}"
        table.add_row(row["name"], f"{row['median_s']:.3f}", f"{min(row['wall']):.3f} – {max(row['wall']):.3f}",
                      f"{statistics.median(row['cpu']):.3f}", f"{row['ratio']:.3f}", target)
    Console().print(table)
