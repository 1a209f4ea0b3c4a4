"""Names of classes and files, which may hold anything, as text; imports next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

MAX_NAME_LENGTH = 60  # characters of a name in a table or a list
_JOINERS = "\u200c\u200d"  # Persian words and emoji of several parts need them


def as_utf8(name: str | PurePath) -> str:
    r"""A name as documents can hold it: bytes that are not UTF-8 as \xe9, all else as it is."""
    text = ""
    for char in str(name):
        text += _escape(char) if "\ud800" <= char <= "\udfff" else char
    return text


def readable(name: str | PurePath) -> str:
    r"""A name as one line of text: bytes that are not UTF-8 as \xe9, control characters escaped."""
    text = ""
    for char in str(name):
        # Control characters could move the cursor or colour the terminal of whoever reads them.
        printable = char.isprintable() or char in _JOINERS
        text += char if printable else _escape(char)
    return text


def clipped(name: str) -> str:
    """As `readable`, and a very long name ends in … after its first characters."""
    text = readable(name)
    if len(text) <= MAX_NAME_LENGTH:
        return text
    return text[: MAX_NAME_LENGTH - 1] + "…"


def quoted_in_list(name: str) -> str:
    """As `clipped`, in quotes where it could not be told from its neighbours in a list."""
    text = clipped(name)
    has_edge_spaces = text != text.strip()
    ambiguous = not text or "," in text or '"' in text or has_edge_spaces
    return f'"{text}"' if ambiguous else text


def first_names(names: Sequence[str], most: int = 10) -> str:
    """The first of some names in one line, and how many there are besides."""
    shown = ", ".join(map(quoted_in_list, names[:most]))
    if len(names) <= most:
        return shown
    return f"{shown} and {len(names) - most:,} more"


def _escape(char: str) -> str:
    # Python reads a byte that is not UTF-8 as a lone surrogate (PEP 383): 0xe9 as U+DCE9.
    if "\udc80" <= char <= "\udcff":
        byte = ord(char) - 0xDC00
        return f"\\x{byte:02x}"
    return char.encode("unicode_escape").decode()
