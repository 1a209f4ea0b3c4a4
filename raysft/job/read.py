"""A YAML file as a tree of mappings, lists and scalars, those without quotes kept as written."""

from __future__ import annotations

import codecs
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from raysft.errors import JobError
from raysft.job.plain import Plain

MOST_VALUES, MOST_LEVELS = (
    100_000,
    40,
)  # aliases of aliases can stand for more than any memory holds

_PLAIN, _MERGE = "raysft:plain", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML in which a scalar without quotes stays text, every key is text, and a key given twice is
    an error.
    """

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012 - PyYAML's own name

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        plain = self.peek_event().implicit[0]
        node = super().compose_scalar_node(anchor)
        if plain and node.tag != _MERGE:
            node.tag = _PLAIN
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self._key(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        self.flatten_mapping(node)
        return {
            self._key(key): self.construct_object(value, deep=deep) for key, value in node.value
        }

    def _key(self, node: yaml.Node) -> str:
        key = self.construct_object(node, deep=True)
        key = key.text if isinstance(key, Plain) else key
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, "the key is not a name but a value of its own", node.start_mark
            )
        return key


for _tag in (_PLAIN, _MERGE):  # a value that is << is text
    _Loader.add_constructor(_tag, lambda loader, node: Plain(node.value))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises JobError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise JobError(str(path), "no such job file", "give the path of a YAML file") from None
    except OSError as error:
        raise JobError(str(path), f"cannot be read ({error.strerror or error})") from None
    return mapping(_decoded(content, str(path)), str(path))


def mapping(text: str, where: str) -> dict[str, Any]:
    """The mapping that a YAML text is; raises JobError."""
    tree = parse(text, where)
    if (isinstance(tree, Plain) and not tree.text) or tree is None:
        raise JobError(where, "is empty: a mapping of keys is expected", "see jobs/quickstart.yaml")
    if not isinstance(tree, dict):
        raise JobError(
            where, "is not a job: a mapping of keys is expected", "see jobs/quickstart.yaml"
        )
    return tree


def parse(text: str, where: str) -> Any:
    """The tree of a YAML text, no part of which is another one; raises JobError."""
    try:
        return _Copy(where).of(yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        what, todo = _in_words(error.problem or "")
        raise JobError(f"{where}{line}", what, todo) from None
    except (yaml.YAMLError, ValueError) as error:
        raise JobError(where, f"is not valid YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise JobError(where, "is nested too deeply to be a job") from None


def _in_words(problem: str) -> tuple[str, str]:
    """What is wrong, and what to do about it where one cause is by far the likeliest."""
    if "found another document" in problem:
        return "holds a second document (---): a job file is one", "give each job a file of its own"
    hint = ""
    if "mapping values are not allowed" in problem:
        hint = (
            "a value with `: ` in it needs quotes, and keys of one section begin in the same column"
        )
    if "'\\t'" in problem:
        hint = "indent with spaces instead of tabs"
    if "unknown escape character" in problem:
        hint = "put a text with backslashes in single quotes"
    if "cannot start any token" in problem and not hint:
        hint = "put a value that begins with this character in quotes"
    return (problem if problem.startswith("the key") else f"is not valid YAML ({problem})"), hint


class _Copy:
    """A tree in which nothing is shared, so that setting a key changes one place alone."""

    def __init__(self, where: str) -> None:
        self._where, self._left = where, MOST_VALUES

    def of(self, node: Any, level: int = 0) -> Any:
        self._left -= 1
        if self._left < 0 or level > MOST_LEVELS:
            raise JobError(
                self._where,
                "is nested too deeply to be a job"
                if level > MOST_LEVELS
                else f"holds more than {MOST_VALUES:,} values, its aliases (*name) counted in full",
            )
        if isinstance(node, dict):
            return {key: self.of(value, level + 1) for key, value in node.items()}
        if isinstance(node, list):
            return [self.of(value, level + 1) for value in node]
        return node


# --- encodings ---------------------------------------------------------------------------------


def _decoded(content: bytes, where: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; raises JobError that tells
    another encoding.
    """
    encoding = _wide_encoding(content)
    if encoding is None:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            at, encoding = error.start, _narrow_encoding(content)
            line = content.count(b"\n", 0, at)
            where = f"{where}, line {line + 1}"
            if encoding is None:
                raise JobError(
                    where,
                    "is neither UTF-8 nor any other text that a job can be read from",
                    "save the file as UTF-8",
                ) from None
            shown = content.splitlines()[line].decode(encoding).strip()
            read = f", which would read it as {shown[:60]!r}"
    else:
        read = ""
    file = where.partition(", line ")[0]
    raise JobError(
        where,
        f"is not UTF-8 but looks like {encoding.upper()}{read}",
        f"convert it: iconv -f {encoding.upper()} -t UTF-8 '{file}' > converted.yaml",
    )


def _wide_encoding(content: bytes) -> str | None:
    """UTF-16 or UTF-32, by its mark or by the zeros that it puts between the letters."""
    marks = {
        codecs.BOM_UTF32_LE: "utf-32",
        codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }
    for mark, encoding in marks.items():
        if content.startswith(mark):
            return encoding
    if len(content) >= 4 and content[1:2] == b"\0" and content[:1] != b"\0":
        return "utf-32-le" if content[2:4] == b"\0\0" else "utf-16-le"
    if content[:3] == b"\0\0\0":
        return "utf-32-be"
    return "utf-16-be" if content[:1] == content[2:3] == b"\0" else None


def _narrow_encoding(content: bytes) -> str | None:
    """Windows-1252 where it can read the bytes; Latin-1 text reads the same with it."""
    try:
        content.decode("windows-1252")
    except UnicodeDecodeError:
        return None
    return "windows-1252"
