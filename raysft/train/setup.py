"""What the driver sends to every worker of a run; known without torch."""

from __future__ import annotations

from dataclasses import dataclass

from raysft.errors import ModelError
from raysft.job.spec import Model, Resources
from raysft.storage import Place, Remote, place


def weights_file(spec: Model) -> Place | None:
    """The file a job names as weights; None where it names a web address, weights of the library, or none.

    Raises ModelError for a file that is not there.
    """
    if spec.weights.startswith(("http://", "https://")):
        return None
    path = place(spec.weights)
    named = isinstance(path, Remote) or path.suffix != "" or "/" in spec.weights
    if not named and not path.is_file():
        return None
    if not path.is_file():
        raise ModelError(f"model.weights: {spec.weights}", "does not exist",
                         "give a .safetensors file, a state dict, a weights name, or none")
    return path


def absolute(spec: Model) -> Model:
    """`spec` with the whole path of its weights: workers have another current folder."""
    path = weights_file(spec)
    return spec.model_copy(update={"weights": str(path)}) if path is not None else spec


@dataclass(frozen=True)
class Setup:
    """What all workers of a run have in common; plain values, sent once."""

    class_rows: tuple[int, ...]
    """Training images of each class."""
    data_mean: tuple[float, ...]
    data_std: tuple[float, ...]
    mean: tuple[float, ...] | None
    """What the job says; None: as the weights say, without weights as the data."""
    std: tuple[float, ...] | None
    metric: str
    resources: Resources
    import_from: str
    feature_bytes: float
    """Features of a frozen backbone are kept where they are no larger than this."""

    @property
    def classes(self) -> int:
        return len(self.class_rows)
