"""Checkpoints of a trial: one folder an epoch, written whole or not at all, taken up again without unpickling.

    checkpoints/epoch-0003/   model.safetensors       what would be delivered: with `ema` the moving average
                              raw.safetensors         with `ema` the weights in training
                              optimizer.safetensors
                              state.json              epoch, history, hyperparameters, counters

Learning rate, order, augmentation and the random numbers of an epoch are functions of (seed, epoch, step), so the
epoch stands for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raysft.storage import Place, local_copy, put_folder, scratch_beside
from raysft.train.checkpoint_paths import STATE, checkpoint_path
from raysft.train.learner import Learner


def save_checkpoint(folder: Place, epoch: int, learner: Learner, history: Sequence[dict[str, Any]]) -> Place:
    """Write the state after `epoch` epochs below `folder`; returns its own folder."""
    target = checkpoint_path(folder, epoch)
    stored = learner.optimizer.state_dict()
    values = {f"{index}.{name}": value for index, values in stored["state"].items() for name, value in values.items()}
    tensors = {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}
    state = {"epoch": epoch, "history": list(history), "param_groups": stored["param_groups"],
             "scalars": {key: value for key, value in values.items() if key not in tensors}, **learner.counters()}
    with scratch_beside(target) as scratch:
        for name, content in {**learner.tensors(), "optimizer": tensors}.items():
            save_file({k: v.detach().contiguous() for k, v in content.items()}, scratch / f"{name}.safetensors")
        (scratch / STATE).write_text(json.dumps(state))
        put_folder(scratch, target, last=STATE)
    return target


def load_checkpoint(path: Place, learner: Learner) -> tuple[int, list[dict]]:
    """Restore network and optimizer; returns (epochs done, their metrics)."""
    stored = json.loads((path / STATE).read_text())
    names = [name for name in ("model", "raw") if (path / f"{name}.safetensors").is_file()]
    learner.restore({name: read_tensors(path / f"{name}.safetensors") for name in names}, stored)
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**read_tensors(path / "optimizer.safetensors"), **stored["scalars"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    learner.optimizer.load_state_dict({"state": state, "param_groups": stored["param_groups"]})
    return stored["epoch"], stored["history"]


def read_tensors(file: Place) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, wherever it lies."""
    with local_copy(file) as copy:
        return load_file(copy)
