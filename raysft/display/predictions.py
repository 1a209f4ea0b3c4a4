"""What a delivered model answers: scores, predictions, and its export beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysft.console import Output, PlainTable, make_table
from raysft.data.kinds import format_counts
from raysft.data.names import clipped
from raysft.wording import count_text, metric_text


def show_scores(scores: Mapping[str, Any], output: Output, most: int = 20) -> None:
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
        make_table(
            classes,
            ("class", "precision", "recall", "f1", "support"),
            lambda v: f"{v:.4f}" if isinstance(v, float) else str(v),
        )
    )
    names = [row["class"] for row in scores["classes"]]
    if len(names) <= most:
        output.line()
        output.line("images of a class (row) by what they were taken for (column):")
        table = PlainTable()
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
        make_table(
            sorted(found, key=lambda row: -row["images"])[:20],
            ("class", "images"),
            lambda v: f"{v:,}" if isinstance(v, int) else str(v),
        )
    )
    bad = f", {count_text(predicted.errors, 'bad image')} with an error" if predicted.errors else ""
    left_out = f"; left out {format_counts(predicted.left_out)}" if predicted.left_out else ""
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
