"""Small pictures of a data set's images as data URIs, found by row id without reading more shards than needed."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from raysft.data.images import open_rgb
from raysft.data.shards import Manifest, ShardFile, columns, read_manifest, read_table
from raysft.errors import DataError
from raysft.storage import Place, place

PIXELS = 96
ENLARGED_PIXELS = 48  # images up to this are enlarged by the browser, pixel by pixel, and so must not lose any
JPEG_QUALITY = 80
MOST_SAMPLES, MOST_OF_A_CLASS, MOST_CLASSES = 96, 8, 32
MOST_SHARDS = 12  # that samples are looked for in


@dataclass(frozen=True)
class Thumbnail:
    """A data URI with its size in pixels."""

    uri: str
    width: int
    height: int

    @property
    def tiny(self) -> bool:
        """Whether its pixels are to be seen one by one."""
        return max(self.width, self.height) <= ENLARGED_PIXELS


@dataclass(frozen=True)
class _Shard:
    file: ShardFile
    ids: np.ndarray
    labels: np.ndarray


class Images:
    """The images of the data set that a run was trained on."""

    def __init__(self, data: dict[str, Any]) -> None:
        """data: what run.json says of it. Raises DataError or UserError where it is not there, or another by now."""
        self.folder: Place = place(data["path"])
        self.manifest: Manifest = read_manifest(self.folder)
        if self.manifest.fingerprint != data["fingerprint"]:
            raise DataError(str(self.folder), "is not the data that the run was trained on")
        self._shards: dict[str, list[_Shard]] = {}

    def counts(self, split: str) -> list[int]:
        """Stored images of each class."""
        labels = np.concatenate([shard.labels for shard in self._index(split)])
        return np.bincount(labels, minlength=len(self.manifest.classes)).tolist()

    def samples(self, split: str) -> dict[int, list[Thumbnail]]:
        """A few images of each class by its number, of as many classes as a few shards and the report have room for."""
        classes = min(len(self.manifest.classes), MOST_CLASSES)
        each = min(MOST_OF_A_CLASS, MOST_SAMPLES // classes)
        left, chosen = set(range(classes)), {}
        for _ in range(MOST_SHARDS):
            shard = max(self._index(split), key=lambda s: _room(s, left, each))
            if not (here := left & set(shard.labels.tolist())):
                break
            for label in here:
                ids = shard.ids[shard.labels == label]
                chosen[label] = ids[np.unique(np.linspace(0, len(ids) - 1, each).astype(int))].tolist()
            left -= chosen.keys()
        found = self.thumbnails(split, [i for ids in chosen.values() for i in ids])
        return {label: [found[i] for i in ids] for label, ids in sorted(chosen.items())}

    def thumbnails(self, split: str, ids: Iterable[int]) -> dict[int, Thumbnail]:
        """Small pictures of some rows; raises DataError where a shard is damaged."""
        wanted = np.array(sorted(set(ids)), np.int64)
        found: dict[int, Thumbnail] = {}
        for shard in self._index(split):
            at = np.flatnonzero(np.isin(shard.ids, wanted))
            if not len(at):
                continue
            _, images, _ = columns(read_table(self.folder, shard.file).take(at), self.manifest.image)
            found |= {int(shard.ids[i]): thumbnail(image) for i, image in zip(at, images, strict=True)}
        return found

    def _index(self, split: str) -> list[_Shard]:
        """The shards of a split with the ids and labels of their rows, read once, without the images."""
        if split not in self._shards:
            self._shards[split] = []
            for file in self.manifest.splits[split].files:
                table = read_table(self.folder, file, ["id", "label"])
                self._shards[split].append(_Shard(file, table["id"].to_numpy(), table["label"].to_numpy()))
        return self._shards[split]


def _room(shard: _Shard, left: set[int], each: int) -> int:
    """How many samples of classes that have none yet a shard could give."""
    labels, rows = np.unique(shard.labels, return_counts=True)
    return sum(min(n, each) for label, n in zip(labels.tolist(), rows.tolist(), strict=True) if label in left)


def thumbnail(image: np.ndarray | bytes) -> Thumbnail:
    """A picture of at most 96 pixels a side of a stored image: (height, width, 3) uint8, or an encoded file."""
    whole = open_rgb(image) if isinstance(image, bytes) else Image.fromarray(image)
    whole.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    kind = "PNG" if max(whole.size) <= ENLARGED_PIXELS else "JPEG"
    content = io.BytesIO()
    whole.save(content, kind, **({} if kind == "PNG" else {"quality": JPEG_QUALITY}))
    encoded = base64.b64encode(content.getvalue()).decode()
    return Thumbnail(f"data:image/{kind.lower()};base64,{encoded}", *whole.size)
