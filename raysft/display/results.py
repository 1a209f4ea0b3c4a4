"""What a run came to: the leaderboard, the outcome, the commands that a person will want next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from raysft.console import Output, PlainTable
from raysft.wording import config_text, count_text, metric_text, score_text


def show_outcome(
    results: Mapping[str, Any], folder: str, output: Output, run: str | None = None
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


def leaderboard_table(results: Mapping[str, Any], most: int = 10) -> Table:
    """The best trials of a results.json."""
    metrics = list(dict.fromkeys([results["metric"], "val_accuracy", "val_loss"]))
    table = PlainTable()
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


def result_lines(results: Mapping[str, Any]) -> list[str]:
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
