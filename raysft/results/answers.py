"""What the predictions of the test images tell: each class, what is taken for what, calibration,
the worst mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysft.records.predictions import Columns
from raysft.results.document import (
    AnswerFigures,
    Bin,
    Calibration,
    ClassFigures,
    ConfusedPair,
    Mistake,
)

BINS = 15  # of the calibration error, as in raysft.train.metrics, which imports torch
MATRIX_CLASSES = 30
MOST_PAIRS, MOST_MISTAKES = 20, 24


def judged(rows: Columns, classes: Sequence[str]) -> AnswerFigures:
    """The figures of the test images; `confusion` is None for more than 30 classes."""
    label, predicted = rows["label"], rows["predicted"]
    wrong = label != predicted
    small = len(classes) <= MATRIX_CLASSES
    return {
        "images": len(label),
        "mistakes": int(wrong.sum()),
        "accuracy": float(1 - wrong.mean()),
        "classes": per_class(label, predicted, classes),
        "confusion": confusion(label, predicted, len(classes)) if small else None,
        "confused": confused(
            label[wrong], predicted[wrong], np.bincount(label, minlength=len(classes))
        ),
        "calibration": calibration(rows["probability"], ~wrong),
        "worst": worst(rows, wrong),
    }


def per_class(
    label: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> list[ClassFigures]:
    """Precision, recall, F1 and support of every class, 0 where there is nothing to divide by.

    scikit-learn has the same figures, but its import would take longer than the whole report.
    """
    n = len(classes)
    hits = np.bincount(label[label == predicted], minlength=n)
    support, taken = np.bincount(label, minlength=n), np.bincount(predicted, minlength=n)
    precision, recall = hits / np.maximum(taken, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + taken, 1)
    return [
        {
            "class": name,
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
        }
        for i, name in enumerate(classes)
    ]


def confusion(label: np.ndarray, predicted: np.ndarray, n: int) -> list[list[int]]:
    """Images of a class (row) by what they were taken for (column)."""
    return np.bincount(label * n + predicted, minlength=n * n).reshape(n, n).tolist()


def confused(label: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> list[ConfusedPair]:
    """The pairs of classes with the most mistakes: numbers of the classes, images, share of the
    images of the class.

    label, predicted: (n,) of the mistakes alone; support: images of each class.
    """
    pairs, images = np.unique(np.stack([label, predicted]), axis=1, return_counts=True)
    first = np.argsort(-images, kind="stable")[:MOST_PAIRS]
    return [
        {
            "label": int(pairs[0, i]),
            "predicted": int(pairs[1, i]),
            "images": int(images[i]),
            "share": float(images[i] / support[pairs[0, i]]),
        }
        for i in first
    ]


def calibration(probability: np.ndarray, right: np.ndarray) -> Calibration:
    """Accuracy and mean probability in 15 bins of the probability, and their mean distance weighted
    by images.

    probability: (n,) float32 of the predicted class; right: (n,) bool. Empty bins have None for
    both.
    """
    at = np.clip((probability * np.float32(BINS)).astype(np.int64), 0, BINS - 1)
    images = np.bincount(at, minlength=BINS)
    hits = np.bincount(at, right, minlength=BINS)
    trust = np.bincount(at, probability.astype(np.float64), minlength=BINS)
    bins: list[Bin] = [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "images": int(n),
            "accuracy": float(hits[i] / n) if n else None,
            "probability": float(trust[i] / n) if n else None,
        }
        for i, n in enumerate(images)
    ]
    return {"bins": bins, "error": float(np.abs(trust - hits).sum() / len(probability))}


def worst(rows: Columns, wrong: np.ndarray) -> list[Mistake]:
    """The mistakes made with the most certainty, which mislabelled images are among, the most
    certain first.
    """
    at = np.flatnonzero(wrong)
    lead = rows["probability"][at] - rows["label_probability"][at]
    first = at[np.lexsort((rows["id"][at], -lead))][:MOST_MISTAKES]
    return [
        {
            "id": int(rows["id"][i]),
            "label": int(rows["label"][i]),
            "predicted": int(rows["predicted"][i]),
            "probability": float(rows["probability"][i]),
            "label_probability": float(rows["label_probability"][i]),
        }
        for i in first
    ]
