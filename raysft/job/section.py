"""What all parts of the job file have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the job file: immutable, typed strictly, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)
