"""One trial, epoch by epoch: train, validate, write a checkpoint, report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from raysft.data.augment import augment, erase, mix
from raysft.data.epochs import Batch, KeptSplit, SplitReader
from raysft.data.pixels import Preparer
from raysft.data.preparation import Preparation
from raysft.data.staging import stage
from raysft.errors import DivergedError
from raysft.job.batches import batch_sizes
from raysft.job.recipe import Train
from raysft.records.documents import EpochMetrics, ValidationMetrics
from raysft.storage import StoragePath
from raysft.train.checkpoint import (
    Position,
    best_epoch,
    copy_checkpoints,
    load_checkpoint,
    newest_valid,
    save_checkpoint,
)
from raysft.train.checkpoint_paths import checkpoint_path, prune
from raysft.train.checkpoint_schedule import CheckpointSchedule, PreemptionCheck
from raysft.train.evaluate import evaluate
from raysft.train.learner import Learner
from raysft.train.metrics import validation_metrics
from raysft.train.normalise import check_batches
from raysft.train.optim import learning_rate
from raysft.train.team import Team

PROGRESS_SECONDS = 1.0

T = TypeVar("T")
# all epochs of the trial so far, whether that was the last; returns whether to train another
Report = Callable[[list[EpochMetrics], bool], bool]
Progress = Callable[[int, int, "Clock"], None]  # step, steps, the time of the epoch so far
Features = Callable[[str], KeptSplit | None]


@dataclass(frozen=True)
class TrialPlan:
    """What a trial trains with: `folder` takes its checkpoints, `metric` picks the best."""

    train: Train
    seed: int
    preparation: Preparation
    class_rows: tuple[int, ...]
    metric: str
    folder: StoragePath
    head: str
    workers: int = 1
    """The most that the job may have: batches are cut for as many, whoever is there."""
    source: tuple[StoragePath, int] | None = None
    """Another trial's checkpoints and the epoch to go on from, instead of its own."""

    def batches(self, rows: int) -> list[int]:
        """Sizes of the batches of an epoch of `rows` images, of which each is a step."""
        return batch_sizes(rows, self.train.batch_size, self.workers)

    def learning_rate(self, epoch: int, step: int, steps: int) -> float:
        """The learning rate of a step of an epoch of `steps`, both from 0 on."""
        train = self.train
        total = epoch * steps + step
        return learning_rate(total, train.optimizer.lr, train.schedule, steps, train.epochs)


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
        """Seconds since the epoch began, those before an interruption included."""
        return time.perf_counter() - self.started


@dataclass(frozen=True)
class Splits:
    """The images of a trial, and where they can be had as features of its frozen backbone."""

    train: SplitReader
    val: SplitReader
    features: Features = lambda split: None


@dataclass(frozen=True)
class Hooks:
    """Whom a trial tells how far it is, and asks whether to go on."""

    report: Report
    """After every epoch, on rank 0."""
    progress: Progress
    """Once a second inside an epoch, on every rank."""
    is_preempted: PreemptionCheck = lambda: False
    pinned: Callable[[], Sequence[int]] = lambda: ()
    """The epochs whose checkpoints other trials may start from; asked on rank 0."""


def run_trial(plan: TrialPlan, net: nn.Module, splits: Splits, team: Team, hooks: Hooks) -> None:
    """Train `net` from its last checkpoint, if there is one, until its last epoch or told to stop.

    Raises DivergedError when the loss is not finite any more.
    """
    side = plan.preparation.image_size
    size = (side, side) if side else splits.train.size
    check_batches(net, plan.head, plan.train, len(splits.train), plan.workers, size)
    learner = Learner(net, plan.head, plan.train, plan.class_rows, team)
    position = _resume(plan, learner, len(splits.train))
    # Whoever wrote the checkpoint may have died before the last epoch could be reported.
    if position.history and not _report_epoch(position, plan, team, hooks):
        return
    for epoch in range(position.epoch, plan.train.epochs):
        metrics = _run_epoch(plan, position, learner, splits, hooks)
        position = Position(epoch + 1, history=[*position.history, metrics])
        if team.rank == 0:
            is_final = position.epoch == plan.train.epochs
            save_checkpoint(plan.folder, position, learner, is_final)
        # Reported after the checkpoint is written: a trial that the search pauses now is resumed
        # by another team, from this very file.
        if not _report_epoch(position, plan, team, hooks):
            return


