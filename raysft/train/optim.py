"""Optimizers, and learning rates that are a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from raysft.job.spec import Optimizer, Schedule


def build_optimizer(spec: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer of `spec`."""
    common: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.name == "sgd":
        return torch.optim.SGD(parameters, momentum=spec.momentum or 0.0, **common)
    if spec.name == "rmsprop":
        return torch.optim.RMSprop(parameters, momentum=spec.momentum or 0.0, **common)
    if spec.name == "adam":
        return torch.optim.Adam(parameters, **common)
    return torch.optim.AdamW(parameters, **common)


def learning_rate(step: int, peak: float, schedule: Schedule, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of step 0, 1, …: a linear rise over the warm-up, then constant or cosine down to zero.

    Cosine after Loshchilov and Hutter 2017 (arXiv 1608.03983), without restarts.
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.name == "constant":
        return peak
    progress = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
