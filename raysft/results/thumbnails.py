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
# Images up to this are enlarged by the browser, pixel by pixel, and so must not lose any.
ENLARGED_PIXELS = 48
JPEG_QUALITY = 75
# Pictures must not outweigh the page that they are shown in.
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
        found = 0
        for label, n in zip(labels.tolist(), rows.tolist(), strict=True):
            found += min(n, missing.get(label, 0))
        return found

    def spread(self, label: int, number: int) -> list[int]:
        """The ids of up to so many rows of a class, from its first to its last."""
        ids = self.ids[self.labels == label]
        if not len(ids):
            return []
        # Neighbours are often alike (frames of one film), rows far apart seldom.
        at = np.linspace(0, len(ids) - 1, number).astype(int)
        chosen: list[int] = ids[np.unique(at)].tolist()
        return chosen


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
        counts: list[int] = np.bincount(labels, minlength=len(self.manifest.classes)).tolist()
        return counts

    def samples(self, split: str) -> dict[int, list[Thumbnail]]:
        """A few images of each class by its number, of as many classes as a few shards and the
        report have room for.
        """
        classes = min(len(self.manifest.classes), MOST_CLASSES)
        each = min(MOST_OF_A_CLASS, MOST_SAMPLES // classes)
        chosen = self._choose(split, dict.fromkeys(range(classes), each))
        # All of them at once, so that each shard is read once.
        found = self.thumbnails(split, [i for ids in chosen.values() for i in ids])
        samples: dict[int, list[Thumbnail]] = {}
        for label, ids in sorted(chosen.items()):
            if ids:
                samples[label] = [found[i] for i in ids]
        return samples

    def _choose(self, split: str, missing: dict[int, int]) -> dict[int, list[int]]:
        """Ids of rows of each class; missing: how many of each class are wanted."""
        chosen: dict[int, list[int]] = {}
        shards = list(self._index(split))
        # Shards of sorted data hold a class or two each. Whichever gives most comes next: a few
        # shards are enough, where the first ones might have one class only.
        for _ in range(min(MOST_SHARDS, len(shards))):
            shard = max(shards, key=lambda s: s.gives(missing))
            # Nothing more is to be had: a class may have fewer images than wanted.
            if not shard.gives(missing):
                break
            shards.remove(shard)
            for label, number in list(missing.items()):
                if number:
                    ids = shard.spread(label, number)
                    chosen[label] = [*chosen.get(label, []), *ids]
                    missing[label] -= len(ids)
        return chosen

    def thumbnails(self, split: str, ids: Iterable[int]) -> dict[int, Thumbnail]:
        """Small pictures of some rows; raises DataError where a shard is damaged."""
        wanted = np.array(sorted(set(ids)), np.int64)
        decoding = self.manifest.image.decoding
        found: dict[int, Thumbnail] = {}
        for shard in self._index(split):
            at = np.flatnonzero(np.isin(shard.ids, wanted))
            if not len(at):
                continue
            # A few rows of a shard are wanted, and only they are decoded.
            table = read_table(self.folder, shard.file).take(at)
            _, images, _ = unpack_rows(table, self.manifest.image)
            for i, image in zip(at, images, strict=True):
                found[int(shard.ids[i])] = make_thumbnail(image, decoding)
        return found

    def _index(self, split: str) -> list[_Shard]:
        """The shards of a split with the ids and labels of their rows, read once, without the
        images.
        """
        if split not in self._shards:
            self._shards[split] = []
            for file in self.manifest.splits[split].files:
                # Without the images, which are nearly all of a shard.
                table = read_table(self.folder, file, ["id", "label"])
                self._shards[split].append(
                    _Shard(file, table["id"].to_numpy(), table["label"].to_numpy())
                )
        return self._shards[split]


def make_thumbnail(image: np.ndarray | bytes, decoding: Decoding) -> Thumbnail:
    """A picture of at most 96 pixels a side of a stored image: (height, width, 3) uint8, or an
    encoded file.
    """
    whole = stored_rgb(image, "image", decoding)
    whole.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    # JPEG blurs the pixels of a tiny image, whose PNG is small anyway.
    if max(whole.size) <= ENLARGED_PIXELS:
        kind = "png"
        whole.save(content, "PNG")
    else:
        kind = "jpeg"
        whole.save(content, "JPEG", quality=JPEG_QUALITY)
    encoded = base64.b64encode(content.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{encoded}", *whole.size)
