"""What the driver sends to every worker of a run; known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raysft.errors import ModelError
from raysft.job.recipe import Train
from raysft.job.spec import Model, Resources
from raysft.storage import RemotePath, StoragePath, storage_path


def find_weights_file(spec: Model) -> StoragePath | None:
    """The file a job names as weights; None where it names a web address, weights of the library,
    or none.

    Raises ModelError for a file that is not there.
    """
    if spec.weights.startswith(("http://", "https://")):
        return None
    path = storage_path(split_stated_hash(spec.weights)[0])
    named = isinstance(path, RemotePath) or path.suffix != "" or "/" in spec.weights
    if not named and not path.is_file():
        return None
    if not path.is_file():
        raise ModelError(
            f"model.weights: {spec.weights}",
            "does not exist",
            "give a .safetensors file, a state dict, a weights name, or none",
        )
    return path


def split_stated_hash(weights: str) -> tuple[str, str | None]:
    """(address, SHA-256 in hexadecimal or None) of a URI that ends with #sha256=HEX, or of any
    other weights.
    """
    address, separator, stated = weights.partition("#sha256=")
    return (address, stated) if separator and "://" in weights else (weights, None)


def with_absolute_weights(spec: Model) -> Model:
    """`spec` with the whole path of its weights: workers have another current folder."""
    path = find_weights_file(spec)
    return spec.model_copy(update={"weights": str(path)}) if isinstance(path, Path) else spec


@dataclass(frozen=True)
class WorkerPlace:
    """Where a process stands in its slot."""

    slot: int
    world_rank: int
    """Among all workers of the slot, whose teams follow each other."""
    world_size: int
    incarnation: int
    """Grows with every start of the slot's worker group."""


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
    """Features of frozen backbones are kept where they are no larger than this."""
    usual_size: int | None
    """Height and width that a network sees without model.image_size; None: as decoded."""

    decoded: tuple[int, int]
    """Height and width that images are decoded to."""
    recipes: tuple[Train, ...]
    """Those that trials may have, as far as their batches go and can be known."""
    one_model: bool
    """Whether all trials train the same network."""
    trials_copy: bool = False
    """Whether trials may start from the checkpoints of others."""

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_rows)
