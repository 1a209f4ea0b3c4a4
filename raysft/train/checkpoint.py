"""Checkpoints of a trial: one folder an epoch, written whole or not at all, taken up again without unpickling.

    checkpoints/epoch-0003/   model.safetensors   optimizer.safetensors   state.json (epoch, history, hyperparameters)

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


def save_checkpoint(folder: Place, epoch: int, net: torch.nn.Module, optimizer: torch.optim.Optimizer,
                    history: Sequence[dict[str, Any]]) -> Place:
    """Write the state after `epoch` epochs below `folder`; returns its own folder."""
    target = checkpoint_path(folder, epoch)
    stored = optimizer.state_dict()
    tensors = {f"{index}.{name}": value.detach().contiguous()
               for index, values in stored["state"].items() for name, value in values.items()
               if isinstance(value, torch.Tensor)}
    state = {"epoch": epoch, "history": list(history), "param_groups": stored["param_groups"]}
    with scratch_beside(target) as scratch:
        save_file({k: v.detach().contiguous() for k, v in net.state_dict().items()}, scratch / "model.safetensors")
        save_file(tensors, scratch / "optimizer.safetensors")
        (scratch / STATE).write_text(json.dumps(state))
        put_folder(scratch, target, last=STATE)
    return target


def load_checkpoint(path: Place, net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Restore network and optimizer; returns (epochs done, their metrics)."""
    net.load_state_dict(read_tensors(path / "model.safetensors"))
    stored = json.loads((path / STATE).read_text())
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in read_tensors(path / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": stored["param_groups"]})
    return stored["epoch"], stored["history"]


def read_tensors(file: Place) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, wherever it lies."""
    with local_copy(file) as copy:
        return load_file(copy)
