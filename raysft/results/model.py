"""The delivered model: a folder with weights (safetensors) and model.json, which says all that is needed to use it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysft.errors import UserError
from raysft.files import write_text

FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """What model.json says."""

    architecture: str
    classes: tuple[str, ...]
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scores: dict[str, float]
    provenance: dict[str, Any]
    format: int = FORMAT


def deliver(folder: Path, checkpoint: Path, card: ModelCard) -> None:
    """Make the model folder from a checkpoint, whole or not at all."""
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    shutil.copyfile(checkpoint / "model.safetensors", beside / "model.safetensors")
    write_text(beside / "model.json", json.dumps(asdict(card), indent=1, default=str) + "\n")
    os.replace(beside, folder)


def read_card(folder: Path) -> ModelCard:
    """The card of a delivered model; a run directory stands for its model. Raises UserError."""
    folder = model_folder(folder)
    path = folder / "model.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] > FORMAT:
            raise UserError(str(path), f"has format {stored['format']}, this raysft reads up to {FORMAT}",
                            "use a newer raysft")
        return ModelCard(stored["architecture"], tuple(stored["classes"]), stored["height"], stored["width"],
                         tuple(stored["mean"]), tuple(stored["std"]), stored["scores"], stored["provenance"],
                         stored["format"])
    except FileNotFoundError:
        raise UserError(str(folder), "is not a model: it has no model.json", "give RUN/model") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(str(path), f"cannot be read ({error!r})") from None


def model_folder(path: Path) -> Path:
    """`path`, or the model in it when it is a run directory."""
    path = path.expanduser()
    return path / "model" if (path / "run.json").is_file() else path


def load_model(folder: Path) -> tuple[Any, ModelCard]:
    """(torch module in eval mode, card) of a delivered model; raises UserError or ModelError."""
    from raysft.train.modeling import network, read_state_dict

    card = read_card(folder)
    net = network(card.architecture, len(card.classes))
    state = read_state_dict(model_folder(folder) / "model.safetensors")
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(str(folder), f"its weights do not fit {card.architecture} ({error})") from None
    return net.eval(), card