def _resume(plan: TrialPlan, learner: Learner, rows: int) -> Position:
    """The position of the newest checkpoint that fits, with the learner as it was then."""
    team = learner.team
    steps = len(plan.batches(rows))

    def fits(position: Position) -> bool:
        # Inside an epoch whose batches were cut for other workers than the run has now, rows would
        # be trained on twice, or not at all.
        if not position.step:
            return True
        # 0 is of a raysft that cut all batches alike
        cut_into = position.steps or math.ceil(rows / plan.train.batch_size)
        return cut_into == steps

    if plan.source is not None and team.rank == 0:
        folder, copied = plan.source
        copy_checkpoints(folder, plan.folder, copied, plan.metric)
    found = newest_valid(plan.folder, fits) if team.rank == 0 else None
    # All resume from the one that rank 0 has found: on an object store others may not see it yet.
    epoch, step = team.broadcast([found.epoch, found.step] if found else [0, 0])
    if not epoch and not step:
        return Position()
    return load_checkpoint(checkpoint_path(plan.folder, epoch, step), learner)


def _report_epoch(position: Position, plan: TrialPlan, team: Team, hooks: Hooks) -> bool:
    """Report the last whole epoch, drop checkpoints it made useless; whether to train another."""
    done = position.epoch
    best = best_epoch(position.history, plan.metric)
    patience = plan.train.patience
    lost_patience = patience is not None and done - best >= patience
    is_last = done == plan.train.epochs or lost_patience
    go_on = not is_last
    if team.rank == 0:
        go_on = hooks.report(position.history, is_last) and not is_last
        resumed_path = checkpoint_path(plan.folder, done, position.step)
        prune(plan.folder, [resumed_path, *_kept(position, plan, hooks)])
    return team.agree(go_on)


def _kept(position: Position, plan: TrialPlan, hooks: Hooks) -> list[StoragePath]:
    """The checkpoints of whole epochs that are still of use."""
    history = position.history
    epochs = {position.epoch}
    if history:
        epochs.add(best_epoch(history, plan.metric))
    for pinned in hooks.pinned():
        # Who starts from it may be delivered with the best epoch until there.
        until = [metrics for metrics in history if metrics["epoch"] <= pinned]
        epochs.update({pinned, best_epoch(until, plan.metric)})
    return [checkpoint_path(plan.folder, epoch) for epoch in epochs]


def _run_epoch(
    plan: TrialPlan, position: Position, learner: Learner, splits: Splits, hooks: Hooks
) -> EpochMetrics:
    """Train and validate an epoch."""
    team = learner.team
    epoch = position.epoch
    head_alone = plan.train.freeze == "backbone" or epoch < plan.train.head_epochs
    train, val = _readers(plan, splits, head_alone)
    learner.enter(head_alone, on_features=train is not splits.train)
    clock = Clock(time.perf_counter() - position.seconds, position.waited)
    loss, accuracy, rows = train_epoch(plan, position, learner, train, clock, hooks)
    train_seconds = clock.elapsed()
    _check_finite(plan, "training", loss, epoch)
    learner.share_buffers()
    validation = _validate(plan, learner, val)
    _check_finite(plan, "validation", validation["val_loss"], epoch)
    steps = len(plan.batches(len(train)))
    return {
        "epoch": epoch + 1,
        "train_loss": loss,
        "train_accuracy": accuracy,
        **validation,
        "learning_rate": plan.learning_rate(epoch, steps - 1, steps),
        "seconds": clock.elapsed(),
        "train_seconds": train_seconds,
        "data_wait_seconds": clock.waited,
        "images": rows,
        "workers": team.workers,
    }


def _readers(plan: TrialPlan, splits: Splits, head_alone: bool) -> tuple[SplitReader, SplitReader]:
    """What an epoch trains on and validates with: features where these are the same every epoch."""
    # Augmented images differ from epoch to epoch, and so would their features.
    if head_alone and not plan.train.augment.is_random:
        train, val = splits.features("train"), splits.features("val")
        if train is not None and val is not None:
            return train, val
    return splits.train, splits.val


