"""Which rows of a data set are trained on, validated on and tested on, and how they are decoded."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from raysft.data.layout import SplitName
from raysft.data.order import stratified_order
from raysft.data.shards import ImageSpec, Manifest, ShardFile, Split, read_labels
from raysft.errors import DataError
from raysft.storage import StoragePath

MIXED_SIZE = 224  # what networks see of images of mixed sizes: most pretrained weights saw that


@dataclass(frozen=True)
class SplitSource:
    """Which rows of which shards make up a split, and the size they are decoded to."""

    folder: StoragePath
    files: tuple[ShardFile, ...]
    spec: ImageSpec
    ids: np.ndarray
    height: int
    width: int
    class_rows: tuple[int, ...]
    """Rows of each class."""
    counts: tuple[int, ...] = ()
    """How many of `ids` each file holds."""
    resampling: str = "bilinear"
    """How stored images are scaled to that size: nearest | bilinear | bicubic."""
    unsorted: np.ndarray | None = None
    """`ids` in the order of the rows in the files, where that is another one."""

    @property
    def ids_of_files(self) -> list[np.ndarray]:
        """Of `ids` those in each file, in the order of its rows; views."""
        in_files = self.ids if self.unsorted is None else self.unsorted
        return np.split(in_files, np.cumsum(self.counts)[:-1])

    @property
    def nbytes(self) -> int:
        """Size of the decoded images."""
        return len(self.ids) * self.height * self.width * 3


@dataclass(frozen=True)
class NetworkInputs:
    """What the networks of all trials of a run ask for."""

    image_sizes: Set[int | None] = frozenset({None})
    """Heights and widths that they see, None for one that takes images as they are."""
    interpolations: Set[str | None] = frozenset({None})
    """How images are scaled to that, None for one that names none."""


def choose_rows(
    ids: np.ndarray, labels: np.ndarray, val_rows: int, limit: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(train ids, val ids), sorted: the first `limit` rows of a stratified order, split in two."""
    chosen = stratified_order(labels, seed)[:limit]
    again = stratified_order(labels[chosen], seed + 1)
    val = chosen[again[:val_rows]]
    train = chosen[again[val_rows:]]
    return np.sort(ids[train]), np.sort(ids[val])


def split_sources(
    folder: StoragePath,
    manifest: Manifest,
    val_rows: int,
    limit: int | None,
    seed: int,
    inputs: NetworkInputs = NetworkInputs(),
) -> dict[SplitName, SplitSource]:
    """The three splits of a data set; val is taken from train where the data set has none."""
    size = decoded_size(manifest.image, inputs.image_sizes)
    resampling = choose_resampling(manifest.image, size, inputs.interpolations)
    train = _StoredSplit.read(folder, manifest.splits["train"])
    test = _StoredSplit.read(folder, manifest.splits["test"])
    stored_val = manifest.splits.get("val")
    if stored_val is None:
        val = train
        train_ids, val_ids = choose_rows(train.ids, train.labels, val_rows, limit, seed)
    else:
        val = _StoredSplit.read(folder, stored_val)
        train_ids, _ = choose_rows(train.ids, train.labels, 0, limit, seed)
        val_ids = val.ids

    def source(stored: _StoredSplit, chosen: np.ndarray) -> SplitSource:
        chosen = np.sort(chosen)
        found = is_among(stored.ids, chosen)
        in_files = stored.ids[found]
        class_rows = np.bincount(stored.labels[found], minlength=len(manifest.classes))
        return SplitSource(
            folder,
            stored.split.files,
            manifest.image,
            chosen,
            height=size[0],
            width=size[1],
            class_rows=tuple(class_rows.tolist()),
            counts=stored.count_by_file(found),
            resampling=resampling,
            # A second array of millions of ids only where it is needed.
            unsorted=None if np.array_equal(in_files, chosen) else in_files,
        )

    return {
        "train": source(train, train_ids),
        "val": source(val, val_ids),
        "test": source(test, test.ids),
    }


@dataclass(frozen=True)
class _StoredSplit:
    """A split with the ids and labels of its rows, in the order of its shards."""

    split: Split
    ids: np.ndarray
    labels: np.ndarray

    @classmethod
    def read(cls, folder: StoragePath, split: Split) -> _StoredSplit:
        """Reads no images."""
        ids, labels = read_labels(folder, split)
        return cls(split, ids, labels)

    def count_by_file(self, chosen: np.ndarray) -> tuple[int, ...]:
        """How many of the `chosen` rows (a mask) each file holds."""
        ends = np.cumsum([file.rows for file in self.split.files])[:-1]
        return tuple(int(part.sum()) for part in np.split(chosen, ends))


def is_among(ids: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Which of `ids` are among the `chosen` ones, which are sorted."""
    at = np.searchsorted(chosen, ids)
    # An id behind the last chosen one is looked for at the last place, and `at` tells it apart.
    nearest = chosen[np.minimum(at, len(chosen) - 1)]
    found: np.ndarray = (at < len(chosen)) & (nearest == ids)
    return found


def decoded_size(spec: ImageSpec, image_sizes: Set[int | None]) -> tuple[int, int]:
    """(height, width) of decoded images, of which the workers make what their networks see.

    image_sizes: those of all networks, None for one that takes images as they are.
    """
    sizes = {size or default_image_size(spec) for size in image_sizes} or {None}
    named = [size for size in sizes if size is not None]
    if spec.encoding != "raw":
        # Images of mixed sizes get the largest, of which the smaller ones are made.
        return max(named), max(named)
    height, width = spec.shape[:2]
    if None in sizes:
        return height, width
    # Images that are smaller than what any network sees stay as they are, which saves memory.
    side = min(max(named), height, width)
    return side, side


def choose_resampling(
    spec: ImageSpec, size: tuple[int, int], interpolations: Set[str | None]
) -> str:
    """How images are scaled when they are decoded: as the job says, else bilinear.

    Raises DataError where trials differ in it and images have to be scaled, which is done once for
    all trials.
    """
    if spec.encoding == "raw" and spec.shape[:2] == size:
        return "bilinear"
    # A trial that names none gets what is usual, so it may differ from one that names another.
    kernels = {each or "bilinear" for each in interpolations}
    if len(kernels) > 1:
        raise DataError(
            "model.interpolation",
            "differs between trials, but images of these sizes are scaled once for all of them",
            "name one in model.interpolation, and none in search.space",
        )
    return next(iter(kernels), "bilinear")


def default_image_size(spec: ImageSpec) -> int | None:
    """Height and width of what a network sees that asks for none; None: as stored."""
    return None if spec.encoding == "raw" else MIXED_SIZE
