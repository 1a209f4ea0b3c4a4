"""A network in training: one optimisation step after the other, in the stages of its recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from raysft.job.batches import LEAST_ROWS
from raysft.job.recipe import Train
from raysft.train.normalise import normalises_over_batch
from raysft.train.optim import build_optimizer, parameter_groups, set_learning_rate
from raysft.train.precision import compute_type
from raysft.train.team import Team
from raysft.train.trainable import frozen_names, train_only, training_mode
from raysft.train.tryout import takes_one


class Learner:
    """`net`, on the device of `team`, with its optimizer, its moving average and what its precision
    needs.

    In a stage that trains the head alone it can work on features, the inputs of the head, instead
    of images.
    """

    def __init__(
        self, net: nn.Module, head: str, train: Train, class_rows: Sequence[int], team: Team
    ) -> None:
        self.head, self.recipe, self.team = head, train, team
        self.net = team.to_device(net, train.channels_last)
        self.frozen = frozen_names(self.net, head, train.freeze)
        self.backbone = frozen_names(self.net, head, "backbone") if head else frozenset()
        train_only(self.net, self.frozen)
        groups = parameter_groups(self.net, train.optimizer, train.layer_decay)
        self.optimizer = build_optimizer(train.optimizer, groups, in_stages=bool(train.head_epochs))
        self.average = moving_average(self.net, train.ema) if train.ema is not None else None
        self.type = compute_type(train.precision, team.device)
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=self.type is torch.float16)
        self.class_weights = (
            balanced_class_weights(class_rows, team.device)
            if train.class_weights == "balanced"
            else None
        )
        self.on_features = self.head_alone = False
        self._parallel: nn.Module | None = None
        self._over_batch = False
        self._takes_one: bool | None = None
        if train.compile:
            self.net.compile()

    @property
    def evaluated_net(self) -> nn.Module:
        """The network that is validated and delivered: the moving average where there is one."""
        return self.average.module if self.average is not None else self.net

    def stage_part(self, net: nn.Module) -> nn.Module:
        """Of `net` what this stage runs: the head alone where it works on features."""
        return net.get_submodule(self.head) if self.on_features else net

    def enter(self, head_alone: bool, on_features: bool) -> None:
        """Begin a stage, or an epoch of it."""
        if self._parallel is None or (head_alone, on_features) != (
            self.head_alone,
            self.on_features,
        ):
            self.head_alone, self.on_features = head_alone, on_features
            train_only(self.net, self.backbone if head_alone else self.frozen)
            self._parallel = self.team.wrap_parallel(self.stage_part(self.net))
        training_mode(self.net, self.head, head_alone)
        self._over_batch, self._takes_one = normalises_over_batch(self.stage_part(self.net)), None

    def step(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        size: int,
        rate: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on this worker's share of a global batch of `size` rows.

        targets: (n,) int64 or (n, classes) shares. Returns (sum of the losses, outputs (n,
        classes)), detached.
        """
        assert self._parallel is not None
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        number = self._parts(len(inputs), inputs.shape[1:])
        parts = list(zip(inputs.tensor_split(number), targets.tensor_split(number), strict=True))
        found = [
            self._part(part, target, size, last=i == len(parts) - 1)
            for i, (part, target) in enumerate(parts)
        ]
        self._update()
        return torch.stack([loss for loss, _ in found]).sum(), torch.cat(
            [outputs for _, outputs in found]
        )

    def _parts(self, rows: int, shape: Sequence[int]) -> int:
        """Parts that a share of `rows` is cut into, each of two or more where one row of `shape`
        cannot be normalised.
        """
        wanted = max(1, min(self.recipe.accumulate, rows))  # an empty part has no statistics
        if not self._over_batch or rows // wanted >= LEAST_ROWS:
            return wanted
        if self._takes_one is None:
            self._takes_one = wanted > 1 and takes_one(self.stage_part(self.net), shape)
        return wanted if self._takes_one else max(1, min(wanted, rows // LEAST_ROWS))

    def _part(
        self, inputs: torch.Tensor, targets: torch.Tensor, size: int, last: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of a part of the share; the team adds up its gradients at the last
        one.
        """
        assert self._parallel is not None
        reduces = last or self.team.workers == 1
        with contextlib.nullcontext() if reduces else self._parallel.no_sync():  # type: ignore
            with torch.autocast(
                self.team.device.type, dtype=self.type, enabled=self.type is not None
            ):
                outputs = self._parallel(inputs)
            loss = self.loss(outputs.float(), targets)
            # The team averages gradients; this makes the average the gradient of the mean loss of
            # the global batch, also where the shares of the workers differ by a row.
            scaled = self.scaler.scale(loss * (self.team.workers / size))
            torch.autograd.backward(scaled)
        return loss.detach(), outputs.detach()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of a batch, as the recipe weighs and smooths them."""
        return F.cross_entropy(
            outputs,
            targets,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.recipe.label_smoothing,
        )

    def _update(self) -> None:
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.net)

    def share_buffers(self) -> None:
        """Give all members the buffers of rank 0: batch statistics differ by the images each has
        seen.
        """
        self.team.share_buffers(self.net)
        if self.average is not None:
            self.team.share_buffers(self.average.module)

    # --- checkpoints ----------------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors of a checkpoint by the name of their file; `model` is what would be delivered."""
        raw = {} if self.average is None else {"raw": self.net.state_dict()}
        return {"model": self.evaluated_net.state_dict(), **raw}

    def counters(self) -> dict[str, Any]:
        """Of a checkpoint what is no tensor and not the optimizer's."""
        averaged = int(self.average.n_averaged) if self.average is not None else 0
        return {"averaged": averaged, "scaler": self.scaler.state_dict()}

    def restore(
        self, tensors: dict[str, dict[str, torch.Tensor]], counters: dict[str, Any]
    ) -> None:
        """Go on from `tensors` and `counters` of a checkpoint."""
        self.net.load_state_dict(tensors.get("raw", tensors["model"]))
        if self.average is not None:
            self.average.module.load_state_dict(tensors["model"])
            self.average.n_averaged.fill_(counters["averaged"])
        if counters["scaler"]:
            self.scaler.load_state_dict(counters["scaler"])


def moving_average(net: nn.Module, decay: float) -> AveragedModel:
    """An average of the weights of `net` in which older ones count `decay` times as much a step.

    The decay grows to its value over the first steps, as in TensorFlow's ExponentialMovingAverage:
    a short training would otherwise deliver its first weights.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, steps: torch.Tensor | int) -> None:
        n = int(steps)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(net, multi_avg_fn=update)


def balanced_class_weights(class_rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """(classes,) weights n / (classes · rows of the class), as scikit-learn's `balanced`: 1 in the
    mean of the rows.
    """
    rows = torch.tensor(class_rows, dtype=torch.float32, device=device)
    return rows.sum() / (len(rows) * rows.clamp(min=1))
