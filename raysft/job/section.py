"""What all parts of the job file have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from raysft.job.plain import BOOLS


class Section(BaseModel):
    """A part of the job file: immutable, typed strictly, no unknown keys."""

    # Strict, because pydantic would otherwise take "3" for 3 and 1 for true without a word.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def refuse_switch(text: str | None, instead: str) -> str | None:
    """`text`; raises ValueError, with what to write `instead`, for a word like `off` or `yes`."""
    # Fields of text take what is written, and `wandb: off` would name a project "off".
    if text is not None and text in BOOLS:
        raise ValueError(f"got {text!r}, which names nothing; {instead}")
    return text
