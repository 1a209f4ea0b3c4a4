"""The delivered model: a folder with weights (safetensors) and model.json, which says all that is needed to use it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from raysft.data.decoding import Decoding, decoding_of
from raysft.data.preparation import Preparation
from raysft.errors import ModelError, UserError
from raysft.storage import (
    Place,
    local_copy,
    put_file,
    put_folder,
    read_json,
    scratch_beside,
    sha256,
    write_json,
    write_text,
)
from raysft.train.architecture import foreign_module

FORMAT = 4  # 2: images may be resized for the network; 3: checksums; 4: how files are decoded
WEIGHTS, CARD, README = "model.safetensors", "model.json", "README.md"


@dataclass(frozen=True)
class ModelCard:
    """What model.json says."""

    architecture: str
    classes: tuple[str, ...]
    height: int
    """Height that images are cropped and scaled to when they are decoded."""
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scores: dict[str, float]
    provenance: dict[str, Any]
    image_size: int | None = None
    """Height and width that the network sees; None: as decoded."""
    interpolation: str = "bilinear"
    weights_sha256: str = ""
    resampling: str = "bilinear"
    """How images are scaled to height × width when they are decoded."""
    decoding: Decoding = field(default_factory=Decoding)
    """How files become 8-bit RGB where they leave it open."""
    format: int = FORMAT

    @property
    def preparation(self) -> Preparation:
        """What images go through between decoding and the network."""
        return Preparation(self.mean, self.std, self.image_size, self.interpolation)


def deliver(folder: Place, checkpoint: Place, card: ModelCard, readme: str | None = None) -> None:
    """Make the model folder from a checkpoint, whole or not at all; `readme` is its README.md."""
    with scratch_beside(folder) as scratch, local_copy(checkpoint / WEIGHTS) as weights:
        put_file(weights, scratch / WEIGHTS)
        if readme is not None:
            write_text(scratch / README, readme)
        write_json(scratch / CARD, asdict(replace(card, weights_sha256=sha256(scratch / WEIGHTS))))
        put_folder(scratch, folder, last=CARD)


def read_card(folder: Place) -> ModelCard:
    """The card of a delivered model; a run directory stands for its model. Raises UserError."""
    folder = model_folder(folder)
    path = folder / CARD
    try:
        stored = read_json(path)
        if stored["format"] > FORMAT:
            raise UserError(str(path), f"has format {stored['format']}, this raysft reads up to {FORMAT}",
                            "use a newer raysft")
        if not isinstance(stored["architecture"], str):
            raise TypeError(f"architecture is {stored['architecture']!r:.80}")
        return ModelCard(stored["architecture"], tuple(stored["classes"]), stored["height"], stored["width"],
                         tuple(stored["mean"]), tuple(stored["std"]), stored["scores"], stored["provenance"],
                         stored["image_size"], stored["interpolation"], stored["weights_sha256"],
                         stored.get("resampling", "bilinear"), decoding_of(stored.get("decoding")), stored["format"])
    except FileNotFoundError:
        raise UserError(str(folder), f"is not a model: it has no {CARD}", "give RUN/model") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(str(path), f"cannot be read ({error!r})") from None


def model_folder(path: Place) -> Place:
    """`path`, or the model in it when it is a run directory."""
    return path / "model" if (path / "run.json").is_file() else path


def check_trust(folder: Place, card: ModelCard, trust_code: bool) -> None:
    """Raise ModelError where a model would run code of somebody's own, unless `trust_code` says that it may."""
    module = foreign_module(card.architecture)
    if module is not None and not trust_code:
        raise ModelError(str(model_folder(folder) / CARD), f"its architecture {_shown(card.architecture)} is code of "
                         f"the module {_shown(module)}, which is not of raysft, torchvision or timm, and was not run",
                         "where you trust it, give --trust-code (in Python trust_code=True)")


def _shown(name: str) -> str:
    """At most a line of what a file may hold."""
    return "".join(c if c.isprintable() else "?" for c in name[:80])


def load_model(folder: Place, trust_code: bool = False) -> tuple[Any, ModelCard]:
    """(torch module in eval mode, card) of a delivered model; raises UserError or ModelError.

    trust_code: whether an architecture that is neither of raysft nor of torchvision or timm may be imported from where
    this process finds modules. Nothing else that a model folder holds can run code.
    """
    from raysft.train.modeling import network
    from raysft.train.weights import read_state_dict

    card = read_card(folder)
    check_trust(folder, card, trust_code)
    net = network(card.architecture, len(card.classes), card.image_size)
    with local_copy(model_folder(folder) / WEIGHTS) as weights:
        if sha256(weights) != card.weights_sha256:
            raise UserError(str(model_folder(folder) / WEIGHTS), f"does not have the checksum of its {CARD}: it was "
                            "changed or torn", "train again, or restore it from a copy")
        state = read_state_dict(weights)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(str(folder), f"its weights do not fit {card.architecture} ({error})") from None
    return net.eval(), card
