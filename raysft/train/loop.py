"""One trial, epoch by epoch: train, validate, write a checkpoint, report, go on while the search says so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from raysft.data.augment import augment, normalise, scale_and_shift
from raysft.data.ingest import Batch, Reader
from raysft.errors import TrialError
from raysft.job.spec import Train, order
from raysft.storage import Place
from raysft.train.checkpoint import load_checkpoint, save_checkpoint
from raysft.train.checkpoint_paths import last_checkpoint, prune
from raysft.train.optim import build_optimizer, learning_rate, set_learning_rate
from raysft.train.team import Team

EVAL_BATCH, EVAL_PIXELS = 256, 256 * 224 * 224  # at most so many images, and pixels, at once
PROGRESS_SECONDS = 1.0

T = TypeVar("T")
Metrics = dict[str, Any]
Report = Callable[[Metrics, bool], bool]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Recipe:
    """What one trial trains with: `folder` takes its checkpoints, `metric` picks the one to keep."""

    train: Train
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metric: str
    folder: Place


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


def run_trial(recipe: Recipe, net: nn.Module, train: Reader, val: Reader, team: Team, report: Report,
              progress: Progress) -> None:
    """Train `net` from where its last checkpoint left off, if there is one, to the last epoch or until told to stop.

    `report(metrics, last)` is called on rank 0 after every epoch and says whether to go on. Raises TrialError when the
    loss is not finite any more.
    """
    net = team.place(net)
    optimizer = build_optimizer(recipe.train.optimizer, net.parameters())
    start = 0
    history: list[Metrics] = []
    if (checkpoint := last_checkpoint(recipe.folder)) is not None:
        start, history = load_checkpoint(checkpoint, net, optimizer)
        if not _go_on(history, recipe, team, report):  # whoever wrote it may have died before it could report it
            return
    parallel = team.parallel(net)
    for epoch in range(start, recipe.train.epochs):
        metrics = _one_epoch(recipe, epoch, net, parallel, optimizer, train, val, team, progress)
        history.append(metrics)
        if team.rank == 0:
            save_checkpoint(recipe.folder, epoch + 1, net, optimizer, history)
        if not _go_on(history, recipe, team, report):
            return


def _go_on(history: list[Metrics], recipe: Recipe, team: Team, report: Report) -> bool:
    """Report the last epoch of `history`, drop the checkpoints that it made useless; whether to train another."""
    done = history[-1]["epoch"]
    last = done == recipe.train.epochs
    go_on = not last
    if team.rank == 0:
        go_on = report(history[-1], last) and not last
        prune(recipe.folder, {best_epoch(history, recipe.metric), done})
    return team.agree(go_on)


def best_epoch(history: list[Metrics], metric: str) -> int:
    """The epoch (1, 2, …) with the best metric."""
    return min(history, key=lambda m: order(m, metric))["epoch"]


def _one_epoch(recipe: Recipe, epoch: int, net: nn.Module, parallel: nn.Module, optimizer: torch.optim.Optimizer,
               train: Reader, val: Reader, team: Team, progress: Progress) -> Metrics:
    # Random numbers inside the network (dropout) depend on where training stands, not on how it got there.
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, epoch, team.rank]).generate_state(1)[0]))
    clock = Clock()
    loss, correct, rows = _train_epoch(recipe, epoch, parallel, optimizer, train, team, clock, progress)
    seconds = clock.elapsed()
    if not math.isfinite(loss):
        raise TrialError(recipe.folder.parent.name, f"diverged: the training loss is {loss} in epoch {epoch + 1}")
    team.share_buffers(net)
    val_loss, val_accuracy = evaluate(net, val, team, recipe.mean, recipe.std)
    if not math.isfinite(val_loss):
        raise TrialError(recipe.folder.parent.name, f"diverged: the validation loss is {val_loss} in epoch {epoch + 1}")
    return {"epoch": epoch + 1, "train_loss": loss, "train_accuracy": correct, "val_loss": val_loss,
            "val_accuracy": val_accuracy, "seconds": clock.elapsed(), "train_seconds": seconds,
            "data_wait_seconds": clock.waited, "images": rows}


def _train_epoch(recipe: Recipe, epoch: int, net: nn.Module, optimizer: torch.optim.Optimizer, train: Reader,
                 team: Team, clock: Clock, progress: Progress) -> tuple[float, float, int]:
    """(mean loss, accuracy, images) over the whole team."""
    recipe_train, scale_shift = recipe.train, scale_and_shift(recipe.mean, recipe.std, team.device)
    steps = math.ceil(len(train) / recipe_train.batch_size)
    totals = torch.zeros(3, dtype=torch.float64, device=team.device)
    net.train()
    told = clock.started
    batches = train.epoch(recipe.seed, epoch, recipe_train.batch_size, team.rank, team.workers)
    for batch in clock.timed(batches):
        images, labels = _to_device(batch, team.device)
        changed = augment(images, recipe_train.augment, (recipe.seed, epoch, batch.number), batch.first, batch.size)
        rate = learning_rate(epoch * steps + batch.number, recipe_train.optimizer.lr, recipe_train.schedule, steps,
                             recipe_train.epochs)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        outputs = net(normalise(changed, *scale_shift))
        loss = F.cross_entropy(outputs, labels, reduction="sum")
        # The team averages gradients; this makes the average the gradient of the mean loss of the global batch,
        # also where the shares of the workers differ by a row.
        (loss * (team.workers / batch.size)).backward()
        optimizer.step()
        _count(totals, loss, outputs, labels)
        if team.rank == 0 and time.perf_counter() - told > PROGRESS_SECONDS:
            told = time.perf_counter()
            progress(batch.number + 1, steps)
    loss_sum, correct, rows = team.sums(totals).tolist()
    return loss_sum / rows, correct / rows, int(rows)


@torch.inference_mode()
def evaluate(net: nn.Module, split: Reader, team: Team, mean: tuple[float, ...],
             std: tuple[float, ...]) -> tuple[float, float]:
    """(mean loss, accuracy) of a split: sums over all workers, divided once."""
    net.eval()
    scale_shift = scale_and_shift(mean, std, team.device)
    totals = torch.zeros(3, dtype=torch.float64, device=team.device)
    batch = max(1, min(EVAL_BATCH, EVAL_PIXELS // split.pixels))
    for rows in split.in_order(batch, team.rank, team.workers):
        images = torch.from_numpy(rows.images).to(team.device)
        labels = torch.from_numpy(rows.labels).to(team.device)
        outputs = net(normalise(images, *scale_shift))
        _count(totals, F.cross_entropy(outputs, labels, reduction="sum"), outputs, labels)
    loss, correct, count = team.sums(totals).tolist()
    return loss / count, correct / count


def _count(totals: torch.Tensor, loss: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> None:
    totals[0] += loss.detach()
    totals[1] += (outputs.detach().argmax(1) == labels).sum()
    totals[2] += len(labels)


def _to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(batch.rows.images)
    labels = torch.from_numpy(batch.rows.labels)
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
