"""Whether a run has learned anything: what speaks against it, in words that stand beside its
result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from raysft.records.documents import EpochMetrics, HeldOutScores
from raysft.records.trial import metric_value

SURE = 0.05  # the probability of taking chance for learning, over all trials together

History = Sequence[EpochMetrics]  # the metrics of the epochs of a trial


def training_doubts(
    histories: Sequence[History], metric: str, class_rows: Sequence[int]
) -> list[str]:
    """What speaks against a run, one sentence each; none of most runs.

    histories: of the trials, best first, those without an epoch left out. metric: what the trials
    are compared by.
    class_rows: validation images of each class.
    """
    epochs = [epoch for history in histories for epoch in history]
    images = sum(class_rows)
    if not epochs or not images:
        return []
    # A loss that diverged leaves metrics that are no numbers.
    right = round(_highest(epochs, "val_accuracy") * images)
    balanced = _highest(epochs, "val_balanced_accuracy")
    most_frequent = max(class_rows)
    found = []
    # With class weights a model may be below the most frequent class and have learned a lot.
    at_chance_level = at_chance(right, most_frequent, images, len(histories))
    if at_chance_level and not beats_chance(balanced, class_rows):
        found.append(
            f"nothing was learned as far as can be told: the best of all epochs has {right:,} of "
            f"{images:,} validation images right; to always answer the most frequent class gets "
            f"{most_frequent:,}{_flat(histories[0])}"
        )
    # Where all images are right there is nothing left to tell trials apart by.
    same = _same(histories, metric)
    if right < images and same is not None:
        found.append(
            f"{metric} is {same:.4f} in all {len(histories):,} trials: it does not tell them apart"
        )
    return found


def _highest(epochs: Sequence[EpochMetrics], metric: str) -> float:
    """The highest value of a metric; 0 where no epoch has it."""
    values = [metric_value(epoch, metric) for epoch in epochs if epoch.get(metric) is not None]
    return max(filter(math.isfinite, values), default=0.0)


def score_doubts(scores: HeldOutScores, class_rows: Sequence[int]) -> list[str]:
    """What speaks against a model that its test score is at chance: one sentence, or none.

    scores: test_accuracy and test_balanced_accuracy. class_rows: test images of each class.
    """
    images = sum(class_rows)
    if not images:
        return []
    right = round(scores["test_accuracy"] * images)
    balanced = scores.get("test_balanced_accuracy", 0.0)
    if not at_chance(right, max(class_rows), images) or beats_chance(balanced, class_rows):
        return []
    return [
        f"the model has {right:,} of {images:,} test images right; to always answer the most "
        "frequent class gets "
        f"{max(class_rows):,}"
    ]


def beats_chance(balanced: float, class_rows: Sequence[int]) -> bool:
    """Whether a balanced accuracy is surely above chance, as that of a model trained with class
    weights may be.

    To answer one class always, or any at random, has a mean recall of one in the number of classes.
    Surely above is by three standard errors of it, each class with a binomial variance of its own.
    """
    seen = [rows for rows in class_rows if rows]
    chance = 1 / len(seen)
    # Classes are counted apart, so that the variances of their recalls add up.
    variance = sum(chance * (1 - chance) / rows for rows in seen)
    error = math.sqrt(variance) / len(seen)
    return balanced > chance + 3 * error


def at_chance(right: int, most_frequent: int, images: int, tries: int = 1) -> bool:
    """Whether an accuracy cannot be told from always answering the most frequent class.

    right: of `images`; most_frequent: images of the most frequent class; tries: of how many trials
    it is the best.

    It can where the one-sided exact binomial test against the share of that class (the "no
    information rate", which `confusionMatrix` of the R package caret tests an accuracy against in
    the same way; equal to the lower bound of C. J. Clopper and E. S. Pearson, Biometrika 26,
    404-413, 1934) rejects at 5 %, divided by the number of trials (C. E. Bonferroni). With so few
    images that no accuracy would pass, one above the share is let pass; one that is perfect always
    is.
    """
    if right == images:
        return False
    if right <= most_frequent:
        return True
    share = most_frequent / images
    # The best of many trials is lucky more often: each may be so only in its part of all cases.
    level = SURE / max(1, tries)
    # Not even all images right would be rare enough: there is no evidence either way.
    if share**images > level:
        return False
    return binomial_tail(right, images, share) > level


def binomial_tail(right: int, images: int, share: float) -> float:
    """The probability of at least `right` of `images`, above the mean, each with probability 0 <
    `share` < 1.
    """
    # By logarithms: factorials of some hundred images are beyond any float.
    term = math.exp(
        math.lgamma(images + 1)
        - math.lgamma(right + 1)
        - math.lgamma(images - right + 1)
        + right * math.log(share)
        + (images - right) * math.log1p(-share)
    )
    total = 0.0
    # Above the mean each term is smaller than the one before: the rest soon adds nothing.
    for count in range(right, images + 1):
        total += term
        if term < 1e-12 * total:
            break
        term *= (images - count) / (count + 1) * share / (1 - share)
    return total


def _flat(history: History) -> str:
    losses = [epoch["val_loss"] for epoch in history]
    if len(losses) < 2 or any(_known(loss) and loss < losses[0] for loss in losses[1:]):
        return ""
    return "; the validation loss of the best trial never fell below that of its first epoch"


def _same(histories: Sequence[History], metric: str) -> float | None:
    """The value that a metric has in all epochs of all trials, of which there are several; None
    where it differs.
    """
    values = [
        metric_value(epoch, metric)
        for history in histories
        for epoch in history
        if epoch.get(metric) is not None
    ]
    values = [value for value in values if math.isfinite(value)]
    if len(histories) < 2 or not values or max(values) - min(values) > 1e-9:
        return None
    return float(values[0])


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
