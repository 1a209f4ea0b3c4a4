"""Names of classes and files, which may hold anything, as text; imports next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

MAX_NAME_LENGTH = 60  # characters of a name in a table or a list
_JOINERS = "\u200c\u200d"  # Persian words and emoji of several parts need them


def as_utf8(name: str | PurePath) -> str:
    r"""A name as documents can hold it: bytes that are not UTF-8 as \xe9, all else as it is."""
    return "".join(_escaped(char) if "\ud800" <= char <= "\udfff" else char for char in str(name))


def readable(name: str | PurePath) -> str:
    r"""A name as text that can stand anywhere: bytes that are not UTF-8 as \xe9, control characters
    escaped.
    """
    return "".join(
        char if char.isprintable() or char in _JOINERS else _escaped(char) for char in str(name)
    )


def clipped(name: str) -> str:
    """As `readable`, with … in place of what is behind the first characters of a very long name."""
    text = readable(name)
    return text if len(text) <= MAX_NAME_LENGTH else text[: MAX_NAME_LENGTH - 1] + "…"


def quoted_in_list(name: str) -> str:
    """As `clipped`, in quotes where it could not be told from its neighbours in a list."""
    text = clipped(name)
    return f'"{text}"' if "," in text or '"' in text or text != text.strip() or not text else text


def first_names(names: Sequence[str], most: int = 10) -> str:
    """The first of some names in one line, and how many there are besides."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(quoted_in_list, names[:most])) + more


def _escaped(char: str) -> str:
    # A byte that is not UTF-8 is read as one of these halves of a pair.
    return (
        f"\\x{ord(char) - 0xDC00:02x}"
        if "\udc80" <= char <= "\udcff"
        else char.encode("unicode_escape").decode()
    )
