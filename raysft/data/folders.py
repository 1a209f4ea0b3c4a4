"""Images in one folder a class: their labels, their splits, and what became of every file below the
folder.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raysft.data.kinds import format_counts
from raysft.data.layout import Layout, SplitName, detect_layout, unwrap_folder
from raysft.data.names import readable
from raysft.data.order import stratified_order
from raysft.data.walk import FileCounts, count_beside, list_images
from raysft.errors import DataError

TRAIN_SHARE = 0.8  # of the images of each class, where there are no test images

Labelled = tuple[tuple[str, int], ...]  # (file, label)
ByClass = dict[str, list[Path]]


@dataclass(frozen=True)
class Folders:
    """Image files with their labels, split by split, and what is to be said of how they were
    found.
    """

    classes: tuple[str, ...]
    splits: dict[SplitName, Labelled]
    where: str
    counts: tuple[FileCounts, ...] = ()
    """Of every folder that holds files: class folders, and what lies beside them."""
    notes: tuple[str, ...] = ()

    @property
    def train(self) -> Labelled:
        """The images to train on."""
        return self.splits["train"]

    @property
    def test(self) -> Labelled:
        """The images that are tested on once."""
        return self.splits["test"]

    @classmethod
    def find(cls, root: Path, test: Path | None) -> Folders:
        """The images below `root`, with those in `test` as test images where it is given.

        Splits that lie in folders of their own are taken as they are. Where there is no test split,
        every fifth image of each class is held out of train. Raises DataError for classes and
        splits that cannot be used.
        """
        root = _folder(root)
        layout = detect_layout(root)
        roots = [root]
        if test is not None:
            given = _folder(test)
            layout = _with_test(layout, given)
            roots += [] if given.is_relative_to(root) else [given]
        read = {split: _read(layout, split) for split in layout.splits}
        classes = _classes(layout.splits["train"], read["train"])
        notes = list(layout.notes)
        for split, found in read.items():
            notes += found.notes
            notes += _missing(layout.splits[split], split, classes, found.files)
        splits = {split: _labelled(found.files, classes) for split, found in read.items()}
        if "test" not in splits:
            splits["train"], splits["test"] = _held_out(
                layout.splits["train"], classes, splits["train"]
            )
            notes.append(
                f"test held out of train: {len(splits['test']):,} images, one in five of each class"
            )
        notes += _shared_files(splits)
        return cls(
            classes,
            splits,
            str(layout.splits["train"]),
            _all_counts(roots, read.values()),
            tuple(notes),
        )

    @classmethod
    def find_labelled(cls, root: Path, split: str, classes: Collection[str]) -> Folders:
        """All images below `root` as test images, or those of one split where it holds splits;
        raises DataError.

        classes: those of the model that is to be scored on them.
        """
        root = _folder(root)
        layout = detect_layout(root, {unicodedata.normalize("NFC", name) for name in classes})
        if set(layout.splits) == {"train"}:
            split = "train"
        if split not in layout.splits:
            raise DataError(
                readable(root), f"has no split {split}", f"it has {', '.join(layout.splits)}"
            )
        found = _read(layout, split)
        folder = layout.splits[split]
        there = tuple(sorted(name for name, files in found.files.items() if files))
        if not there:
            raise DataError(
                readable(folder),
                "has no class folder with images",
                "put them into one folder a class",
            )
        labelled = _labelled(found.files, there)
        lacking = [name for name in classes if unicodedata.normalize("NFC", name) not in there]
        notes = [
            *found.notes,
            *(
                [f"no image of {join_names(lacking)}: the metrics are over the other classes"]
                if lacking
                else []
            ),
        ]
        if len(layout.splits) > 1:
            notes.insert(0, f"the split {split} alone, of {', '.join(layout.splits)}")
        return cls(
            there, {"test": labelled}, str(folder), _all_counts([folder], [found]), tuple(notes)
        )


def describe_files(counts: Iterable[FileCounts]) -> list[str]:
    """How many files were seen, used and left out, by kind, and which of them had unusual names."""
    seen = used = 0
    left_out: Counter[str] = Counter()
    unusual: Counter[str] = Counter()
    for each in counts:
        seen += each.seen
        used += each.used
        left_out.update(each.left_out)
        unusual.update(each.unusual)
    if not seen:
        return []
    rest = f", {seen - used:,} left out: {format_counts(left_out)}" if left_out else ""
    lines = [f"{seen:,} files seen, {used:,} used{rest}"]
    if unusual:
        lines.append(f"images by their contents, whatever their endings: {format_counts(unusual)}")
    return lines


# --- which folders -----------------------------------------------------------------------------


def _folder(path: Path) -> Path:
    path = path.expanduser().resolve()
    if not path.is_dir():
        raise DataError(
            readable(path),
            "is not a folder" if path.exists() else "does not exist",
            "give a folder with one folder of images a class",
        )
    return path


def _with_test(layout: Layout, given: Path) -> Layout:
    """`layout` with the test images in a folder that a person named, in place of what it has."""
    inner, notes = unwrap_folder(given)
    splits = detect_layout(inner).splits
    if set(splits) != {"train"}:
        raise DataError(
            readable(inner),
            f"holds splits itself ({', '.join(splits)})",
            "give the folder of its test images",
        )
    own = layout.splits.get("test")
    if inner == layout.splits["train"]:
        raise DataError(
            readable(inner),
            "is the folder of the training images too",
            "give another data.test_path",
        )
    if layout.inside:
        raise DataError(
            readable(layout.splits["train"]),
            "holds splits inside of its class folders",
            "leave data.test_path out, or give a folder without them",
        )
    if own is not None and own != inner:
        notes.append(f"{readable(own.name)}/ is left out: the test images are given apart")
    return replace(layout, splits={**layout.splits, "test": inner}, notes=(*layout.notes, *notes))


# --- what they hold ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """What the class folders of a split hold."""

    folders: list[Path]
    files: ByClass
    counts: list[FileCounts]
    notes: list[str]


def _read(layout: Layout, split: SplitName) -> _Split:
    """The images of each class of a split, sorted; folders whose names differ by their Unicode form
    alone are one.
    """
    found = _Split([], {}, [], [])
    for name, folder in layout.class_folders(split):
        found.folders.append(folder)
        if name in found.files:
            found.notes.append(
                f"{split}: two folders are named {name}, in two Unicode forms; they are one class"
            )
        counts = FileCounts(readable(folder))
        found.files[name] = sorted(
            [*found.files.get(name, []), *list_images(folder, counts)], key=str
        )
        found.counts.append(counts)
    return found


def _all_counts(roots: Sequence[Path], splits: Collection[_Split]) -> tuple[FileCounts, ...]:
    """The counts of all folders that hold files: those of classes, then what lies beside them."""
    taken: set[Path] = set()
    found: list[FileCounts] = []
    for split in splits:
        taken.update(split.folders)
        found += split.counts
    for root in roots:
        found += count_beside(root, taken)
    return tuple(counts for counts in found if counts.seen)


def _classes(root: Path, split: _Split) -> tuple[str, ...]:
    """The classes of the training images in sorted order; raises DataError for no, one or an empty
    class.
    """
    files = split.files
    if not files:
        raise DataError(
            readable(root), "has no class folders", "put the images into one folder a class"
        )
    if len(files) == 1:
        raise DataError(
            readable(root),
            f"has a single class ({next(iter(files))})",
            "give at least two class folders",
        )
    for name, of_class in files.items():
        if not of_class:
            left_out = next(
                (each.left_out for each in split.counts if each.folder == readable(root / name)), {}
            )
            held = f": its files are {format_counts(left_out)}" if left_out else ""
            raise DataError(
                readable(root / name), f"has no images{held}", "add some, or remove the folder"
            )
    return tuple(sorted(files))


def _missing(root: Path, split: SplitName, classes: Sequence[str], files: ByClass) -> list[str]:
    """A note on the classes of which a split has no image; raises DataError for images of other
    classes.
    """
    extra = sorted(name for name, of_class in files.items() if of_class and name not in classes)
    lacking = [name for name in classes if not files.get(name)]
    if extra:
        also = f"; it lacks {join_names(lacking)}" if lacking else ""
        raise DataError(
            readable(root),
            f"has classes that the training images lack: {join_names(extra)}{also}",
            "rename or remove them, or add training images of them",
        )
    if len(lacking) == len(classes):
        raise DataError(readable(root), f"has no {split} image", "add some, or remove the folder")
    if not lacking:
        return []
    return [
        f"{split} has no image of {join_names(lacking)}: its metrics are over the other classes"
    ]


def join_names(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many more there are."""
    shown = ", ".join(map(readable, names[:most]))
    if len(names) <= most:
        return shown
    return f"{shown} and {len(names) - most} more"


