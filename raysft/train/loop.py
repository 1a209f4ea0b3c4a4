"""One trial, epoch by epoch: train, validate, write a checkpoint, report, go on while the search says so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from raysft.data.augment import augment, erase, mix
from raysft.data.ingest import Batch, Kept, Reader
from raysft.data.pixels import Preparer, most_at_once
from raysft.data.preparation import Preparation
from raysft.data.staging import staged
from raysft.errors import TrialError
from raysft.job.recipe import Train
from raysft.job.spec import order
from raysft.storage import Place
from raysft.train.checkpoint import load_checkpoint, save_checkpoint
from raysft.train.checkpoint_paths import last_checkpoint, prune
from raysft.train.learner import Learner
from raysft.train.metrics import Sums, prefixed
from raysft.train.optim import learning_rate
from raysft.train.team import Team

PROGRESS_SECONDS = 1.0

T = TypeVar("T")
Metrics = dict[str, Any]
Report = Callable[[Metrics, bool], bool]
Progress = Callable[[int, int], None]
Features = Callable[[str], Kept | None]


@dataclass(frozen=True)
class Recipe:
    """What one trial trains with: `folder` takes its checkpoints, `metric` picks the one to keep."""

    train: Train
    seed: int
    preparation: Preparation
    class_rows: tuple[int, ...]
    metric: str
    folder: Place
    head: str


@dataclass
class Clock:
    """Where the time of an epoch went, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """`batches`, counting the time spent waiting for each."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def elapsed(self) -> float:
        return time.perf_counter() - self.started


@dataclass(frozen=True)
class Splits:
    """The images of a trial, and where they can be had as features of its frozen backbone."""

    train: Reader
    val: Reader
    features: Features = lambda split: None


def run_trial(recipe: Recipe, net: nn.Module, splits: Splits, team: Team, report: Report, progress: Progress) -> None:
    """Train `net` from where its last checkpoint left off, if there is one, to the last epoch or until told to stop.

    `report(metrics, last)` is called on rank 0 after every epoch and says whether to go on. Raises TrialError when the
    loss is not finite any more.
    """
    learner = Learner(net, recipe.head, recipe.train, recipe.class_rows, team)
    start = 0
    history: list[Metrics] = []
    if (checkpoint := last_checkpoint(recipe.folder)) is not None:
        start, history = load_checkpoint(checkpoint, learner)
        if not _go_on(history, recipe, team, report):  # whoever wrote it may have died before it could report it
            return
    for epoch in range(start, recipe.train.epochs):
        history.append(_one_epoch(recipe, epoch, learner, splits, progress))
        if team.rank == 0:
            save_checkpoint(recipe.folder, epoch + 1, learner, history)
        if not _go_on(history, recipe, team, report):
            return


def _go_on(history: list[Metrics], recipe: Recipe, team: Team, report: Report) -> bool:
    """Report the last epoch of `history`, drop the checkpoints that it made useless; whether to train another."""
    done, best = history[-1]["epoch"], best_epoch(history, recipe.metric)
    patience = recipe.train.patience
    last = done == recipe.train.epochs or (patience is not None and done - best >= patience)
    go_on = not last
    if team.rank == 0:
        go_on = report(history[-1], last) and not last
        prune(recipe.folder, {best, done})
    return team.agree(go_on)


def best_epoch(history: list[Metrics], metric: str) -> int:
    """The epoch (1, 2, …) with the best metric."""
    return min(history, key=lambda m: order(m, metric))["epoch"]


def _one_epoch(recipe: Recipe, epoch: int, learner: Learner, splits: Splits, progress: Progress) -> Metrics:
    team = learner.team
    # Random numbers inside the network (dropout) depend on where training stands, not on how it got there.
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, epoch, team.rank]).generate_state(1)[0]))
    head_alone = recipe.train.freeze == "backbone" or epoch < recipe.train.head_epochs
    known = [splits.features("train"), splits.features("val")] if head_alone and not recipe.train.augment.any else []
    train, val = known if len([k for k in known if k is not None]) == 2 else (splits.train, splits.val)
    assert train is not None
    assert val is not None
    learner.enter(head_alone, on_features=train is not splits.train)
    clock = Clock()
    loss, accuracy, rows = train_epoch(recipe, epoch, learner, train, clock, progress)
    seconds = clock.elapsed()
    if not math.isfinite(loss):
        raise TrialError(recipe.folder.parent.name, f"diverged: the training loss is {loss} in epoch {epoch + 1}")
    learner.share_buffers()
    prepare = Preparer(recipe.preparation, team.device)
    judged = prefixed(evaluate(learner.part(learner.judged), val, team, prepare, len(recipe.class_rows)), "val")
    if not math.isfinite(judged["val_loss"]):
        raise TrialError(recipe.folder.parent.name,
                         f"diverged: the validation loss is {judged['val_loss']} in epoch {epoch + 1}")
    return {"epoch": epoch + 1, "train_loss": loss, "train_accuracy": accuracy, **judged, "seconds": clock.elapsed(),
            "train_seconds": seconds, "data_wait_seconds": clock.waited, "images": rows}


def train_epoch(recipe: Recipe, epoch: int, learner: Learner, train: Reader, clock: Clock,
                progress: Progress) -> tuple[float, float, int]:
    """(mean loss, accuracy, images) over the whole team."""
    spec, team = recipe.train, learner.team
    prepare = Preparer(recipe.preparation, team.device, spec.channels_last)
    steps = math.ceil(len(train) / spec.batch_size)
    totals = torch.zeros(3, dtype=torch.float64, device=team.device)
    told = clock.started
    batches = train.epoch(recipe.seed, epoch, spec.batch_size, team.rank, team.workers)
    for batch in clock.timed(staged(train, batches, team.device)):
        inputs = batch.rows.images
        targets = labels = batch.rows.labels
        if not learner.on_features:
            inputs, targets = _changed(recipe, epoch, batch, inputs, labels, prepare)
        rate = learning_rate(epoch * steps + batch.number, spec.optimizer.lr, spec.schedule, steps, spec.epochs)
        loss, outputs = learner.step(inputs, targets, batch.size, rate)
        totals[0] += loss
        totals[1] += (outputs.argmax(1) == labels).sum()
        totals[2] += len(labels)
        if team.rank == 0 and time.perf_counter() - told > PROGRESS_SECONDS:
            told = time.perf_counter()
            progress(batch.number + 1, steps)
    loss_sum, correct, rows = team.sums(totals).tolist()
    return loss_sum / rows, correct / rows, int(rows)


def _changed(recipe: Recipe, epoch: int, batch: Batch, images: torch.Tensor, labels: torch.Tensor,
             prepare: Preparer) -> tuple[torch.Tensor, torch.Tensor]:
    """(network inputs, targets) of a batch, changed at random as the recipe says."""
    spec, key = recipe.train.augment, (recipe.seed, epoch, batch.number)
    inputs = prepare(augment(images, spec, key, batch.first, batch.size))
    inputs = erase(inputs, spec.erasing, key, batch.first, batch.size)
    return mix(inputs, labels, spec, len(recipe.class_rows), key)


@torch.inference_mode()
def evaluate(net: nn.Module, split: Reader, team: Team, prepare: Preparer, classes: int) -> dict[str, float]:
    """Metrics of a split, in float32 as the delivered model will be used; on features where `net` is a head alone."""
    net.eval()
    sums = Sums(classes, team.device)
    batch = most_at_once(math.isqrt(split.pixels), prepare.how.image_size or 0)
    for rows in staged(split, split.in_order(batch, team.rank, team.workers), team.device):
        sums.add(net(prepare(rows.images) if rows.images.dtype == torch.uint8 else rows.images), rows.labels)
    team.sums(sums.values)
    return sums.metrics()
