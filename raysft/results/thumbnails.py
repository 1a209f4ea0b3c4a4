"""Small pictures of a data set's images as data URIs, found by row id without reading more shards
than needed.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from raysft.data.decoding import Decoding
from raysft.data.images import stored_rgb
from raysft.data.shards import Manifest, ShardFile, read_manifest, read_table, unpack_rows
from raysft.errors import DataError
from raysft.records.documents import DataDocument
from raysft.storage import StoragePath, storage_path

PIXELS = 96
ENLARGED_PIXELS = (
    48  # images up to this are enlarged by the browser, pixel by pixel, and so must not lose any
)
JPEG_QUALITY = 75
MOST_SAMPLES, MOST_OF_A_CLASS, MOST_CLASSES = 72, 8, 24
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


@dataclass(frozen=True, eq=False)
class _Shard:
    """A shard with the ids and labels of its rows, (n,) each."""

    file: ShardFile
    ids: np.ndarray
    labels: np.ndarray

    def gives(self, missing: Mapping[int, int]) -> int:
        """How many of the samples that are missing of each class it holds."""
        labels, rows = np.unique(self.labels, return_counts=True)
        return sum(
            min(n, missing.get(label, 0))
            for label, n in zip(labels.tolist(), rows.tolist(), strict=True)
        )

    def spread(self, label: int, number: int) -> list[int]:
        """The ids of up to so many rows of a class, from its first to its last."""
        ids = self.ids[self.labels == label]
        return (
            ids[np.unique(np.linspace(0, len(ids) - 1, number).astype(int))].tolist()
            if len(ids)
            else []
        )


class Images:
    """The images of the data set that a run was trained on."""

    def __init__(self, data: DataDocument) -> None:
        """data: what run.json says of it. Raises DataError or UserError where it is not there, or
        another by now.
        """
        self.folder: StoragePath = storage_path(data["path"])
        self.manifest: Manifest = read_manifest(self.folder)
        if self.manifest.fingerprint != data["fingerprint"]:
            raise DataError(str(self.folder), "is not the data that the run was trained on")
        self._shards: dict[str, list[_Shard]] = {}

    def counts(self, split: str) -> list[int]:
        """Stored images of each class."""
        labels = np.concatenate([shard.labels for shard in self._index(split)])
        return np.bincount(labels, minlength=len(self.manifest.classes)).tolist()

    def samples(self, split: str) -> dict[int, list[Thumbnail]]:
        """A few images of each class by its number, of as many classes as a few shards and the
        report have room for.
        """
        classes = min(len(self.manifest.classes), MOST_CLASSES)
        each = min(MOST_OF_A_CLASS, MOST_SAMPLES // classes)
        chosen: dict[int, list[int]] = {}
        missing = dict.fromkeys(range(classes), each)
        shards = list(self._index(split))
        for _ in range(min(MOST_SHARDS, len(shards))):
            shard = max(shards, key=lambda s: s.gives(missing))
            if not shard.gives(missing):
                break
            shards.remove(shard)
            for label in [label for label, number in missing.items() if number]:
                ids = shard.spread(label, missing[label])
                chosen[label] = [*chosen.get(label, []), *ids]
                missing[label] -= len(ids)
        found = self.thumbnails(split, [i for ids in chosen.values() for i in ids])
        return {label: [found[i] for i in ids] for label, ids in sorted(chosen.items()) if ids}

    def thumbnails(self, split: str, ids: Iterable[int]) -> dict[int, Thumbnail]:
        """Small pictures of some rows; raises DataError where a shard is damaged."""
        wanted = np.array(sorted(set(ids)), np.int64)
        found: dict[int, Thumbnail] = {}
        for shard in self._index(split):
            at = np.flatnonzero(np.isin(shard.ids, wanted))
            if not len(at):
                continue
            _, images, _ = unpack_rows(
                read_table(self.folder, shard.file).take(at), self.manifest.image
            )
            how = self.manifest.image.decoding
            found |= {
                int(shard.ids[i]): thumbnail(image, how)
                for i, image in zip(at, images, strict=True)
            }
        return found

    def _index(self, split: str) -> list[_Shard]:
        """The shards of a split with the ids and labels of their rows, read once, without the
        images.
        """
        if split not in self._shards:
            self._shards[split] = []
            for file in self.manifest.splits[split].files:
                table = read_table(self.folder, file, ["id", "label"])
                self._shards[split].append(
                    _Shard(file, table["id"].to_numpy(), table["label"].to_numpy())
                )
        return self._shards[split]


def thumbnail(image: np.ndarray | bytes, how: Decoding) -> Thumbnail:
    """A picture of at most 96 pixels a side of a stored image: (height, width, 3) uint8, or an
    encoded file.
    """
    whole = stored_rgb(image, "image", how)
    whole.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    kind = "PNG" if max(whole.size) <= ENLARGED_PIXELS else "JPEG"
    content = io.BytesIO()
    whole.save(content, kind, **({} if kind == "PNG" else {"quality": JPEG_QUALITY}))
    encoded = base64.b64encode(content.getvalue()).decode()
    return Thumbnail(f"data:image/{kind.lower()};base64,{encoded}", *whole.size)
