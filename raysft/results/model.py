"""The delivered model: a folder with weights (safetensors) and model.json, which says all that is
needed to use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from raysft.data.decoding import Decoding, is_number, parse_decoding
from raysft.data.preparation import Preparation
from raysft.errors import ModelError, UserError
from raysft.storage import (
    StoragePath,
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
AGAIN = "restore it from a copy, or train again"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
MOST_PIXELS = 2**26  # of an image; as float32 they take 0.8 GB


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


def deliver(
    folder: StoragePath, checkpoint: StoragePath, card: ModelCard, readme: str | None = None
) -> None:
    """Make the model folder from a checkpoint, whole or not at all; `readme` is its README.md."""
    with scratch_beside(folder) as scratch, local_copy(checkpoint / WEIGHTS) as weights:
        put_file(weights, scratch / WEIGHTS)
        if readme is not None:
            write_text(scratch / README, readme)
        write_json(scratch / CARD, asdict(replace(card, weights_sha256=sha256(scratch / WEIGHTS))))
        put_folder(scratch, folder, last=CARD)


def read_card(folder: StoragePath) -> ModelCard:
    """The card of a delivered model; a run directory stands for its model. Raises UserError."""
    folder = model_folder(folder)
    path = folder / CARD
    try:
        stored = read_json(path)
        if not isinstance(stored, dict) or type(stored["format"]) is not int:
            raise TypeError("it is not a table with a format")
        if stored["format"] > FORMAT:
            raise UserError(
                str(path),
                f"has format {stored['format']!r:.80}, this raysft reads up to {FORMAT}",
                "use a newer raysft",
            )
        return _card(stored)
    except FileNotFoundError:
        raise UserError(
            str(folder), f"is not a model: it has no {CARD}", "give RUN/model"
        ) from None
    except KeyError as error:
        raise UserError(str(path), f"cannot be read (it does not say {error})", AGAIN) from None
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise UserError(str(path), f"cannot be read ({error})", AGAIN) from None


def _card(stored: dict[str, Any]) -> ModelCard:
    """A card as JSON holds it; raises KeyError, TypeError or ValueError, in words, for what no
    raysft has written.
    """

    def said(name: str, holds: Callable[[Any], bool], what: str, *default: Any) -> Any:
        value = stored.get(name, *default) if default else stored[name]
        if not holds(value):
            raise ValueError(f"{name} is {value!r:.80}, not {what}")
        return value

    kernel = " | ".join(INTERPOLATIONS)
    card = ModelCard(
        said("architecture", _is_text, "a name"),
        tuple(
            said(
                "classes",
                lambda v: isinstance(v, list) and v != [] and all(map(_is_text, v)),
                "a list of names",
            )
        ),
        said("height", _is_side, "pixels"),
        said("width", _is_side, "pixels"),
        tuple(said("mean", _are_three, "three numbers")),
        tuple(said("std", lambda v: _are_three(v) and min(v) > 0, "three numbers above 0")),
        said("scores", lambda v: isinstance(v, dict), "a table"),
        said("provenance", lambda v: isinstance(v, dict), "a table"),
        said("image_size", lambda v: v is None or _is_side(v), "pixels"),
        said("interpolation", _is_kernel, kernel),
        said("weights_sha256", lambda v: isinstance(v, str), "a checksum"),
        said("resampling", _is_kernel, kernel, "bilinear"),
        parse_decoding(stored.get("decoding")),
        stored["format"],
    )
    for height, width in ((card.height, card.width), (card.image_size or 1, card.image_size or 1)):
        if height * width > MOST_PIXELS:
            raise ValueError(
                f"images of {height} × {width} pixels are more than {MOST_PIXELS:,} pixels"
            )
    return card


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_side(value: Any) -> bool:
    return type(value) is int and value >= 1


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


def _is_kernel(value: Any) -> bool:
    return isinstance(value, str) and value in INTERPOLATIONS


def model_folder(path: StoragePath) -> StoragePath:
    """`path`, or the model in it when it is a run directory."""
    return path / "model" if (path / "run.json").is_file() else path


def check_trust(folder: StoragePath, card: ModelCard, trust_code: bool) -> None:
    """Raise ModelError where a model would run code of somebody's own, unless `trust_code` says
    that it may.
    """
    module = foreign_module(card.architecture)
    if module is not None and not trust_code:
        raise ModelError(
            str(model_folder(folder) / CARD),
            f"its architecture {_shown(card.architecture)} is code of "
            f"the module {_shown(module)}, which is not of raysft, torchvision or timm, and was "
            "not run",
            "where you trust it, give --trust-code (in Python trust_code=True)",
        )


def _shown(name: str) -> str:
    """At most a line of what a file may hold."""
    return "".join(c if c.isprintable() else "?" for c in name[:80])


def load_model(folder: StoragePath, trust_code: bool = False) -> tuple[Any, ModelCard]:
    """(torch module in eval mode, card) of a delivered model; raises UserError or ModelError.

    trust_code: whether an architecture that is neither of raysft nor of torchvision or timm may be
    imported from where this process finds modules. Nothing else that a model folder holds can run
    code.
    """
    from raysft.train.modeling import network
    from raysft.train.weights import read_state_dict

    card = read_card(folder)
    check_trust(folder, card, trust_code)
    net = network(card.architecture, len(card.classes), card.image_size)
    with local_copy(model_folder(folder) / WEIGHTS) as weights:
        if sha256(weights) != card.weights_sha256:
            raise UserError(
                str(model_folder(folder) / WEIGHTS),
                f"does not have the checksum of its {CARD}: it was changed or torn",
                "train again, or restore it from a copy",
            )
        state = read_state_dict(weights)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            str(folder), f"its weights do not fit {card.architecture} ({error})"
        ) from None
    return net.eval(), card
