"""Networks that normalise over a batch, and batches that are too small for them."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import (
    _BatchNorm,
)  # what all of torch's, torchvision's and timm's are

from raysft.errors import JobError
from raysft.job.batches import LEAST_ROWS, fewest_rows
from raysft.job.recipe import Train
from raysft.train.trainable import frozen_names, train_only, training_mode
from raysft.train.tryout import takes_one


def normalises_over_batch(net: nn.Module) -> bool:
    """Whether a network, in the mode it is in, makes what it normalises by of the batch."""
    return any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in net.modules()
    )


def check_batches(
    net: nn.Module, head: str, train: Train, rows: int, workers: int, size: tuple[int, int]
) -> None:
    """Raise JobError where a worker would have a single image to train batch normalisation on.

    A share of one is refused always, a part of a share where the network really cannot train on it.
    rows: of the training split; workers: the most that the job may have; size: (height, width) of
    images as the network sees them. `net` is left in training mode.
    """
    if not _trains_on_batches(net, head, train):
        return
    kind, wanted = type(net).__name__, LEAST_ROWS * workers
    why = f"and {kind}, which normalises over the batch, needs {LEAST_ROWS}"
    if fewest_rows(rows, train.batch_size, workers) < LEAST_ROWS:
        todo = (
            f"give at least {wanted}"
            if rows >= wanted
            else f"lower resources.workers to {rows // LEAST_ROWS}"
        )
        raise JobError(
            f"train.batch_size: {train.batch_size}",
            f"leaves one of {workers} workers a single image a step, {why}",
            f"{todo}, or freeze the backbone",
        )
    share = train.batch_size // workers
    if (
        train.accumulate > 1
        and share // train.accumulate < LEAST_ROWS
        and not takes_one(net, (3, *size))
    ):
        raise JobError(
            f"train.accumulate: {train.accumulate}",
            f"cuts the {share} images of a worker into parts of a single one, {why}",
            f"give at most {share // LEAST_ROWS}",
        )


def can_halve(net: nn.Module, head: str, train: Train, workers: int, size: tuple[int, int]) -> bool:
    """Whether the parts of a worker's share of a batch can be half of what they are; `size` as for
    `check_batches`.
    """
    rows = train.batch_size // workers // (2 * train.accumulate)
    if rows != 1:
        return rows >= LEAST_ROWS
    return not _trains_on_batches(net, head, train) or takes_one(net, (3, *size))


def _trains_on_batches(net: nn.Module, head: str, train: Train) -> bool:
    """Whether some epoch of a recipe normalises over batches; `net` is left in the mode of that
    epoch.
    """
    train_only(net, frozen_names(net, head, train.freeze))
    training_mode(
        net, head, head_alone=train.freeze == "backbone" or train.head_epochs == train.epochs
    )
    return normalises_over_batch(net)
