"""One trial, epoch by epoch: train, validate, write a checkpoint, report, go on while the search
says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from raysft.data.augment import augment, erase, mix
from raysft.data.epochs import Batch, KeptSplit, SplitReader
from raysft.data.ingest import Rows
from raysft.data.pixels import Preparer, scoring_batch_size
from raysft.data.preparation import Preparation
from raysft.data.staging import stage
from raysft.errors import Diverged
from raysft.job.batches import batch_sizes
from raysft.job.metrics import sort_key
from raysft.job.recipe import Train
from raysft.records.documents import EpochMetrics
from raysft.storage import StoragePath
from raysft.train.checkpoint import Standing, load_checkpoint, newest_sound, save_checkpoint
from raysft.train.checkpoint_paths import checkpoint_path, prune
from raysft.train.learner import Learner
from raysft.train.metrics import SplitMetrics, Sums, validation_metrics
from raysft.train.normalise import check_batches
from raysft.train.optim import learning_rate
from raysft.train.team import Team

PROGRESS_SECONDS = 1.0
ASK_STEPS = 10  # how often a team asks its rank 0 whether a checkpoint is due
NOTICE_SECONDS = 15.0  # from one checkpoint to the next once a machine is about to go

T = TypeVar("T")
Report = Callable[
    [list[EpochMetrics], bool], bool
]  # all epochs of the trial so far, whether that was the last
Progress = Callable[[int, int, "Clock"], None]  # step, steps, the time of the epoch so far
Features = Callable[[str], KeptSplit | None]
Notice = Callable[[], bool]  # whether a machine of this worker group is about to be taken away


@dataclass(frozen=True)
class Recipe:
    """What one trial trains with: `folder` takes its checkpoints, `metric` picks the one to
    keep.
    """

    train: Train
    seed: int
    preparation: Preparation
    class_rows: tuple[int, ...]
    metric: str
    folder: StoragePath
    head: str
    workers: int = 1
    """The most that the job may have: batches are cut for as many, whoever is there."""

    def batches(self, rows: int) -> list[int]:
        """Sizes of the batches of an epoch of `rows` images, of which each is a step."""
        return batch_sizes(rows, self.train.batch_size, self.workers)


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

    train: SplitReader
    val: SplitReader
    features: Features = lambda split: None


def run_trial(
    recipe: Recipe,
    net: nn.Module,
    splits: Splits,
    team: Team,
    report: Report,
    progress: Progress,
    notice: Notice = lambda: False,
) -> None:
    """Train `net` from where its last checkpoint left off, if there is one, to the last epoch or
    until told to stop.

    `report(history, last)` is called on rank 0 after every epoch and says whether to go on. Raises
    Diverged when the loss is not finite any more.
    """
    side = recipe.preparation.image_size
    check_batches(
        net,
        recipe.head,
        recipe.train,
        len(splits.train),
        recipe.workers,
        (side, side) if side else splits.train.size,
    )
    learner = Learner(net, recipe.head, recipe.train, recipe.class_rows, team)
    standing = _taken_up(recipe, learner, len(splits.train))
    # Whoever wrote the checkpoint may have died before the last epoch could be reported.
    if standing.history and not _go_on(standing, recipe, team, report):
        return
    for epoch in range(standing.epoch, recipe.train.epochs):
        metrics = _one_epoch(recipe, standing, learner, splits, progress, notice)
        standing = Standing(epoch + 1, history=[*standing.history, metrics])
        if team.rank == 0:
            save_checkpoint(
                recipe.folder, standing, learner, final=standing.epoch == recipe.train.epochs
            )
        if not _go_on(standing, recipe, team, report):
            return


def _taken_up(recipe: Recipe, learner: Learner, rows: int) -> Standing:
    """Where the newest checkpoint of the trial stands, with the learner as it was then.

    One inside an epoch whose batches were others, for other workers than the run has now, is passed
    over: rows would be trained on twice, or not at all.
    """
    team, steps = learner.team, len(recipe.batches(rows))

    def fits(standing: Standing) -> bool:
        return (
            not standing.step
            or (standing.steps or math.ceil(rows / recipe.train.batch_size)) == steps
        )

    found = newest_sound(recipe.folder, fits) if team.rank == 0 else None
    epoch, step = team.told([found.epoch, found.step] if found else [0, 0])  # all take up the same
    if not epoch and not step:
        return Standing()
    return load_checkpoint(checkpoint_path(recipe.folder, epoch, step), learner)


def _go_on(standing: Standing, recipe: Recipe, team: Team, report: Report) -> bool:
    """Report the last whole epoch, drop the checkpoints that it made useless; whether to train
    another.
    """
    done, best = standing.epoch, best_epoch(standing.history, recipe.metric)
    patience = recipe.train.patience
    last = done == recipe.train.epochs or (patience is not None and done - best >= patience)
    go_on = not last
    if team.rank == 0:
        go_on = report(standing.history, last) and not last
        prune(
            recipe.folder,
            [
                checkpoint_path(recipe.folder, best),
                checkpoint_path(recipe.folder, done),
                checkpoint_path(recipe.folder, done, standing.step),
            ],
        )
    return team.agree(go_on)


def best_epoch(history: list[EpochMetrics], metric: str) -> int:
    """The epoch (1, 2, …) with the best metric."""
    return min(history, key=lambda m: sort_key(m, metric))["epoch"]


def _one_epoch(
    recipe: Recipe,
    standing: Standing,
    learner: Learner,
    splits: Splits,
    progress: Progress,
    notice: Notice,
) -> EpochMetrics:
    team, epoch = learner.team, standing.epoch
    head_alone = recipe.train.freeze == "backbone" or epoch < recipe.train.head_epochs
    known = (
        [splits.features("train"), splits.features("val")]
        if head_alone and not recipe.train.augment.is_random
        else []
    )
    train, val = (
        known if len([k for k in known if k is not None]) == 2 else (splits.train, splits.val)
    )
    assert train is not None
    assert val is not None
    learner.enter(head_alone, on_features=train is not splits.train)
    clock = Clock(time.perf_counter() - standing.seconds, standing.waited)
    loss, accuracy, rows = train_epoch(recipe, standing, learner, train, clock, progress, notice)
    seconds = clock.elapsed()
    if not math.isfinite(loss):
        raise Diverged(
            recipe.folder.parent.name, f"the training loss is {loss} in epoch {epoch + 1}"
        )
    learner.share_buffers()
    prepare = Preparer(recipe.preparation, team.device)
    judged = validation_metrics(
        evaluate(learner.part(learner.judged), val, team, prepare, len(recipe.class_rows))
    )
    if not math.isfinite(judged["val_loss"]):
        raise Diverged(
            recipe.folder.parent.name,
            f"the validation loss is {judged['val_loss']} in epoch {epoch + 1}",
        )
    return {
        "epoch": epoch + 1,
        "train_loss": loss,
        "train_accuracy": accuracy,
        **judged,
        "learning_rate": _last_rate(recipe, epoch, len(train)),
        "seconds": clock.elapsed(),
        "train_seconds": seconds,
        "data_wait_seconds": clock.waited,
        "images": rows,
        "workers": team.workers,
    }


def _last_rate(recipe: Recipe, epoch: int, rows: int) -> float:
    """The learning rate of the last step of an epoch of `rows` images."""
    spec, steps = recipe.train, len(recipe.batches(rows))
    return learning_rate(
        (epoch + 1) * steps - 1, spec.optimizer.lr, spec.schedule, steps, spec.epochs
    )


def train_epoch(
    recipe: Recipe,
    standing: Standing,
    learner: Learner,
    train: SplitReader,
    clock: Clock,
    progress: Progress,
    notice: Notice = lambda: False,
) -> tuple[float, float, int]:
    """Train from where training stands to the end of its epoch; (mean loss, accuracy, images) over
    the whole team.

    Writes checkpoints on the way as often as the recipe says. `progress(step, steps, clock)` is
    called on every rank.
    """
    spec, team, epoch = recipe.train, learner.team, standing.epoch
    prepare = Preparer(recipe.preparation, team.device, spec.channels_last)
    sizes = recipe.batches(len(train))
    steps = len(sizes)
    before = standing.totals if team.rank == 0 else (0.0, 0.0, 0.0)
    totals = torch.tensor(before, dtype=torch.float64, device=team.device)
    told = time.perf_counter()
    rhythm = Rhythm(spec, team, notice)
    batches = train.epoch(recipe.seed, epoch, sizes, team.rank, team.workers, standing.step)
    for batch in clock.timed(stage(train, batches, team.device)):
        inputs = batch.rows.images
        targets = labels = batch.rows.labels
        if not learner.on_features:
            inputs, targets = _changed(recipe, epoch, batch, inputs, labels, prepare)
        # Random numbers inside the network (dropout) depend on where training stands, not on how it
        # got there.
        place_of_step = np.random.SeedSequence([recipe.seed, epoch, batch.number, team.rank])
        torch.manual_seed(int(place_of_step.generate_state(1)[0]))
        rate = learning_rate(
            epoch * steps + batch.number, spec.optimizer.lr, spec.schedule, steps, spec.epochs
        )
        loss, outputs = learner.step(inputs, targets, batch.size, rate)
        totals[0] += loss
        totals[1] += (outputs.argmax(1) == labels).sum()
        totals[2] += len(labels)
        if time.perf_counter() - told > PROGRESS_SECONDS:
            told = time.perf_counter()
            progress(batch.number + 1, steps, clock)
        if batch.number + 1 < steps and rhythm.due(batch.number + 1):
            _write(
                recipe,
                replace(standing, step=batch.number + 1, steps=steps),
                totals,
                clock,
                learner,
            )
    loss_sum, correct, rows = team.sums(totals).tolist()
    return loss_sum / rows, correct / rows, int(rows)


class Rhythm:
    """When to write a checkpoint inside an epoch: as the recipe says, and often once a machine is
    about to go.
    """

    def __init__(self, train: Train, team: Team, notice: Notice) -> None:
        self.steps, self.seconds = train.checkpoint_steps, train.checkpoint_seconds
        self.team, self.notice = team, notice
        self.last, self.warned = time.monotonic(), False

    def due(self, step: int) -> bool:
        """Whether to write one after `step` steps; the same for the whole team."""
        if self.steps is not None and step % self.steps == 0:
            return True
        if step % (1 if self.team.workers == 1 else ASK_STEPS):
            return False
        due = self.team.agree(self._due_now())
        if due:
            self.last = time.monotonic()
        return due

    def _due_now(self) -> bool:
        """What rank 0 thinks."""
        waited = time.monotonic() - self.last
        if self.notice():
            first, self.warned = not self.warned, True
            return first or waited >= NOTICE_SECONDS
        return self.seconds is not None and waited >= self.seconds


def _write(
    recipe: Recipe, standing: Standing, totals: torch.Tensor, clock: Clock, learner: Learner
) -> None:
    """Write a checkpoint inside an epoch in place of the one before."""
    loss, correct, rows = learner.team.sums(totals.clone()).tolist()
    if learner.team.rank:
        return
    now = replace(
        standing, totals=(loss, correct, rows), seconds=clock.elapsed(), waited=clock.waited
    )
    written = save_checkpoint(recipe.folder, now, learner)
    best = best_epoch(now.history, recipe.metric) if now.history else 0
    prune(
        recipe.folder,
        [written, *(checkpoint_path(recipe.folder, epoch) for epoch in (best, now.epoch))],
    )


def _changed(
    recipe: Recipe,
    epoch: int,
    batch: Batch,
    images: torch.Tensor,
    labels: torch.Tensor,
    prepare: Preparer,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(network inputs, targets) of a batch, changed at random as the recipe says."""
    spec, key = recipe.train.augment, (recipe.seed, epoch, batch.number)
    inputs = prepare(augment(images, spec, key, batch.first, batch.size))
    inputs = erase(inputs, spec.erasing, key, batch.first, batch.size)
    return mix(inputs, labels, spec, len(recipe.class_rows), key)


