"""The metrics that a search can be steered by, and which of two epochs is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

MetricName = Literal[
    "val_accuracy",
    "val_loss",
    "val_top5_accuracy",
    "val_macro_f1",
    "val_balanced_accuracy",
    "val_calibration_error",
]

METRICS: tuple[str, ...] = get_args(MetricName)


def metric_mode(metric: str) -> Literal["min", "max"]:
    """The direction in which a metric is better."""
    return "min" if metric.endswith(("loss", "calibration_error")) else "max"


def meets_target(value: float, target: float, metric: str) -> bool:
    """Whether a metric is as good as a target."""
    return value <= target if metric_mode(metric) == "min" else value >= target


def sort_key(metrics: Mapping[str, object], metric: str) -> tuple[float, float]:
    """A key that sorts epochs from best to worst."""
    value = _number(metrics, metric)
    # Accuracies of small validation splits are often equal; the loss then says which is surer.
    return (value if metric_mode(metric) == "min" else -value, _number(metrics, "val_loss"))


def _number(metrics: Mapping[str, object], name: str) -> float:
    value = metrics[name]
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r} and no number")
    return value
