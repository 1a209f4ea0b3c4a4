"""What goes to and fro between Tune and its stand-ins."""

from __future__ import annotations

from typing import TypedDict

from pydantic import JsonValue

from raysft.job.values import Config

Result = dict[str, JsonValue]
"""The metrics of an epoch, what Tune adds to them, and the keys below."""

TRIAL = "trial"
"""The name of the trial of raysft."""
STATUS, ERROR = "trial_status", "trial_error"
"""How a trial ended, and why, where it did so otherwise than with its last epoch."""
FAILED = ("failed", "diverged")
"""What STATUS is of a trial whose values do not work."""


class Suggestion(TypedDict):
    """What a trial of Tune gets as its configuration."""

    number: int
    """Of the trial of raysft."""
    config: Config
