"""What is logged of a trial: its recipe as flat parameters, each epoch as numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raysft.job import Job
from raysft.job.space import job_key, trial_settings
from raysft.records.trial import TrialRecord


def metrics_of(epoch: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch as trial.json has them, with images a second and the share of waiting
    for data.
    """
    found = {
        key: float(value)
        for key, value in epoch.items()
        if key != "epoch" and isinstance(value, (int, float))
    }
    busy = found.get("train_seconds")
    if busy:
        found["images_per_second"] = epoch["images"] / busy
        found["data_wait_fraction"] = epoch["data_wait_seconds"] / busy
    return found


def parameters_of(job: Job, record: TrialRecord) -> dict[str, Any]:
    """Network and recipe of a trial under the dotted keys of the job file: what was searched and
    all the rest.
    """
    try:
        recipe = trial_settings(job, record.config)
    except ValueError:  # a configuration that no trial can have
        return searched_of(job, record)
    return flattened({"model": recipe.model.model_dump(), "train": recipe.train.model_dump()})


def searched_of(job: Job, record: TrialRecord) -> dict[str, Any]:
    """What sets a trial apart from the others: its configuration; without a search the whole
    recipe.
    """
    if job.search is None:
        return parameters_of(job, record)
    return flattened({job_key(key): value for key, value in record.config.items()})


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree by dotted keys, lists as JSON, without those that are not set."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}.")
        elif value is not None:
            plain = isinstance(value, (bool, int, float, str))
            found[f"{prefix}{key}"] = value if plain else json.dumps(value, default=str)
    return found