def _validate(plan: TrialPlan, learner: Learner, val: SplitReader) -> ValidationMetrics:
    net = learner.stage_part(learner.evaluated_net)
    prepare = Preparer(plan.preparation, learner.team.device)
    return validation_metrics(evaluate(net, val, learner.team, prepare, len(plan.class_rows)))


def _check_finite(plan: TrialPlan, kind: str, loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        trial = plan.folder.parent.name
        raise DivergedError(trial, f"the {kind} loss is {loss} in epoch {epoch + 1}")


def train_epoch(
    plan: TrialPlan,
    position: Position,
    learner: Learner,
    train: SplitReader,
    clock: Clock,
    hooks: Hooks,
) -> tuple[float, float, int]:
    """Train to the end of the epoch; (mean loss, accuracy, images) over the whole team.

    Writes checkpoints on the way as often as the recipe says.
    """
    team = learner.team
    epoch = position.epoch
    prepare = Preparer(plan.preparation, team.device, plan.train.channels_last)
    sizes = plan.batches(len(train))
    steps = len(sizes)
    # Sums stay on the device: to read a loss every step would wait for the device every step. What
    # was summed before an interruption counts once, on rank 0.
    before = position.totals if team.rank == 0 else (0.0, 0.0, 0.0)
    totals = torch.tensor(before, dtype=torch.float64, device=team.device)
    last_progress = time.perf_counter()
    schedule = CheckpointSchedule(plan.train, team, hooks.is_preempted)
    batches = train.epoch(plan.seed, epoch, sizes, team.rank, team.workers, position.step)
    for batch in clock.timed(stage(train, batches, team.device)):
        inputs, targets = _inputs(plan, epoch, batch, prepare, learner.on_features)
        _seed_step(plan.seed, epoch, batch.number, team.rank)
        rate = plan.learning_rate(epoch, batch.number, steps)
        loss, outputs = learner.step(inputs, targets, batch.size, rate)
        labels = batch.rows.labels
        totals[0] += loss
        totals[1] += (outputs.argmax(1) == labels).sum()
        totals[2] += len(labels)
        done = batch.number + 1
        if time.perf_counter() - last_progress > PROGRESS_SECONDS:
            last_progress = time.perf_counter()
            hooks.progress(done, steps, clock)
        if done < steps and schedule.is_due(done):
            inside = replace(position, step=done, steps=steps)
            _write_checkpoint(plan, inside, totals, clock, learner, hooks)
    loss_sum, correct, rows = team.sum(totals).tolist()
    return loss_sum / rows, correct / rows, int(rows)


def _seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed the random numbers inside the network (dropout) of one step.

    They depend on where training stands, not on how it got there: a resumed trial trains as one
    that was never interrupted.
    """
    sequence = np.random.SeedSequence([seed, epoch, step, rank])
    torch.manual_seed(int(sequence.generate_state(1)[0]))


def _write_checkpoint(
    plan: TrialPlan,
    position: Position,
    totals: torch.Tensor,
    clock: Clock,
    learner: Learner,
    hooks: Hooks,
) -> None:
    """Write a checkpoint inside an epoch in place of the one before."""
    # a copy: the sum over the team is made in place, and each goes on with its own
    loss, correct, rows = learner.team.sum(totals.clone()).tolist()
    if learner.team.rank:
        return
    position = replace(
        position, totals=(loss, correct, rows), seconds=clock.elapsed(), waited=clock.waited
    )
    written = save_checkpoint(plan.folder, position, learner)
    prune(plan.folder, [written, *_kept(position, plan, hooks)])


def _inputs(
    plan: TrialPlan, epoch: int, batch: Batch, prepare: Preparer, on_features: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(network inputs, targets) of a batch, changed at random as the recipe says."""
    images, labels = batch.rows.images, batch.rows.labels
    if on_features:
        return images, labels
    spec = plan.train.augment
    # The key and the numbers of the rows in the global batch decide, so that the number of workers
    # does not change what becomes of an image.
    key = (plan.seed, epoch, batch.number)
    inputs = prepare(augment(images, spec, key, batch.first, batch.size))
    inputs = erase(inputs, spec.erasing, key, batch.first, batch.size)
    return mix(inputs, labels, spec, len(plan.class_rows), key)
