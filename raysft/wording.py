"""How configurations, metrics and counts are written, on the console, in reports and charts."""

from __future__ import annotations

from collections.abc import Mapping


def config_text(config: Mapping[str, object]) -> str:
    """A configuration in one line: sgd lr=0.01 momentum=0.9 batch_size=64."""
    words = []
    for key, value in config.items():
        if isinstance(value, dict):  # a section, such as the optimizer
            # Its name alone, as people say sgd and not optimizer.name=sgd.
            named = [str(value["name"])] if "name" in value else []
            words += [*named, *(f"{k}={_short(v)}" for k, v in value.items() if k != "name")]
        else:
            words.append(f"{key.removeprefix('train.')}={_short(value)}")
    return " ".join(words) or "as in the job"


def _short(value: object) -> str:
    # Learning rates are drawn with 16 digits, of which three tell trials apart.
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def metric_text(metric: str, short: bool = True) -> str:
    """A metric as people write it: val acc, val top5 accuracy."""
    words = metric.replace("_", " ")
    return {"val accuracy": "val acc"}.get(words, words) if short else words


def score_text(value: float | None) -> str:
    """A metric in a table."""
    return "-" if value is None else f"{value:.4f}"


def count_text(number: int, word: str) -> str:
    """A number of things: 1 trial, 16 trials."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def number_text(value: object) -> str:
    """A number of images or files with its thousands set apart, anything else as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)
