"""Which folders below a root are splits and which are classes, told by their names and by what they
hold.

People bring ROOT/CLASS/IMAGE, ROOT/train/CLASS/IMAGE with all kinds of names for the splits,
archives with one folder around everything, and class folders beside a folder of test images. What
is recognised is said; what looks like splits and cannot be told apart is an error, for a classifier
of "train" against "val" looks like any other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raysft.data.names import readable
from raysft.data.walk import images_directly_in, is_skipped
from raysft.errors import DataError

SplitName = Literal["train", "val", "test"]

SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validate", "validation", "validations", "dev", "eval", "evaluation"),
    "test": ("test", "tests", "testing", "tst", "holdout", "heldout"),
}
WRAPPERS = 8  # folders around everything that are looked into; a link to itself would have no end

_SPLIT_OF: dict[str, SplitName] = {
    name: split for split, names in SPLIT_NAMES.items() for name in names
}
_FILLERS = frozenset(
    {
        "set",
        "data",
        "dataset",
        "images",
        "image",
        "imgs",
        "img",
        "photos",
        "pictures",
        "split",
        "folder",
        "files",
        "samples",
    }
)
_GLUED = re.compile(
    rf"({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(set|data|images|imgs)"
)


@dataclass(frozen=True)
class Layout:
    """The folder that holds the class folders of each split, and what a person has to know of how
    it was found.
    """

    splits: dict[SplitName, Path]
    notes: tuple[str, ...] = ()
    inside: dict[SplitName, tuple[Path, ...]] = field(default_factory=dict)
    """Where splits lie inside of class folders (CLASS/SPLIT/IMAGE): those folders, each named after
    its split.
    """

    def class_folders(self, split: SplitName) -> list[tuple[str, Path]]:
        """(name, folder) of each class of a split; folders that hold, or are, another split are no
        classes of it.
        """
        if self.inside:
            return [(class_name(folder.parent), folder) for folder in self.inside[split]]
        others = [path for name, path in self.splits.items() if name != split]
        return [
            (class_name(folder), folder)
            for folder in folders_in(self.splits[split])
            if not any(other.is_relative_to(folder) for other in others)
        ]


def detect_layout(root: Path, evaluated: Collection[str] | None = None) -> Layout:
    """What the folders below `root` are; raises DataError where they look like splits that cannot
    be used.

    evaluated: the classes of a model that is to be scored on them; then there need not be a split
    to train on.
    """
    inner, notes = unwrap_folder(root, known=evaluated or ())
    folders = list(folders_in(inner))
    splits = _recognised(inner, folders, evaluated is not None)
    if splits:
        rest = [folder for folder in folders if folder not in splits.values()]
        inside: list[str] = []
        for split, folder in splits.items():
            splits[split], found = unwrap_folder(folder, True, evaluated or ())
            inside += found
            _refuse_nested(splits[split], list(folders_in(splits[split])))
        taken = ", ".join(
            f"{split} from {readable(path.relative_to(inner))}/" for split, path in splits.items()
        )
        beside = [f"left out, as neither a split nor a class: {_listed(rest)}"] if rest else []
        return Layout(splits, (*notes, *inside, taken, *beside))
    inside_classes = _inside_classes(inner, folders)
    if inside_classes:
        taken = ", ".join(
            f"{split} from {_listed(paths, 2, inner)}" for split, paths in inside_classes.items()
        )
        return Layout(dict.fromkeys(inside_classes, inner), (*notes, taken), inside_classes)
    held_apart = _beside_classes(inner, folders)
    if held_apart:
        taken = ", ".join(
            f"{split} from {readable(path.name)}/" for split, path in held_apart.items()
        )
        return Layout(
            {"train": inner, **held_apart},
            (*notes, f"{taken}, train from the class folders beside it"),
        )
    _refuse_splits_as_classes(inner, folders)
    _refuse_nested(inner, folders)
    return Layout({"train": inner}, (*notes, *_suspicious(inner, folders)))


def class_name(folder: Path) -> str:
    """The name of a class folder, with é as one code point however the disk has it; raises
    DataError.

    A name that is not UTF-8 could stand in no JSON, table or report.
    """
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        raw = folder.name.encode("utf-8", "surrogateescape")
        raise DataError(
            readable(folder),
            f"is not named in UTF-8; in Latin-1 it reads {raw.decode('latin-1')!r}",
            "rename the folder",
        ) from None
    return unicodedata.normalize("NFC", folder.name)


def folders_in(root: Path) -> Iterator[Path]:
    """The folders in a folder in the order of their names, links to folders too, but none of a
    system's own.
    """
    try:
        found = sorted(path for path in root.iterdir() if not is_skipped(path.name))
    except OSError as error:
        raise DataError(readable(root), f"cannot be read ({error.strerror})") from None
    for path in found:
        if path.is_dir():
            yield path


def unwrap_folder(
    root: Path, is_split: bool = False, known: Collection[str] = ()
) -> tuple[Path, list[str]]:
    """`root`, or the folder inside it where that is the only one and holds folders of its own, and
    a note on it.

    A folder that is named like a split is one, and not looked into, but inside another split
    (seg_train/seg_train). One that is named like a `known` class is that class.
    """
    inner = root
    for _ in range(WRAPPERS):
        folders = list(folders_in(inner))
        if len(folders) != 1 or (parse_split_name(folders[0].name) is not None and not is_split):
            break
        if unicodedata.normalize("NFC", folders[0].name) in known:
            break
        if any(images_directly_in(inner)) or not any(folders_in(folders[0])):
            break
        if any(images_directly_in(folders[0])):  # a class with folders of its own
            break
        inner = folders[0]
    if inner == root:
        return root, []
    return inner, [
        f"read from {readable(inner.relative_to(root))}/, the only folder in {readable(root.name)}/"
    ]


def parse_split_name(name: str) -> tuple[SplitName, tuple[str, ...]] | None:
    """(split, other words of the name) where one word of a folder's name is a usual name of a
    split.

    "Training", "test_set", "valset" and "train2017" have no other words; "seg_train" has ("seg",).
    """
    words = []
    for word in re.split(r"[\W_\d]+", name.casefold()):
        # "trainset" is the word train.
        glued = _GLUED.fullmatch(word)
        if word:
            words.append(glued.group(1) if glued else word)
    named = [word for word in words if word in _SPLIT_OF]
    if [_SPLIT_OF[word] for word in named] == ["train", "val"]:  # train_val
        named = named[:1]
    if len(named) != 1:
        return None
    other = tuple(word for word in words if word not in _SPLIT_OF and word not in _FILLERS)
    return _SPLIT_OF[named[0]], other


def _recognised(root: Path, folders: Sequence[Path], evaluated: bool) -> dict[SplitName, Path]:
    """The folders that are the splits of one data set: train, and another one or nothing else
    beside it.

    Their names may share other words (seg_train, seg_test). A folder without class folders is no
    split that could be used. Raises DataError where two have the name of the same split, or there
    is none to train on.
    """
    named: dict[tuple[str, ...], list[tuple[SplitName, Path]]] = {}
    flat: list[Path] = []
    for folder in folders:
        found = parse_split_name(folder.name)
        if found is None:
            continue
        if any(folders_in(folder)):
            named.setdefault(found[1], []).append((found[0], folder))
        elif not found[1]:
            flat.append(folder)
    for words, members in sorted(named.items()):
        kinds = {split for split, _ in members}
        alone = len(members) + len(flat) == len(folders) and not words
        if ("train" in kinds and (len(kinds) > 1 or alone)) or (evaluated and alone):
            _refuse_twins(root, members)
            return {
                split: folder
                for wanted in SPLIT_NAMES
                for split, folder in members
                if split == wanted
            }
        if alone and len(members) > 1:
            raise DataError(
                readable(root),
                f"has no folder to train on beside {_listed([f for _, f in members])}",
                "name it train",
            )
    return {}


def _refuse_twins(root: Path, members: Sequence[tuple[SplitName, Path]]) -> None:
    for split in SPLIT_NAMES:
        twins = [folder for found, folder in members if found == split]
        if len(twins) > 1:
            raise DataError(
                readable(root),
                f"has several folders for {split}: {_listed(twins)}",
                "keep one of them there, or give data.path and data.test_path",
            )


def _beside_classes(root: Path, folders: Sequence[Path]) -> dict[SplitName, Path]:
    """Folders named like a split that lie beside class folders and hold folders of the same
    classes.

    Raises DataError where that is a folder to train on: the classes beside it would be trained on
    twice, or not at all.
    """
    found: dict[SplitName, Path] = {}
    for folder in folders:
        named = parse_split_name(folder.name)
        if named is None or named[1]:
            continue
        others = {
            class_name(other)
            for other in folders
            if other is not folder and parse_split_name(other.name) is None
        }
        inside = {class_name(each) for each in folders_in(folder)}
        if not others & inside:
            continue
        if named[0] == "train":
            raise DataError(
                readable(root),
                f"has classes both in {readable(folder.name)}/ and beside it",
                "give the folder that is to be trained on as data.path",
            )
        if named[0] in found:
            _refuse_twins(root, [(named[0], found[named[0]]), (named[0], folder)])
        found[named[0]] = folder
    return found


def _inside_classes(root: Path, folders: Sequence[Path]) -> dict[SplitName, tuple[Path, ...]]:
    """The folders of each split where every class folder holds folders of splits alone, one of them
    to train on.
    """
    found: dict[SplitName, list[Path]] = {}
    for folder in folders:
        members = [(parse_split_name(each.name), each) for each in folders_in(folder)]
        named = [(split[0], each) for split, each in members if split is not None and not split[1]]
        if (
            len(named) != len(members)
            or "train" not in dict(named)
            or any(images_directly_in(folder))
        ):
            return {}
        _refuse_twins(folder, named)
        for split, each in named:
            found.setdefault(split, []).append(each)
    # A single split inside of every class is a folder around its images.
    if len(found) < 2:
        return {}
    return {split: tuple(found[split]) for split in SPLIT_NAMES if split in found}


def _refuse_nested(root: Path, folders: Sequence[Path]) -> None:
    """Raise DataError where a folder beside class folders is none of them by what it holds.

    Images of a split among the classes of another would be trained on, under the name of the split
    or of their class.
    """
    names = {class_name(folder) for folder in folders}
    for folder in folders:
        inside = list(folders_in(folder))
        kinds = {
            found[0]
            for each in inside
            if (found := parse_split_name(each.name)) is not None and not found[1]
        }
        if "train" in kinds and len(kinds) > 1:
            raise DataError(
                readable(folder),
                f"holds {_listed(inside)} as splits, and not all class folders beside it "
                "do so and nothing else",
                "give all of them the same folders, or move the splits outside: SPLIT/CLASS/IMAGE",
            )
        if any(images_directly_in(folder)):
            continue
        again = sorted(names & {class_name(each) for each in inside})
        if again:
            raise DataError(
                readable(folder),
                f"holds folders with names of the classes beside it ({', '.join(again)})",
                "name it train, val or test and put it beside the training folder, or move it away",
            )
        named = parse_split_name(folder.name)
        if named is not None and not named[1] and len(inside) > 1:
            raise DataError(
                readable(folder),
                f"has the name of a split and holds {_listed(inside)}, beside "
                f"{_listed([other for other in folders if other != folder])}, which are no splits",
                "give it as data.path or data.test_path, or another name where it is a class",
            )


def _refuse_splits_as_classes(root: Path, folders: Sequence[Path]) -> None:
    """Raise DataError where every folder has the name of a split, and several splits are named."""
    named = [parse_split_name(folder.name) for folder in folders]
    kinds = {found[0] for found in named if found is not None and not found[1]}
    if len(kinds) > 1 and None not in named:
        raise DataError(
            readable(root),
            f"holds {_listed(folders)}, which look like splits, without class folders in them",
            "put the images into one folder a class, SPLIT/CLASS/IMAGE",
        )


def _suspicious(root: Path, folders: Sequence[Path]) -> list[str]:
    """A note where no class folder has images of its own and all hold folders of the same names, as
    splits do.

    Raises DataError where one of them has the name of a split, too.
    """
    inside = [tuple(each.name for each in folders_in(folder)) for folder in folders]
    deep = [
        folder
        for folder, names in zip(folders, inside, strict=True)
        if len(names) > 1 and not any(images_directly_in(folder))
    ]
    if (
        len(folders) < 2
        or not inside[0]
        or any(names != inside[0] for names in inside)
        or len(deep) < len(folders)
    ):
        return [
            f"the images of {_listed([folder])} all lie in folders of their own: "
            f"{_listed(list(folders_in(folder)))}"
            for folder in deep
        ]
    names = ", ".join(map(readable, inside[0][:5]))
    if any(parse_split_name(folder.name) for folder in folders):
        raise DataError(
            readable(root),
            f"holds {_listed(folders)}, which look like splits: all hold {names}",
            "name them train, val and test, or give one as data.path and one as data.test_path",
        )
    return [
        f"the classes {_listed(folders)} all hold the same folders ({names}): if they are "
        "splits, name them train, "
        "val and test"
    ]


def _listed(folders: Sequence[Path], most: int = 5, root: Path | None = None) -> str:
    names = []
    for folder in folders[:most]:
        name = folder.relative_to(root) if root else folder.name
        names.append(f"{readable(name)}/")
    shown = ", ".join(names)
    if len(folders) <= most:
        return shown
    return f"{shown} and {len(folders) - most} more"
