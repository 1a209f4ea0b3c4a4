"""What all parts of the job file have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from raysft.job.plain import BOOLS


class Section(BaseModel):
    """A part of the job file: immutable, typed strictly, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def no_switch(text: str | None, instead: str) -> str | None:
    """`text`, unless it is a word that turns something on or off; raises ValueError that tells what
    to write.
    """
    if text is not None and text in BOOLS:
        raise ValueError(f"got {text!r}, which names nothing; {instead}")
    return text
