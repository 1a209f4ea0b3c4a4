"""Which trials of a search end early, pause or change: `search.scheduler` of the job file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raysft.job.section import Section

SchedulerName = Literal[
    "halving", "asha_tune", "hyperband", "bohb", "median", "pbt", "pb2", "none", "asha"
]

# What each of them takes, besides its name. Tune's have Tune's own arguments, but for those of the
# metric, the unit (epochs) and the length of a trial, which the job says elsewhere.
_OF_POPULATIONS = ("perturbation_interval", "quantile_fraction", "synch")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "halving": ("grace_epochs", "reduction_factor"),
    "asha_tune": ("grace_epochs", "reduction_factor", "brackets"),
    "hyperband": ("reduction_factor",),
    "bohb": ("reduction_factor",),
    "median": ("grace_epochs", "min_samples_required", "min_time_slice", "hard_stop"),
    "pbt": (
        *_OF_POPULATIONS,
        "burn_in_period",
        "resample_probability",
        "perturbation_factors",
    ),
    "pb2": _OF_POPULATIONS,
    "none": (),
}
POPULATIONS = frozenset({"pbt", "pb2"})  # they change what a trial trains with while it trains
OLD_NAMES = {"asha": "halving"}
HALVING_FACTOR, BRACKET_FACTOR = 4, 3

Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0)]


class Scheduler(Section):
    """Which trials end early, pause or change."""

    name: SchedulerName = "halving"
    """halving (pause all at each rung, the best go on; also written asha) | none | Ray Tune's
    asha_tune | hyperband | bohb | median | pbt | pb2
    """
    grace_epochs: int | None = Field(None, ge=1)
    """halving, asha_tune, median: epochs every trial trains before it can be paused or stopped;
    null: an eighth of all.
    """
    reduction_factor: int | None = Field(None, ge=2)
    """halving, asha_tune, hyperband, bohb: at each rung about one trial in this many goes on, to
    this many times as many epochs; null: 4, of hyperband and bohb 3.
    """
    brackets: int | None = Field(None, ge=1)
    """asha_tune: how many first rungs there are, each a factor later; null: 1."""
    min_samples_required: int | None = Field(None, ge=1)
    """median: how many other trials it takes to judge one; null: 3."""
    min_time_slice: int | None = Field(None, ge=0)
    """median: epochs a trial trains before it makes room for others while there are too few to
    judge; null: as many as `grace_epochs`.
    """
    hard_stop: bool | None = None
    """median: false pauses trials until all others have ended, instead of stopping them."""
    perturbation_interval: int | None = Field(None, ge=1)
    """pbt, pb2: epochs from one comparison to the next; null: an eighth of all."""
    burn_in_period: int | None = Field(None, ge=0)
    """pbt: epochs before the first comparison; null: 0."""
    quantile_fraction: float | None = Field(None, gt=0, le=0.5)
    """pbt, pb2: share of the population that takes over from the best as many; null: 0.25."""
    resample_probability: Share | None = None
    """pbt: how often a value is drawn anew instead of changed by a factor; null: 0.25."""
    perturbation_factors: Annotated[list[Factor], Field(min_length=2, max_length=2)] | None = None
    """pbt: the factors that a number is changed by; null: [1.2, 0.8]."""
    synch: bool | None = None
    """pbt, pb2: whether the whole population is compared at the same epoch; false compares each
    trial with how far the others were last; null: true.
    """

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="before")
    @classmethod
    def _as_stored_before(cls, given: object) -> object:
        """A job.yaml of an older raysft has this factor, whatever the scheduler."""
        if not isinstance(given, dict) or given.get("reduction_factor") != HALVING_FACTOR:
            return given
        name = given.get("name")
        if name not in ("median", "none"):
            return given
        return {key: value for key, value in given.items() if key != "reduction_factor"}

    @field_validator("name")
    @classmethod
    def _name_of_today(cls, name: str) -> str:
        return OLD_NAMES.get(name, name)

    @model_validator(mode="after")
    def _takes_its_arguments(self) -> Scheduler:
        taken = ARGUMENTS[self.name]
        for argument in self.given:
            if argument not in taken:
                raise ValueError(f"{self.name} has no {argument}{_hint(argument, taken)}")
        return self

    @property
    def given(self) -> dict[str, object]:
        """The arguments that the job gives it."""
        arguments = self.model_dump(exclude={"name"})
        return {key: value for key, value in arguments.items() if value is not None}

    @property
    def factor(self) -> int:
        """One trial in so many goes on at a rung."""
        if self.reduction_factor is not None:
            return self.reduction_factor
        return BRACKET_FACTOR if self.name in ("hyperband", "bohb") else HALVING_FACTOR

    @property
    def in_step(self) -> bool:
        """Whether a population is compared at the same epoch."""
        # Unlike in Tune by default: where trials take turns on few teams, one that is compared
        # with what a paused one was a while ago takes its weights over again and again.
        return self.synch is not False

    @property
    def may_stop(self) -> bool:
        """Whether it ends trials early, nobody knows in advance which."""
        return self.name not in ("halving", "none", *POPULATIONS)

    @property
    def changes_trials(self) -> bool:
        """Whether a trial may go on from another one's weights with other values."""
        return self.name in POPULATIONS


def _hint(argument: str, taken: Sequence[str]) -> str:
    if not taken:
        return "; it has no arguments: give its name alone, search.scheduler: none"
    close = difflib.get_close_matches(argument, taken, n=1)
    return f"; did you mean {close[0]}?" if close else f"; it has {', '.join(taken)}"
