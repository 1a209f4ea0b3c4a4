"""What teams are handed: splits to read, and what to do with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from raysft.job.recipe import Train
from raysft.job.spec import Model
from raysft.job.values import Config

if TYPE_CHECKING:
    import ray

    from raysft.data.ingest import Rows
    from raysft.data.splits import SplitSource

HandedSplit: TypeAlias = "SplitSource | ray.ObjectRef[Rows]"
"""A split as workers get it: where to stream it from, or its decoded rows in the object store."""


@dataclass(frozen=True)
class Source:
    """A checkpoint of another trial, from which a trial goes on."""

    trial: str
    folder: str
    """Of that trial."""
    epoch: int


@dataclass(frozen=True)
class Assignment:
    """Train a trial, or score one checkpoint on the test split."""

    kind: Literal["train", "score"]
    trial: str
    folder: str
    model: Model
    train: Train
    seed: int
    config: Config = field(default_factory=dict)
    attempt: int = 0
    of_search: bool = True
    """Whether it ends with the search, which a repeat of its best trial and a score outlive."""
    halved: bool = False
    """Whether its micro-batch was halved because memory was short."""
    source: Source | None = None
    """What it starts from instead of its own last checkpoint."""


@dataclass(frozen=True)
class Member:
    """One worker of a team."""

    slot: int
    team: int
    rank: int
    workers: int
    """Of its team."""
    incarnation: int
    """Grows with every start of its slot's worker group."""


@dataclass(frozen=True)
class Turn:
    """An assignment as all members of a team get it."""

    assignment: Assignment
    group: int
    """Number of the process group in which they do it."""
    next_turn: int
    """With which they ask for the one after it."""
