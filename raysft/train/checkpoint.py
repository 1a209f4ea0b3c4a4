"""Checkpoints of a trial: one folder each, written whole or not at all, read back without
unpickling.

    checkpoints/epoch-0003/               after three epochs; epoch-0003-step-000200: and 200 steps
    of the fourth
        model.safetensors                 what would be delivered: with `ema` the moving average
        raw.safetensors                   with `ema` the weights in training optimizer.safetensors
        not after the last epoch state.json                        where training stood,
        hyperparameters, counters, checksums of the others

Learning rate, order, augmentation and the random numbers of a step are functions of (seed, epoch,
step), so the two stand for all of them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raysft.errors import DataError
from raysft.job.metrics import sort_key
from raysft.records.documents import EpochMetrics
from raysft.storage import (
    StoragePath,
    local_copy,
    put_folder,
    read_json,
    scratch_beside,
    sha256,
    write_json,
)
from raysft.train.checkpoint_paths import STATE, checkpoint_path, newest_first, prune
from raysft.train.learner import Learner

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Position:
    """How far a trial is: whole epochs, steps of the next one and what these came to, the metrics
    of whole epochs.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    """Steps of the epoch, which say how its batches were cut; 0 between two epochs, and as older
    raysft wrote it.
    """
    totals: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Sum of the losses, right answers and images of the steps, over the whole team."""
    seconds: float = 0.0
    """Of the steps, and of `waited` those spent waiting for data."""
    waited: float = 0.0
    history: list[EpochMetrics] = field(default_factory=list)


def save_checkpoint(
    folder: StoragePath, standing: Position, learner: Learner, final: bool = False
) -> StoragePath:
    """Write where training stands below `folder`; returns its own folder.

    A `final` one is only ever delivered or told of again: it has no state of the optimizer, its
    larger half.
    """
    target = checkpoint_path(folder, standing.epoch, standing.step)
    stored = learner.optimizer.state_dict()
    if final:
        stored["state"] = {}
    values = {
        f"{index}.{name}": value
        for index, values in stored["state"].items()
        for name, value in values.items()
    }
    tensors = {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}
    state = {
        "standing": asdict(standing),
        "param_groups": stored["param_groups"],
        "scalars": {key: value for key, value in values.items() if key not in tensors},
        **learner.counters(),
    }
    with scratch_beside(target) as scratch:
        for name, content in (
            learner.tensors() | ({} if final else {"optimizer": tensors})
        ).items():
            save_file(
                {k: v.detach().contiguous() for k, v in content.items()},
                scratch / f"{name}.safetensors",
            )
        files = {file.name: sha256(file) for file in sorted(scratch.iterdir())}
        write_json(scratch / STATE, {**state, "files": files})
        put_folder(scratch, target, last=STATE)
    return target


def newest_valid(
    folder: StoragePath, fits: Callable[[Position], bool] = lambda standing: True
) -> Position | None:
    """Where the newest checkpoint below `folder` stands that is what was written and fits; others
    are passed over.
    """
    for path in newest_first(folder):
        try:
            state = read_state(path)
            for name in state["files"]:
                _check(path, name, state)
        except DataError as error:
            logging.getLogger(__name__).warning("%s; the checkpoint before it is taken", error)
        else:
            standing = Position(**state["standing"])
            if fits(standing):
                return standing
    return None


def copy_checkpoints(source: StoragePath, folder: StoragePath, epoch: int, metric: str) -> Position:
    """Have the checkpoint of an epoch of another trial, and its best one until there, instead of
    those below `folder`; returns where training stood.

    Raises DataError where it is damaged.
    """
    stored = read_state(checkpoint_path(source, epoch))
    standing = Position(**stored["standing"])
    kept = []
    for number in {best_epoch(standing.history, metric), epoch}:
        target = checkpoint_path(folder, number)
        _copy_checkpoint(checkpoint_path(source, number), target)
        kept.append(target)
    prune(folder, kept)
    return standing


def _copy_checkpoint(source: StoragePath, target: StoragePath) -> None:
    stored = read_state(source)
    with scratch_beside(target) as scratch:
        for name in [*stored["files"], STATE]:
            with local_copy(source / name) as copy:
                shutil.copyfile(copy, scratch / name)
        put_folder(scratch, target, last=STATE)


def best_epoch(history: list[EpochMetrics], metric: str) -> int:
    """The epoch (1, 2, …) with the best metric."""
    best = min(history, key=lambda metrics: sort_key(metrics, metric))
    return best["epoch"]


def load_checkpoint(path: StoragePath, learner: Learner) -> Position:
    """Restore network and optimizer; returns where training stood. Raises DataError where it is
    damaged.
    """
    stored = read_state(path)
    names = [name.removesuffix(".safetensors") for name in stored["files"]]
    tensors = {name: read_tensors(path, f"{name}.safetensors", stored) for name in names}
    learner.restore(
        {name: content for name, content in tensors.items() if name != "optimizer"}, stored
    )
    if "optimizer" not in tensors:  # the trial has trained to its end
        return Position(**stored["standing"])
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors["optimizer"], **stored["scalars"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    own = [_options(group) for group in learner.optimizer.param_groups]
    learner.optimizer.load_state_dict({"state": state, "param_groups": stored["param_groups"]})
    # The values are those of this trial's configuration: the checkpoint may be another trial's.
    for group, options in zip(learner.optimizer.param_groups, own, strict=True):
        group.update(options)
    return Position(**stored["standing"])


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def read_state(path: StoragePath) -> dict[str, Any]:
    """The state.json of a checkpoint; raises DataError."""
    try:
        return read_json(path / STATE)
    except (OSError, ValueError) as error:
        raise DataError(str(path / STATE), f"cannot be read ({error})") from None


def read_tensors(path: StoragePath, name: str, state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of one file of a checkpoint; raises DataError where it is not what was
    written.
    """
    try:
        with local_copy(path / name) as copy:
            _compare(path / name, sha256(copy), state["files"].get(name))
            return load_file(copy)
    except OSError as error:
        raise DataError(str(path / name), f"cannot be read ({error})") from None


def _check(path: StoragePath, name: str, state: dict[str, Any]) -> None:
    try:
        _compare(path / name, sha256(path / name), state["files"][name])
    except OSError as error:
        raise DataError(str(path / name), f"cannot be read ({error})") from None


def _compare(file: StoragePath, found: str, expected: str | None) -> None:
    if found != expected:
        raise DataError(
            str(file),
            "does not have the checksum of its checkpoint: it was changed or is incomplete",
        )
