"""What the driver sends to every worker of a run; known without torch."""

from __future__ import annotations

from dataclasses import dataclass

from raysft.errors import ModelError
from raysft.job.spec import Model, Resources
from raysft.storage import Place, Remote, place


def weights_file(spec: Model) -> Place | None:
    """The file a job names as weights, None where it names weights of the library, or none; raises ModelError."""
    path = place(spec.weights)
    named = isinstance(path, Remote) or path.suffix != "" or "/" in spec.weights
    if not named and not path.is_file():
        return None
    if not path.is_file():
        raise ModelError(f"model.weights: {spec.weights}", "does not exist",
                         "give a .safetensors file, a state dict, a weights name, or none")
    return path


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