def _labelled(files: ByClass, classes: Sequence[str]) -> Labelled:
    found = []
    for label, name in enumerate(classes):
        for path in files.get(name, []):
            found.append((str(path), label))
    return tuple(found)


def _held_out(root: Path, classes: Sequence[str], files: Labelled) -> tuple[Labelled, Labelled]:
    """(train, test): every fifth image of each class held out; DataError for a small class."""
    labels = np.array([label for _, label in files])
    order = stratified_order(labels, seed=0)
    chosen = set(order[: round(len(files) * TRAIN_SHARE)].tolist())
    for label, name in enumerate(classes):
        of_class = np.flatnonzero(labels == label).tolist()
        if chosen.issuperset(of_class):
            raise DataError(
                readable(root / name),
                f"has too few images ({len(of_class)}) to hold one out",
                "add some, or give the test images in a folder of their own",
            )
    # In the order of the files, as they are where a folder has a test split of its own.
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for index, file in enumerate(files):
        (train if index in chosen else test).append(file)
    return tuple(train), tuple(test)


def _shared_files(splits: Mapping[SplitName, Labelled]) -> list[str]:
    """Notes on images that are in two splits, or in two classes of one, as links to one file."""
    first: dict[tuple[int, int], tuple[SplitName, int]] = {}
    shared: Counter[str] = Counter()
    for split, files in splits.items():
        for file, label in files:
            # Links to one file are told by it; copies of it would have to be read.
            status = os.stat(file)
            identity = (status.st_dev, status.st_ino)
            first_split, first_label = first.setdefault(identity, (split, label))
            if first_split != split:
                shared[f"images of {split} are in {first_split} too"] += 1
            elif first_label != label:
                shared[f"images of {split} are in two classes"] += 1
    return [f"{n:,} {what}, as links to the same files" for what, n in shared.items()]
