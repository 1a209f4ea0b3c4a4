"""Metrics of a split as sums over its images, which are added over the workers and divided once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

BINS = 15  # of the calibration error, as in Guo et al. 2017 (arXiv 1706.04599)


class Sums:
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

    def metrics(self) -> dict[str, float]:
        """loss, accuracy, top5_accuracy (of more than five classes), macro_f1, balanced_accuracy,
        calibration_error.

        F1 and recall are averaged over the classes that occur in the split, as scikit-learn does
        with these as `labels`. The calibration error is the mean distance of probability and
        accuracy over 15 bins, weighted by their images.
        """
        loss, rows, top5 = self.totals.tolist()
        seen = self.actual > 0
        f1 = (2 * self.hits / (self.predicted + self.actual).clamp(min=1))[seen]
        found = {"loss": loss / rows, "accuracy": self.hits.sum().item() / rows}
        if self.classes > 5:
            found["top5_accuracy"] = top5 / rows
        return found | {
            "macro_f1": f1.mean().item(),
            "balanced_accuracy": (self.hits[seen] / self.actual[seen]).mean().item(),
            "calibration_error": (self.bin_trust - self.bin_hits).abs().sum().item() / rows,
        }


def prefixed(metrics: dict[str, float], split: str) -> dict[str, float]:
    """val_accuracy and so on."""
    return {f"{split}_{name}": value for name, value in metrics.items()}
