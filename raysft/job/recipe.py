"""The recipe of one trial as frozen models; each field can be set in a job file and searched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, TypeAlias

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from raysft.job.optimizers import NAMES, OPTIMIZERS, WITHOUT_DECAY, ArgumentKind, wrong_argument
from raysft.job.section import Section

OptimizerName = Literal[
    "sgd",
    "adam",
    "adamw",
    "rmsprop",
    "adafactor",
    "adadelta",
    "adagrad",
    "adamax",
    "asgd",
    "nadam",
    "radam",
    "rprop",
]

ArgumentValue: TypeAlias = float | bool | list[float]
"""What an argument of an optimizer can be."""

# Epochs, steps and minutes that are 0 or have a sign match none of this.
_CHECKPOINT_EVERY = re.compile(
    r"epoch|[1-9]\d{0,8} steps?|(?:[1-9]\d{0,5}(?:\.\d+)?|0\.\d*[1-9]\d*) minutes?"
)

# torch's own default for sgd is 0, with which nearly nobody fine-tunes.
DEFAULT_MOMENTUM = {"sgd": 0.9, "rmsprop": 0.0}


_JSON_TYPES: dict[ArgumentKind, dict[str, JsonValue]] = {
    "number": {"type": "number"},
    "bool": {"type": "boolean"},
    "pair": {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 2, "maxItems": 2},
}


def _add_arguments(schema: dict[str, JsonValue]) -> None:
    """Add to the optimizer's JSON Schema what the classes of torch.optim take."""
    takers: dict[str, dict[str, ArgumentKind]] = {}
    for name, optimizer in OPTIMIZERS.items():
        for argument, kind in optimizer.arguments.items():
            takers.setdefault(argument, {})[name] = kind
    properties = schema["properties"]
    assert isinstance(properties, dict)
    for argument, kinds in takers.items():
        # One argument may be a number to one optimizer and a pair to another: eps is.
        forms: list[JsonValue] = [dict(_JSON_TYPES[kind]) for kind in dict.fromkeys(kinds.values())]
        form = forms[0] if len(forms) == 1 else {"anyOf": forms}
        assert isinstance(form, dict)
        described = {**form, "description": f"Argument of {', '.join(kinds)}."}
        properties.setdefault(argument, described)
    schema["additionalProperties"] = False


