"""What a run came to: the leaderboard, the outcome, the commands that a person will want next."""

from __future__ import annotations

from raysft.console import Output, PlainTable
from raysft.display.status import known_metric
from raysft.records.documents import ResultsDocument, Timing
from raysft.records.trial import metric_value
from raysft.wording import config_text, count_text, metric_text, score_text

MOST_TRIALS = 10  # of a leaderboard; results.json and the report have all


def show_outcome(
    results: ResultsDocument, folder: str, output: Output, run: str | None = None
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
    best = results["best"]
    # A network of a person's own is imported only when they say so, each time again.
    trust = " --trust-code" if best and best.get("module") is not None else ""
    output.line(f"  raysft results {run or folder}")
    output.line(f"  raysft evaluate{trust} {folder}/model DATA")
    output.line(f"  raysft predict{trust} {folder}/model IMAGE…")


def leaderboard_table(results: ResultsDocument) -> PlainTable:
    """The best trials of a results.json."""
    # The metric that was searched by comes first, and not twice.
    metrics = list(dict.fromkeys([results["metric"], "val_accuracy", "val_loss"]))
    table = PlainTable()
    table.add_column("", justify="right", overflow="fold")
    table.add_column("trial", overflow="fold")
    table.add_column("status", overflow="fold")
    for metric in metrics:
        table.add_column(metric_text(metric), justify="right", overflow="fold")
    table.add_column("epochs", justify="right", overflow="fold")
    table.add_column("seconds", justify="right", overflow="fold")
    table.add_column("config", overflow="fold")
    # They are ranked as they were written, by the metric that the search had.
    for rank, row in enumerate(results["trials"][:MOST_TRIALS], 1):
        scores = [score_text(known_metric(row, metric)) for metric in metrics]
        table.add_row(
            str(rank),
            row["trial"],
            row["status"],
            *scores,
            str(row["epochs"]),
            f"{row['seconds']:.1f}",
            config_text(row["config"]),
        )
    return table


def result_lines(results: ResultsDocument) -> list[str]:
    """The outcome under the leaderboard."""
    lines = []
    hidden = len(results["trials"]) - MOST_TRIALS
    if hidden > 0:
        lines.append(f"… and {hidden} more")
    lines += _best_lines(results)
    # Results of an older raysft have no doubts.
    for doubt in results.get("doubts", ()):
        lines.append(f"doubt    {doubt}")
    lines.append(_time_line(results["timing"]))
    return lines


def _best_lines(results: ResultsDocument) -> list[str]:
    best = results["best"]
    if best is None:
        return []
    shown = dict.fromkeys([results["metric"], "val_accuracy", "test_accuracy"])
    scores = []
    for metric in shown:
        name = metric_text(metric, short=False)
        scores.append(f"{name} {metric_value(best, metric):.4f}")
    lines = [f"best     {best['trial']}, epoch {best['epoch']}: {', '.join(scores)}"]
    confirmed = best.get("confirmed")
    if confirmed is not None:
        name = metric_text(confirmed["metric"], short=False)
        # With its spread: a single seed's lead may be luck.
        seeds = count_text(len(confirmed["seeds"]), "seed")
        lines.append(
            f"confirm  {name} {confirmed['mean']:.4f} ± {confirmed['std']:.4f} over {seeds}"
        )
    return lines


def _time_line(timing: Timing) -> str:
    rate = timing["images_per_s"]
    waited = timing["data_wait_fraction"]
    line = (
        f"time     {timing['total_s']:.1f} s: start {timing['startup_s']:.1f}, training "
        f"{timing['train_s']:.1f}"
    )
    if rate:
        line += f", {rate:,.0f} images/s"
    if waited is not None:
        # Named, as it is what more CPUs or a smaller image size can shorten.
        line += f", {100 * waited:.1f} % of it waiting for data"
    return line
