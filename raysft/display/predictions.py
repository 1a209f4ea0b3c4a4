"""What a delivered model answers: scores, predictions, and its export beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysft.console import Output, PlainTable, make_table
from raysft.data.kinds import format_counts
from raysft.data.names import clipped
from raysft.deploy.prediction import Predicted
from raysft.wording import count_text, metric_text, number_text

if TYPE_CHECKING:
    # Of a module that imports torch, which takes seconds.
    from raysft.results.predict import Evaluation

MOST_CLASSES = 20  # of a table


def show_scores(scores: Evaluation, output: Output, most: int = 20) -> None:
    """What `raysft evaluate` found: the whole, each class, the confusion matrix where it fits."""
    # Which metrics there are depends on the number of classes; all of them are fractions.
    whole = []
    for metric, value in scores.items():
        if isinstance(value, float):
            whole.append(f"{metric_text(metric, short=False)} {value:.4f}")
    output.line(f"{', '.join(whole)} on {scores['images']:,} images")
    for note in scores["notes"]:
        output.line(note)
    output.line()
    classes = [row | {"class": clipped(row["class"])} for row in scores["classes"]]
    columns = ("class", "precision", "recall", "f1", "support")
    output.show(make_table(classes, columns, _score_cell))
    # A wider matrix would be folded into something that nobody can read; --json has it.
    if len(scores["classes"]) <= most:
        output.line()
        output.line("images of a class (row) by what they were taken for (column):")
        output.show(_confusion_table(scores))


def _score_cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)


def _confusion_table(scores: Evaluation) -> PlainTable:
    names = [clipped(row["class"]) for row in scores["classes"]]
    table = PlainTable()
    for heading in ("", *names):
        table.add_column(heading, overflow="fold")
    for name, counts in zip(names, scores["confusion"], strict=True):
        cells = [str(count) for count in counts]
        table.add_row(name, *cells)
    return table


def show_predicted(predicted: Predicted, output: Output) -> None:
    """What `raysft predict --out` came to."""
    # A model may know thousands of classes, of which a folder has a few.
    found = [(name, images) for name, images in predicted.classes.items() if images]
    found.sort(key=lambda each: -each[1])
    rows = [{"class": clipped(name), "images": images} for name, images in found[:MOST_CLASSES]]
    output.show(make_table(rows, ("class", "images"), number_text))
    line = f"{predicted.out}: {count_text(predicted.images, 'row')}"
    if predicted.errors:
        line += f", {count_text(predicted.errors, 'bad image')} with an error"
    if predicted.images_per_s:
        line += f", {predicted.images_per_s:,.0f} images/s"
    if predicted.left_out:
        line += f"; left out {format_counts(predicted.left_out)}"
    output.line(line)


def export_lines(made: dict[str, Any]) -> list[str]:
    """What was exported, and how it compares with its model."""
    checked = made["checked"]
    # All files together: weights of more than 2 GB lie beside an ONNX graph.
    size = sum(file["bytes"] for file in made["files"].values()) / 1e6
    into, out = _tensor_text(made["input"]), _tensor_text(made["output"])
    tested = f"{checked['images']:,} {checked['split']} images of {checked['data']}"
    accuracy, model_accuracy = checked["accuracy"], checked["model_accuracy"]
    difference, allowed = checked["largest_difference"], checked["tolerance"]
    return [
        f"export   {made['path']}/{made['file']}, {size:.1f} MB: {into} to {out}",
        f"checked  {tested}: accuracy {accuracy:.4f}, the model's {model_accuracy:.4f}; "
        f"probabilities differ by up to {difference:.1g}, {allowed:g} is allowed; "
        f"{checked['seconds']:.1f} s",
    ]


def _tensor_text(tensor: dict[str, Any]) -> str:
    shape = ", ".join(map(str, tensor["shape"]))
    return f"{tensor['type']} ({shape})"
