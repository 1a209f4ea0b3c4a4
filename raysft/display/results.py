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
    hidden = len(results["trials"]) - MOST_TRIALS
    lines = [f"… and {hidden} more"] if hidden > 0 else []
    lines += _best_lines(results)
    # Results of an older raysft have no doubts.
    lines += [f"doubt    {doubt}" for doubt in results.get("doubts", ())]
    return [*lines, _time_line(results["timing"])]


def _best_lines(results: ResultsDocument) -> list[str]:
    best = results["best"]
    if best is None:
        return []
    shown = dict.fromkeys([results["metric"], "val_accuracy", "test_accuracy"])
    scores = [f"{metric_text(m, short=False)} {metric_value(best, m):.4f}" for m in shown]
    lines = [f"best     {best['trial']}, epoch {best['epoch']}: {', '.join(scores)}"]
    confirmed = best.get("confirmed")
    if confirmed is not None:
        metric = metric_text(confirmed["metric"], short=False)
        seeds = count_text(len(confirmed["seeds"]), "seed")
        lines.append(
            f"confirm  {metric} {confirmed['mean']:.4f} ± {confirmed['std']:.4f} over {seeds}"
        )
    return lines


def _time_line(timing: Timing) -> str:
    rate, waited = timing["images_per_s"], timing["data_wait_fraction"]
    line = (
        f"time     {timing['total_s']:.1f} s: start {timing['startup_s']:.1f}, training "
        f"{timing['train_s']:.1f}"
    )
    if rate:
        line += f", {rate:,.0f} images/s"
    if waited is not None:
        line += f", {100 * waited:.1f} % of it waiting for data"
    return line
