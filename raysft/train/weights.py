"""Pretrained weights: where a job finds them, fetched once a node, verified, and how they want
their images.

a name (DEFAULT, IMAGENET1K_V1)   torchvision's own, checked against the hash in the file's name
https://…  s3://…  gs://…         fetched to torch's cache; `#sha256=HEX` behind a URI is checked
a file                            read where it lies
"""

from __future__ import annotations

import hashlib
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from raysft.errors import ModelError, describe_error
from raysft.job.spec import Model
from raysft.storage import BLOCK, RemotePath, locked, read_json, sha256
from raysft.train.setup import find_weights_file, split_stated_hash
from raysft.train.unwrap import Found, Tensors, read_checkpoint, tensors_for

SILENCE_S = 60
_HASH_IN_NAME = re.compile(
    r"-([0-9a-f]{8,})\."
)  # torchvision's files carry the beginning of their SHA-256


@dataclass(frozen=True)
class ExpectedImages:
    """How a network wants its images: mean and std of each channel (0 to 1), and how they are
    brought to its size.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"


def fetch_weights_file(spec: Model) -> Path | None:
    """The file on this machine that a job names as weights, fetched if need be; None for a name.
    Raises ModelError.
    """
    where, (address, stated) = f"model.weights: {spec.weights}", split_stated_hash(spec.weights)
    if address.startswith(("http://", "https://")):
        return fetch(address, _cache() / _name_in_cache(spec.weights), stated, where)
    path = find_weights_file(spec)
    if isinstance(path, RemotePath):
        info = path.fs.get_file_info(path.key)
        target = _cache() / _name_in_cache(f"{path.uri}?{info.size}-{info.mtime_ns}#{stated}")
        return _fetched(target, stated, lambda part: _copy(path, part), where)
    return path


def torchvision_file(name: str, weights: str) -> Path:
    """torchvision's weights of that name, in torch's own cache; raises ModelError."""
    from torchvision import models

    known = models.get_model_weights(name)
    try:
        entry = known[weights]
    except KeyError:
        names = ["DEFAULT", *(w.name for w in known)]
        raise ModelError(
            f"model.weights: {weights}",
            f"{name} has none of that name",
            f"give {', '.join(names)}, a file, or none",
        ) from None
    file = entry.url.rpartition("/")[2]
    in_name = _HASH_IN_NAME.search(file)
    return fetch(
        entry.url, _cache() / file, in_name and in_name.group(1), f"model.weights: {weights}"
    )


def torchvision_images(name: str, weights: str) -> ExpectedImages | None:
    """How torchvision's weights want their images; those of a file of ours are taken for the
    default ones.
    """
    from torchvision import models

    known = models.get_model_weights(name)
    if not len(known):
        return None
    how = (known[weights] if weights in known.__members__ else known.DEFAULT).transforms()
    return ExpectedImages(tuple(how.mean), tuple(how.std), how.interpolation.value)


def delivered_images(spec: Model) -> ExpectedImages | None:
    """How the weights of a model that raysft has delivered want their images; None for any
    others.
    """
    file = find_weights_file(spec)
    card = file.parent / "model.json" if file is not None else None
    if card is None or not card.is_file():
        return None
    try:
        stored = read_json(card)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.weights: {spec.weights}",
            f"the model.json beside it cannot be read ({error})",
            "restore it, or move the weights to a folder without one",
        ) from None
    return ExpectedImages(tuple(stored["mean"]), tuple(stored["std"]), stored["interpolation"])


# --- fetching ----------------------------------------------------------------------------------


def fetch(url: str, target: Path, expected: str | None, where: str) -> Path:
    """Download a file once for all processes of this machine; raises ModelError.

    Refused and removed is what is shorter than the server said, or whose SHA-256 does not begin as
    `expected`.
    """
    return _fetched(target, expected, lambda part: _download(url, part), where)


def _fetched(target: Path, expected: str | None, get: Callable[[Path], None], where: str) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # One worker of a machine fetches, the others find it.
        with locked(target.with_name(f"{target.name}.lock")):
            if not target.is_file():
                part = target.with_name(f"{target.name}.part")
                try:
                    get(part)
                    if expected is not None and not sha256(part).startswith(expected.lower()):
                        raise OSError(f"its SHA-256 does not begin with {expected}")
                    part.replace(target)
                finally:
                    part.unlink(missing_ok=True)
    except (urllib.error.URLError, OSError) as error:
        raise ModelError(
            where,
            f"cannot be downloaded ({describe_error(error)})",
            f"put it at {target}, give a file, or weights: none",
        ) from None
    return target


def _download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=SILENCE_S) as answer, target.open("wb") as file:
        shutil.copyfileobj(answer, file, BLOCK)
        length = answer.headers.get("Content-Length")
        if length is not None and file.tell() != int(length):
            raise OSError(f"the connection ended after {file.tell():,} of {int(length):,} bytes")


def _copy(source: RemotePath, target: Path) -> None:
    with source.fs.open_input_stream(source.key) as stream, target.open("wb") as file:
        shutil.copyfileobj(stream, file, 8 * BLOCK)


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _name_in_cache(uri: str) -> str:
    """A name of its own for every URI: many files are called model.safetensors."""
    name = urllib.parse.urlsplit(uri).path.rpartition("/")[2]
    return f"raysft-{hashlib.sha256(uri.encode()).hexdigest()[:12]}-{name}"


# --- reading -----------------------------------------------------------------------------------


def read_fetched(path: Path, own: Tensors, spec: Model) -> Found:
    """The tensors for a network with the state dict `own`; raises ModelError.

    A file of the cache that cannot be read is removed, so that it is fetched again.
    """
    where = f"model.weights: {spec.weights}"
    try:
        content = read_checkpoint(path, where)
    except ModelError:
        if path.parent == _cache():
            path.unlink(missing_ok=True)
        raise
    return tensors_for(content, own, where)


def read_state_dict(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a file that raysft has written; raises ModelError."""
    state = read_checkpoint(path, f"model.weights: {path}")
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise ModelError(f"model.weights: {path}", "is not a state dict", "restore it from a copy")
    return state