def evaluate(
    net: nn.Module, split: SplitReader, team: Team, prepare: Preparer, classes: int
) -> SplitMetrics:
    """Metrics of a split, in float32 as the delivered model will be used; on features where `net`
    is a head alone.
    """
    sums = Sums(classes, team.device)
    for rows, outputs in _outputs(net, split, team, prepare):
        sums.add(outputs, rows.labels)
    team.sums(sums.values)
    return sums.metrics()


def score(
    net: nn.Module, split: SplitReader, team: Team, prepare: Preparer, classes: int
) -> tuple[SplitMetrics, torch.Tensor]:
    """Metrics as `evaluate`, and what was made of each image.

    The second are (images, 5) float64 on every member, sorted by the first column: row id, label,
    predicted label, its probability, probability of the label.
    """
    sums = Sums(classes, team.device)
    judged = [torch.empty(0, 5, dtype=torch.float64, device=team.device)]
    for rows, outputs in _outputs(net, split, team, prepare):
        sums.add(outputs, rows.labels)
        shares = F.softmax(outputs.float(), dim=1)
        best, guess = shares.max(1)
        of_label = shares.gather(1, rows.labels[:, None])[:, 0]
        ids = torch.from_numpy(rows.ids).to(team.device)
        judged.append(
            torch.stack([v.double() for v in (ids, rows.labels, guess, best, of_label)], dim=1)
        )
    team.sums(sums.values)
    every = team.rows(torch.cat(judged))
    return sums.metrics(), every[every[:, 0].argsort()].cpu()


@torch.inference_mode()
def _outputs(
    net: nn.Module, split: SplitReader, team: Team, prepare: Preparer
) -> Iterator[tuple[Rows, torch.Tensor]]:
    """This member's share of a split, batch by batch, with the outputs (n, classes) for it."""
    net.eval()
    batch = scoring_batch_size(math.isqrt(split.pixels), prepare.how.image_size or 0)
    for rows in stage(split, split.in_order(batch, team.rank, team.workers), team.device):
        yield rows, net(prepare(rows.images) if rows.images.dtype == torch.uint8 else rows.images)
