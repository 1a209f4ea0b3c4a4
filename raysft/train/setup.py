"""What the driver sends to every worker of a run; known without torch."""

from __future__ import annotations

from dataclasses import dataclass

from raysft.job.spec import Model, Resources


@dataclass(frozen=True)
class Setup:
    """What all workers of a run have in common; plain values, sent once."""

    model: Model
    classes: int
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metric: str
    resources: Resources
    import_from: str
