"""Markdown from values of a run, which may hold anything: names of folders, classes and files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# Everything that Markdown, or what hubs add to it (mentions, mathematics), gives a meaning.
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&$!:@])")


def plain(value: object) -> str:
    """One line of characters that can be seen and written."""
    # Names of files may hold bytes that are no UTF-8, which cannot be written as they are.
    text = str(value).encode("utf-8", "replace").decode()
    # A line break would end a table or a heading, and begin whatever its next line looks like.
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())


def text(value: object) -> str:
    """Plain text in Markdown; also in a table."""
    return _MARKS.sub(r"\\\1", plain(value))


def code(value: object) -> str:
    """Code in Markdown; not for tables, where a bar would end the cell."""
    shown = plain(value)
    # Backslashes mean nothing inside code: only a longer fence keeps a backtick from ending it.
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (1 + longest)
    padding = " " if "`" in shown else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; cells are Markdown."""
    # Names to the left, figures to the right.
    alignment = ["---", *["---:"] * (len(header) - 1)]
    lines = []
    for cells in (header, alignment, *rows):
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def settings(values: Mapping[str, object]) -> str:
    """Names and values of settings in one line; of a flag the name alone."""
    parts = []
    for name, value in values.items():
        parts.append(words(name) if value is True else f"{words(name)} {_number(value)}")
    return ", ".join(parts)


def numbers(values: Iterable[float]) -> str:
    """Numbers in brackets."""
    return "(" + ", ".join(map(_number, values)) + ")"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text(value)


def words(name: str) -> str:
    """The name of a setting or metric as people write it."""
    # What the job calls lr is where the schedule has its top.
    if name == "lr":
        return "highest rate"
    return name.replace("_", " ")
