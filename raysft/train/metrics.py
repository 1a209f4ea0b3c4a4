"""Metrics of a split as sums over its images, which are added over the workers and divided once."""

from __future__ import annotations

from typing import TypedDict

import torch
import torch.nn.functional as F

from raysft.records.documents import HeldOutScores, ValidationMetrics

BINS = 15  # of the calibration error, as in Guo et al. 2017 (arXiv 1706.04599)


class OptionalSplitMetrics(TypedDict, total=False):
    """Metrics that data of few classes do not have."""

    top5_accuracy: float
    """Of more than five classes."""


class SplitMetrics(OptionalSplitMetrics):
    """Metrics of any split."""

    loss: float
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    calibration_error: float


class MetricSums:
    """What is counted of the images of a split, in one float64 tensor; `metrics` makes metrics of
    it.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.values = torch.zeros(3 + 3 * classes + 3 * BINS, dtype=torch.float64, device=device)
        parts = torch.split(self.values, [3, classes, classes, classes, BINS, BINS, BINS])
        (
            self.totals,
            self.hits,
            self.predicted,
            self.actual,
            self.bin_rows,
            self.bin_hits,
            self.bin_trust,
        ) = parts

    @torch.no_grad()
    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: outputs (n, classes), labels (n,) int64."""
        outputs = outputs.float()
        trust, guess = F.softmax(outputs, dim=1).max(1)
        right = (guess == labels).double()
        self.totals[0] += F.cross_entropy(outputs, labels, reduction="sum")
        self.totals[1] += len(labels)
        if self.classes > 5:
            self.totals[2] += (outputs.topk(5, dim=1).indices == labels[:, None]).sum()
        ones = torch.ones_like(right)
        self.hits.index_add_(0, labels, right)
        self.predicted.index_add_(0, guess, ones)
        self.actual.index_add_(0, labels, ones)
        at = (trust * BINS).long().clamp_(0, BINS - 1)
        self.bin_rows.index_add_(0, at, ones)
        self.bin_hits.index_add_(0, at, right)
        self.bin_trust.index_add_(0, at, trust.double())

    def metrics(self) -> SplitMetrics:
        """The metrics of all images that were counted.

        F1 and recall are averaged over the classes that occur in the split, as scikit-learn does
        with these as `labels`. The calibration error is the mean distance of probability and
        accuracy over 15 bins, weighted by their images.
        """
        loss, rows, top5 = self.totals.tolist()
        seen = self.actual > 0
        # a class that occurs and is never predicted has an F1 of 0, not 0/0
        f1 = 2 * self.hits / (self.predicted + self.actual).clamp(min=1)
        recall = self.hits[seen] / self.actual[seen]
        bin_errors = (self.bin_trust - self.bin_hits).abs()
        of_many: OptionalSplitMetrics = {"top5_accuracy": top5 / rows} if self.classes > 5 else {}
        return {
            "loss": loss / rows,
            "accuracy": self.hits.sum().item() / rows,
            **of_many,
            "macro_f1": f1[seen].mean().item(),
            "balanced_accuracy": recall.mean().item(),
            "calibration_error": bin_errors.sum().item() / rows,
        }


def validation_metrics(metrics: SplitMetrics) -> ValidationMetrics:
    """Metrics of the validation split by their names in an epoch."""
    found: ValidationMetrics = {"val_loss": metrics["loss"], "val_accuracy": metrics["accuracy"]}
    if "top5_accuracy" in metrics:
        found["val_top5_accuracy"] = metrics["top5_accuracy"]
    found["val_macro_f1"] = metrics["macro_f1"]
    found["val_balanced_accuracy"] = metrics["balanced_accuracy"]
    found["val_calibration_error"] = metrics["calibration_error"]
    return found


def held_out_scores(metrics: SplitMetrics) -> HeldOutScores:
    """Metrics of the test split by their names in results.json."""
    found: HeldOutScores = {"test_loss": metrics["loss"], "test_accuracy": metrics["accuracy"]}
    if "top5_accuracy" in metrics:
        found["test_top5_accuracy"] = metrics["top5_accuracy"]
    found["test_macro_f1"] = metrics["macro_f1"]
    found["test_balanced_accuracy"] = metrics["balanced_accuracy"]
    found["test_calibration_error"] = metrics["calibration_error"]
    return found
