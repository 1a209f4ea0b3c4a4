"""The delivered model: a folder with weights (safetensors) and model.json, which says all that is
needed to use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard, TypeVar

from raysft.data.decoding import Decoding, is_number, parse_decoding
from raysft.data.preparation import Preparation
from raysft.errors import ModelError, UserError
from raysft.job.values import Config
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

if TYPE_CHECKING:
    from torch import nn

FORMAT = 4  # 2: images may be resized for the network; 3: checksums; 4: how files are decoded
WEIGHTS, CARD, README = "model.safetensors", "model.json", "README.md"
RESTORE = "restore it from a copy, or train again"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
MOST_PIXELS = 2**26  # of an image; as float32 they take 0.8 GB

T = TypeVar("T")


class Code(TypedDict):
    """The module of somebody's own that makes a network, and what allows it to run."""

    module: str
    needs: str


class Provenance(TypedDict, total=False):
    """Where a model came from. Raysft needs none of it to use the model, and any may be missing."""

    run: str
    trial: str
    epoch: int
    config: Config
    job: dict[str, Any]
    """The whole job as its file could have it."""
    versions: dict[str, str]
    git: str | None
    data: str
    """Fingerprint of the data set."""
    seed: int
    code: Code


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
    provenance: Provenance
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
        # Of the copy: what is delivered is what was hashed.
        checksum = sha256(scratch / WEIGHTS)
        write_json(scratch / CARD, asdict(replace(card, weights_sha256=checksum)))
        # An object store cannot rename a folder: the card comes last, and makes it a model.
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
        raise UserError(str(path), f"cannot be read (it does not say {error})", RESTORE) from None
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise UserError(str(path), f"cannot be read ({error})", RESTORE) from None


def _card(stored: Mapping[str, object]) -> ModelCard:
    """A card as JSON holds it; raises KeyError, TypeError or ValueError, in words, for what no
    raysft has written.
    """
    # A model may come from anywhere: every value is looked at before anything is made of it.
    with_defaults = {"resampling": "bilinear", **stored}  # formats 1 to 3 do not say it

    def read(name: str, is_valid: Callable[[object], TypeGuard[T]], what: str) -> T:
        value = with_defaults[name]
        if not is_valid(value):
            raise ValueError(f"{name} is {value!r:.80}, not {what}")
        return value

    kernel = " | ".join(INTERPOLATIONS)
    decoding = stored.get("decoding")
    if decoding is not None and not _is_table(decoding):
        raise TypeError(f"decoding is {decoding!r:.80}, not a table")
    card = ModelCard(
        architecture=read("architecture", _is_text, "a name"),
        classes=tuple(read("classes", _are_names, "a list of names")),
        height=read("height", _is_side, "pixels"),
        width=read("width", _is_side, "pixels"),
        mean=tuple(read("mean", _are_three, "three numbers")),
        std=tuple(read("std", _are_three_positive, "three numbers above 0")),
        scores=read("scores", _are_scores, "a table"),
        provenance=read("provenance", _is_provenance, "a table"),
        image_size=read("image_size", _is_side_or_none, "pixels"),
        interpolation=read("interpolation", _is_kernel, kernel),
        weights_sha256=read("weights_sha256", _is_string, "a checksum"),
        resampling=read("resampling", _is_kernel, kernel),
        decoding=parse_decoding(decoding),
        format=read("format", _is_integer, "a number"),
    )
    side = card.image_size or 1
    _check_pixels(card.height, card.width)
    _check_pixels(side, side)
    return card


def _check_pixels(height: int, width: int) -> None:
    # A card that asks for more would have a server allocate until it dies.
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"images of {height} × {width} pixels are more than {MOST_PIXELS:,} pixels"
        )


def _is_string(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value != ""


def _are_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and value != [] and all(map(_is_text, value))


def _is_integer(value: object) -> TypeGuard[int]:
    return type(value) is int  # and not bool, which is an int, too


def _is_side(value: object) -> TypeGuard[int]:
    return _is_integer(value) and value >= 1


def _is_side_or_none(value: object) -> TypeGuard[int | None]:
    return value is None or _is_side(value)


def _are_three(value: object) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


def _are_three_positive(value: object) -> TypeGuard[list[float]]:
    # A standard deviation is divided by.
    return _are_three(value) and min(value) > 0


def _is_kernel(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value in INTERPOLATIONS


def _is_table(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _are_scores(value: object) -> TypeGuard[dict[str, float]]:
    return isinstance(value, dict)


def _is_provenance(value: object) -> TypeGuard[Provenance]:
    return isinstance(value, dict)


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


def load_model(folder: StoragePath, trust_code: bool = False) -> tuple[nn.Module, ModelCard]:
    """(torch module in eval mode, card) of a delivered model; raises UserError or ModelError.

    trust_code: whether an architecture that is neither of raysft nor of torchvision or timm may be
    imported from where this process finds modules. Nothing else that a model folder holds can run
    code.
    """
    # Torch takes long to import, and a card can be read without it.
    from raysft.train.modeling import create_network
    from raysft.train.weights import read_state_dict

    card = read_card(folder)
    check_trust(folder, card, trust_code)
    net = create_network(card.architecture, len(card.classes), card.image_size)
    with local_copy(model_folder(folder) / WEIGHTS) as weights:
        # Weights that do not belong to their card would answer, and wrongly.
        if sha256(weights) != card.weights_sha256:
            raise UserError(
                str(model_folder(folder) / WEIGHTS),
                f"does not have the checksum of its {CARD}: it was changed or is damaged",
                RESTORE,
            )
        state = read_state_dict(weights)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            str(folder), f"its weights do not fit {card.architecture} ({error})"
        ) from None
    return net.eval(), card
