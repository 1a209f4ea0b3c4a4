"""What the predictions of the test images show: classes, confusions, calibration, mistakes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysft.records.predictions import Predictions
from raysft.results.document import (
    AnswerFigures,
    Bin,
    Calibration,
    ClassFigures,
    ConfusedPair,
    Mistake,
)

BINS = 15  # of the calibration error, as in raysft.train.metrics, which imports torch
MATRIX_CLASSES = 30  # a larger confusion matrix has cells that nobody can read
MOST_PAIRS = 20
MOST_MISTAKES = 24


def summarize_answers(predictions: Predictions, classes: Sequence[str]) -> AnswerFigures:
    """The figures of the test images; `confusion` is None for more than 30 classes."""
    label, predicted = predictions.label, predictions.predicted
    wrong = predictions.wrong
    matrix = None
    if len(classes) <= MATRIX_CLASSES:
        matrix = count_confusion(label, predicted, len(classes))
    support = np.bincount(label, minlength=len(classes))
    return {
        "images": len(label),
        "mistakes": int(wrong.sum()),
        "accuracy": float(1 - wrong.mean()),
        "classes": score_classes(label, predicted, classes),
        "confusion": matrix,
        "confused": most_confused(label[wrong], predicted[wrong], support),
        "calibration": measure_calibration(predictions.probability, ~wrong),
        "worst": worst_mistakes(predictions),
    }


def score_classes(
    label: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> list[ClassFigures]:
    """Precision, recall, F1 and support of every class, 0 where there is nothing to divide by."""
    # scikit-learn has the same figures, but importing it takes longer than the whole report.
    n = len(classes)
    hits = np.bincount(label[label == predicted], minlength=n)
    support = np.bincount(label, minlength=n)
    answers = np.bincount(predicted, minlength=n)
    # Numerators are 0 wherever a denominator is, so that dividing by 1 gives the 0 that is meant.
    precision = hits / np.maximum(answers, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + answers, 1)
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


def count_confusion(label: np.ndarray, predicted: np.ndarray, n: int) -> list[list[int]]:
    """Images of a class (row) by what they were taken for (column)."""
    pairs = label * n + predicted  # a number for each cell, row by row
    return np.bincount(pairs, minlength=n * n).reshape(n, n).tolist()


def most_confused(
    label: np.ndarray, predicted: np.ndarray, support: np.ndarray
) -> list[ConfusedPair]:
    """The pairs of classes with the most mistakes, the most frequent first.

    label, predicted: (n,) of the mistakes alone; support: images of each class.
    """
    pairs, images = np.unique(np.stack([label, predicted]), axis=1, return_counts=True)
    # Stable, so that pairs with as many mistakes stay in the order of their classes.
    first = np.argsort(-images, kind="stable")[:MOST_PAIRS]
    found: list[ConfusedPair] = []
    for i in first:
        of_class = int(pairs[0, i])
        found.append(
            {
                "label": of_class,
                "predicted": int(pairs[1, i]),
                "images": int(images[i]),
                "share": float(images[i] / support[of_class]),
            }
        )
    return found


def measure_calibration(probability: np.ndarray, right: np.ndarray) -> Calibration:
    """Accuracy and mean probability in 15 bins of the probability, and their mean distance weighted
    by images.

    probability: (n,) float32 of the predicted class; right: (n,) bool. Empty bins have None for
    both.
    """
    # In float32, as training bins them: a probability on an edge must not change its bin here.
    at = np.clip((probability * np.float32(BINS)).astype(np.int64), 0, BINS - 1)
    images = np.bincount(at, minlength=BINS)
    hits = np.bincount(at, right, minlength=BINS)
    trust = np.bincount(at, probability.astype(np.float64), minlength=BINS)
    bins: list[Bin] = []
    for i, n in enumerate(images):
        bins.append(
            {
                "low": i / BINS,
                "high": (i + 1) / BINS,
                "images": int(n),
                "accuracy": float(hits[i] / n) if n else None,
                "probability": float(trust[i] / n) if n else None,
            }
        )
    return {"bins": bins, "error": float(np.abs(trust - hits).sum() / len(probability))}


def worst_mistakes(predictions: Predictions) -> list[Mistake]:
    """The mistakes made with the most certainty first; mislabelled images are among them."""
    at = np.flatnonzero(predictions.wrong)
    lead = predictions.probability[at] - predictions.label_probability[at]
    # The last key is the first one to sort by; ids make the order of equals the same everywhere.
    first = at[np.lexsort((predictions.id[at], -lead))][:MOST_MISTAKES]
    return [
        {
            "id": int(predictions.id[i]),
            "label": int(predictions.label[i]),
            "predicted": int(predictions.predicted[i]),
            "probability": float(predictions.probability[i]),
            "label_probability": float(predictions.label_probability[i]),
        }
        for i in first
    ]
