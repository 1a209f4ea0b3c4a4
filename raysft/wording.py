"""How configurations, metrics and counts are written, on the console, in reports and charts."""

from __future__ import annotations

from typing import Any


def config_text(config: dict[str, Any]) -> str:
    """A configuration in one line: sgd lr=0.01 momentum=0.9 batch_size=64."""
    words = []
    for key, value in config.items():
        if isinstance(value, dict):  # a section, such as the optimizer
            named = [str(value["name"])] if "name" in value else []
            words += [*named, *(f"{k}={_short(v)}" for k, v in value.items() if k != "name")]
        else:
            words.append(f"{key.removeprefix('train.')}={_short(value)}")
    return " ".join(words) or "as in the job"


def _short(value: Any) -> str:
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