class Optimizer(Section):
    """The optimizer, with the arguments that torch.optim gives it (momentum, betas, eps, ...)."""

    # Extra keys are allowed here and checked below: each optimizer has arguments of its own.
    model_config = ConfigDict(extra="allow", json_schema_extra=_add_arguments)

    name: OptimizerName = "sgd"
    """sgd | adam | adamw | rmsprop | any other of torch.optim; its arguments stand beside lr."""
    lr: float = Field(OPTIMIZERS["sgd"][0], gt=0, le=100)
    """Highest learning rate; default 0.01 for sgd, 0.001 for adam, adamw and rmsprop."""
    momentum: float | None = Field(None, ge=0, lt=1)
    """Momentum of sgd (default 0.9) and rmsprop (default 0)."""
    nesterov: bool | None = None
    """Nesterov's momentum, for sgd."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, decoupled for adamw."""
    decay_norms_and_biases: bool = False
    """Whether weight decay also holds for biases and the scales of normalisation layers."""

    @property
    def arguments(self) -> dict[str, ArgumentValue]:
        """What torch's class is called with, besides the parameters."""
        found: dict[str, ArgumentValue] = {"lr": self.lr}
        if self.name not in WITHOUT_DECAY:
            found["weight_decay"] = self.weight_decay
        found.update(self._own_arguments())
        return found

    def _own_arguments(self) -> Iterator[tuple[str, ArgumentValue]]:
        """The arguments that not every optimizer has, null ones left to torch's defaults."""
        given = {**(self.model_extra or {}), "momentum": self.momentum, "nesterov": self.nesterov}
        for argument, value in given.items():
            if value is not None:
                yield argument, value

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_name(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        name = given.get("name", "sgd")
        if not isinstance(name, str) or name not in NAMES:
            return given
        filled = {"lr": OPTIMIZERS[name].default_lr} | given
        if name in DEFAULT_MOMENTUM and filled.get("momentum") is None:
            filled["momentum"] = DEFAULT_MOMENTUM[name]
        return filled

    @model_validator(mode="after")
    def _arguments_exist(self) -> Optimizer:
        own = dict(self._own_arguments())
        for argument, value in own.items():
            wrong = wrong_argument(self.name, argument, value)
            if wrong is not None:
                raise ValueError(wrong)
        if self.weight_decay and self.name in WITHOUT_DECAY:
            raise ValueError(f"{self.name} has no weight_decay")
        # The rest torch refuses too, but only when the workers have started.
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum greater than 0")
        if self.nesterov and own.get("dampening"):
            raise ValueError("nesterov needs a dampening of 0")
        if own.get("foreach") and own.get("fused"):
            raise ValueError("foreach and fused exclude each other")
        return self


class Schedule(Section):
    """How the learning rate changes with the step."""

    name: Literal["cosine", "constant", "linear", "step", "one_cycle"] = "cosine"
    """cosine | linear (to `floor` at the last step) | constant | step | one_cycle (up, down)"""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs over which the learning rate first rises linearly; one_cycle has a rise of its own."""
    floor: float = Field(0.0, ge=0, lt=1)
    """Share of the highest learning rate that cosine and linear end at."""
    step_epochs: float = Field(5.0, gt=0)
    """step: epochs after the warm-up from one drop to the next."""
    step_factor: float = Field(0.1, gt=0, lt=1)
    """step: what each drop multiplies the learning rate by."""
    rise: float = Field(0.3, gt=0, lt=1)
    """one_cycle: share of the steps in which the learning rate rises."""

    @model_validator(mode="after")
    def _one_rise(self) -> Schedule:
        if self.name == "one_cycle" and self.warmup_epochs:
            raise ValueError("one_cycle rises by itself (`rise`); leave warmup_epochs at 0")
        return self


class Augment(Section):
    """Random changes to training images."""

    flip: bool = True
    """Mirror every other image left to right."""
    crop_padding: int = Field(4, ge=0, le=64)
    """Pixels of zero padding around the image before a random crop back to its size; 0: no crop."""
    color_jitter: float = Field(0.0, ge=0, le=1)
    """Brightness, contrast and saturation of each image change by up to this share; 0: off."""
    auto: Literal["none", "randaugment", "trivialaugment"] = "none"
    """randaugment | trivialaugment | none: torchvision's policies, applied image by image."""
    erasing: float = Field(0.0, ge=0, le=1)
    """Probability that a random rectangle of an image is erased."""
    mixup: float = Field(0.0, ge=0)
    """Mix pairs of images and labels; alpha of the Beta distribution of the shares; 0: off."""
    cutmix: float = Field(0.0, ge=0)
    """Paste a rectangle of one image into another; alpha as for mixup, one of both each batch."""

    @property
    def active(self) -> dict[str, bool | float | str]:
        """The changes that are not off."""
        # Whatever a field says but false, 0, null and none: a field that is added later counts too.
        return {name: value for name, value in self if value and value != "none"}

    @property
    def is_random(self) -> bool:
        """Whether training images differ from one epoch to the next."""
        return bool(self.active)


class Train(Section):
    """The recipe of one trial."""

    epochs: int = Field(10, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(128, ge=1)
    """Images a step over all workers together: the same result on 1 or 8 workers."""
    freeze: Literal["none", "backbone"] | list[str] = "none"
    """What is not trained: none | backbone (all but the head) | a list of prefixes of tensor
    names.
    """
    head_epochs: int = Field(0, ge=0)
    """Epochs at the start in which the head alone is trained."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Each layer learns at this share of the rate of the layer after it; 1: all alike."""
    optimizer: Optimizer = Field(default_factory=lambda: Optimizer.model_validate({}))
    """The optimizer; search.space.optimizer takes its place in a search."""
    schedule: Schedule = Field(default_factory=Schedule)
    """The learning rate over the steps."""
    clip_norm: float | None = Field(None, gt=0)
    """Gradients of a greater norm (over all tensors) are scaled down to it; null: never."""
    augment: Augment = Field(default_factory=Augment)
    """Random changes to training images, drawn anew every epoch."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each label that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: errors weigh as if all classes had the same number of training images."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay a step of an average of the weights, which is validated and delivered; null: none."""
    patience: int | None = Field(None, ge=1)
    """End a trial after this many epochs without a better search.metric; null: never."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto (bf16 on hardware made for it, fp16 on older GPUs, else fp32) | fp32 | bf16 | fp16"""
    accumulate: int = Field(1, ge=1)
    """Parts that a batch is cut into to save memory; the step is that of the whole batch."""
    checkpoint_every: str = "epoch"
    """A checkpoint every epoch, and inside epochs every `N steps` or `N minutes`."""
    channels_last: bool = True
    """Keep images' channels last in memory, which convolutions are faster on."""
    compile: bool = False
    """Compile the network with torch.compile."""

    @field_validator("checkpoint_every")
    @classmethod
    def _known_interval(cls, value: str) -> str:
        if not _CHECKPOINT_EVERY.fullmatch(value):
            raise ValueError("give epoch, N steps or N minutes, for example 200 steps")
        return value

    @property
    def checkpoint_steps(self) -> int | None:
        """Steps from one checkpoint inside an epoch to the next; None: not by steps."""
        number, _, unit = self.checkpoint_every.partition(" ")
        if not unit.startswith("step"):
            return None
        return int(number)

    @property
    def checkpoint_seconds(self) -> float | None:
        """Seconds from one checkpoint inside an epoch to the next; None: not by the clock."""
        number, _, unit = self.checkpoint_every.partition(" ")
        if not unit.startswith("minute"):
            return None
        return 60 * float(number)

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_prefix(cls, value: object) -> object:
        # `freeze: true` or `freeze: 3` mean something to other programs; pydantic's message would
        # only list types.
        if isinstance(value, (bool, int, float)):
            raise ValueError(
                "must be none (nothing is frozen), backbone, or a list of prefixes of tensor "
                "names, such as [layer1]"
            )
        if isinstance(value, str) and value not in ("none", "backbone"):
            return [value]
        return value

    @model_validator(mode="after")
    def _epochs_fit(self) -> Train:
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {self.schedule.warmup_epochs:g}, more than the "
                f"{self.epochs} epochs there are"
            )
        if self.head_epochs > self.epochs:
            raise ValueError(
                f"head_epochs is {self.head_epochs}, more than the {self.epochs} epochs there are"
            )
        if self.head_epochs and self.freeze == "backbone":
            raise ValueError(
                "freeze: backbone trains the head alone in every epoch; leave head_epochs at 0"
            )
        # torch's fused SGD fails where some tensors get their first gradient later than others.
        fused = self.optimizer.name == "sgd" and self.optimizer.arguments.get("fused")
        if self.head_epochs and fused:
            raise ValueError(
                "optimizer.fused: torch's fused sgd cannot begin with the head alone; leave it "
                "out or head_epochs at 0"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate}, more than the {self.batch_size} images of a "
                "batch"
            )
        return self
