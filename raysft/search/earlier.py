"""What an earlier part of a run came to, which its search hears of again when the run is resumed.

Without Ray Tune, which a job without a search does not import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raysft.job.values import Config
from raysft.records.documents import EpochMetrics

# How far a trial that has ended came: its configuration, status, and the metrics of its epochs.
Past = tuple[Config, str, Sequence[EpochMetrics]]


@dataclass(frozen=True)
class EarlierTrials:
    """The trials of an earlier part of this run: their epochs, by their numbers."""

    ended: Mapping[int, Sequence[EpochMetrics]] = field(default_factory=dict)
    going_on: Mapping[int, Sequence[EpochMetrics]] = field(default_factory=dict)
