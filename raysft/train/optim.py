"""Optimizers, the rate of each tensor, and learning rates that are a function of the step alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from raysft.job.recipe import Optimizer, Schedule


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of torch.optim that a job calls by its name in small letters."""
    return next(
        kind
        for known, kind in vars(torch.optim).items()
        if known.lower() == name
        and inspect.isclass(kind)
        and issubclass(kind, torch.optim.Optimizer)
    )


def build_optimizer(
    spec: Optimizer, groups: Iterable[Mapping[str, Any]], in_stages: bool = False
) -> torch.optim.Optimizer:
    """The torch optimizer of `spec` for the groups of `parameter_groups`.

    Its update runs as one fused kernel where torch has one, unless the job asks for another: fewer
    passes over the weights, which counts on CPUs as on GPUs. Torch's fused SGD fails where some
    tensors get their first gradient later than others, as they do `in_stages`.
    """
    kind, arguments = optimizer_class(spec.name), spec.arguments
    has_fused = "fused" in inspect.signature(kind).parameters and not (
        in_stages and spec.name == "sgd"
    )
    if has_fused and not arguments.get("foreach"):
        arguments = {"fused": True} | arguments
    make: Callable[..., torch.optim.Optimizer] = kind  # each class has arguments of its own
    return make([dict(group) for group in groups], **arguments)


def parameter_groups(net: nn.Module, spec: Optimizer, layer_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters of `net` by their share of the learning rate and whether they decay.

    Layer-wise decay after Clark et al. 2020 (arXiv 2003.10555): the last layer learns at the full
    rate, each one before it at `layer_decay` of its successor's. Weight decay leaves out biases and
    scales of normalisation (tensors of one dimension), unless the job says otherwise.
    """
    depth = layer_depths(net) if layer_decay < 1 else {}
    deepest = max(depth.values(), default=0)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            share = layer_decay ** (deepest - depth.get(name, deepest))
            decays = parameter.ndim > 1 or spec.decay_norms_and_biases
            groups.setdefault((share, decays or not spec.weight_decay), []).append(parameter)
    return [
        {"params": parameters, "share": share} | ({} if decays else {"weight_decay": 0.0})
        for (share, decays), parameters in groups.items()
    ]


def layer_depths(net: nn.Module) -> dict[str, int]:
    """Number of the layer of every parameter by its name, from the input on.

    A layer is an element of the outermost sequence that a parameter lies in, else a child of the
    network.
    """
    layers: dict[str, int] = {}
    return {
        name: layers.setdefault(_layer(net, name.split(".")[:-1]), len(layers))
        for name, _ in net.named_parameters()
    }


def _layer(net: nn.Module, path: list[str]) -> str:
    """The name of the layer that holds the module at `path`."""
    module = net
    for i, part in enumerate(path):
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            return ".".join(path[: i + 1])
        module = module.get_submodule(part)
    return ".".join(path[:1])


def learning_rate(
    step: int, peak: float, schedule: Schedule, steps_per_epoch: int, epochs: int
) -> float:
    """The learning rate of step 0, 1, …: a linear rise over the warm-up, then what the schedule
    says.

    cosine after Loshchilov and Hutter 2017 (arXiv 1608.03983), without restarts; one_cycle after
    Smith and Topin 2018 (arXiv 1708.07120) with the shape and bounds of torch's OneCycleLR: from
    1/25 of the peak up, then down to 1/250,000 of it, both along half a cosine.
    """
    total = epochs * steps_per_epoch
    if schedule.name == "one_cycle":
        return _one_cycle(step, peak, schedule.rise, total)
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule.name == "cosine":
        return _between(peak, peak * schedule.floor, progress)
    if schedule.name == "linear":
        return peak + (peak * schedule.floor - peak) * progress
    if schedule.name == "step":
        drops = int((step - warmup) / (schedule.step_epochs * steps_per_epoch) + 1e-9)
        return peak * schedule.step_factor**drops
    return peak


def _one_cycle(step: int, peak: float, rise: float, total: int) -> float:
    top = max(1e-9, rise * total - 1)
    if step <= top:
        return _between(peak / 25, peak, step / top)
    return _between(peak, peak / 25 / 1e4, (step - top) / max(1e-9, total - 1 - top))


def _between(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` for the next step, each group its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
