"""What is logged of a trial: its recipe as flat parameters, each epoch as numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping

from raysft.job import Job
from raysft.job.space import job_key, trial_settings
from raysft.records.documents import EpochMetrics
from raysft.records.trial import TrialRecord

Parameter = bool | int | float | str
"""What every store takes as a parameter."""


def epoch_numbers(epoch: EpochMetrics) -> dict[str, float]:
    """The numbers of an epoch as trial.json has them, with images a second and waiting for data."""
    found: dict[str, float] = {}
    for key, value in epoch.items():
        if key == "epoch":  # which is the step of all others
            continue
        if isinstance(value, (int, float)):
            found[key] = float(value)
    busy = found.get("train_seconds")
    if busy:
        found["images_per_second"] = epoch["images"] / busy
        found["data_wait_fraction"] = epoch["data_wait_seconds"] / busy
    return found


def all_parameters(job: Job, record: TrialRecord) -> dict[str, Parameter]:
    """Network and recipe of a trial under the dotted keys of the job file."""
    try:
        settings = trial_settings(job, record.config)
    except ValueError:  # a configuration that no trial can have
        return searched_parameters(job, record)
    return flatten({"model": settings.model.model_dump(), "train": settings.train.model_dump()})


def searched_parameters(job: Job, record: TrialRecord) -> dict[str, Parameter]:
    """What sets a trial apart from the others; without a search all of its parameters."""
    if job.search is None:
        return all_parameters(job, record)
    searched = {}
    for key, value in record.config.items():
        searched[job_key(key)] = value
    return flatten(searched)


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, Parameter]:
    """The values of a tree by dotted keys, lists as JSON, without those that are not set."""
    found: dict[str, Parameter] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flatten(value, f"{name}.")
        elif isinstance(value, (bool, int, float, str)):
            found[name] = value
        elif value is not None:  # stores have no lists, and some refuse an empty value
            found[name] = json.dumps(value, default=str)
    return found
