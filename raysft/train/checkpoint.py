"""Checkpoints of a trial: one folder an epoch, written whole or not at all, taken up again without unpickling.

    checkpoints/epoch-0003/   model.safetensors   optimizer.safetensors   state.json (epoch, history, hyperparameters)

Learning rate, order, augmentation and the random numbers of an epoch are functions of (seed, epoch, step), so the
epoch stands for all of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raysft.train.checkpoint_paths import STATE, checkpoint_path


def save_checkpoint(folder: Path, epoch: int, net: torch.nn.Module, optimizer: torch.optim.Optimizer,
                    history: Sequence[dict[str, Any]]) -> Path:
    """Write the state after `epoch` epochs below `folder`; returns its own folder."""
    target = checkpoint_path(folder, epoch)
    beside = target.with_name(target.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file({k: v.detach().contiguous() for k, v in net.state_dict().items()}, beside / "model.safetensors")
    stored = optimizer.state_dict()
    tensors = {f"{index}.{name}": value.detach().contiguous()
               for index, values in stored["state"].items() for name, value in values.items()
               if isinstance(value, torch.Tensor)}
    save_file(tensors, beside / "optimizer.safetensors")
    (beside / STATE).write_text(json.dumps({"epoch": epoch, "history": list(history),
                                             "param_groups": stored["param_groups"]}))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(beside, target)
    return target


def load_checkpoint(path: Path, net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Restore network and optimizer; returns (epochs done, their metrics)."""
    net.load_state_dict(load_file(path / "model.safetensors"))
    stored = json.loads((path / STATE).read_text())
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": stored["param_groups"]})
    return stored["epoch"], stored["history"]
