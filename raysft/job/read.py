"""A YAML file as a tree of mappings, lists and scalars, those without quotes kept as written."""

from __future__ import annotations

import codecs
from collections.abc import Hashable, Sequence
from datetime import date, datetime
from pathlib import Path

import yaml

from raysft.errors import JobError
from raysft.job.plain import PlainScalar
from raysft.job.values import Written

# Aliases of aliases can stand for more than any memory holds.
MOST_VALUES = 100_000
MOST_LEVELS = 40

_PLAIN = "raysft:plain"
_MERGE = "tag:yaml.org,2002:merge"
_TAGGED: dict[type, str] = {
    bytes: "binary data",
    date: "a date",
    datetime: "a date",
    set: "a set",
    tuple: "a pair",
}
_DEFAULT_TAGS: dict[type[yaml.Node], str] = {
    yaml.ScalarNode: "tag:yaml.org,2002:str",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
    yaml.MappingNode: "tag:yaml.org,2002:map",
}


class _Loader(yaml.SafeLoader):
    """YAML in which scalars without quotes and keys stay text; a key given twice is an error."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        """The tag of a node that has none of its own."""
        # PyYAML's own decides by the look of a scalar alone that `no` is false.
        # The first of `implicit` says whether the scalar has no quotes.
        if kind is yaml.ScalarNode and implicit[0]:
            return _MERGE if value == "<<" else _PLAIN
        return _DEFAULT_TAGS[kind]

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        """The mapping of a node, its merge keys (<<) replaced by what they name."""
        # Only keys of this very mapping are compared: one of a merged mapping may be given again.
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self._construct_key(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        self.flatten_mapping(node)
        return {
            self._construct_key(key): self.construct_object(value, deep=deep)
            for key, value in node.value
        }

    def _construct_key(self, node: yaml.Node) -> str:
        key = self.construct_object(node, deep=True)
        key = key.text if isinstance(key, PlainScalar) else key
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, "the key is not a name but a value of its own", node.start_mark
            )
        return key


def _construct_plain(_: _Loader, node: yaml.ScalarNode) -> PlainScalar:
    return PlainScalar(node.value)


_Loader.add_constructor(_PLAIN, _construct_plain)
_Loader.add_constructor(_MERGE, _construct_plain)  # a value that is << is text


def read_yaml(path: Path) -> dict[str, Written]:
    """The mapping in a YAML file; raises JobError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise JobError(str(path), "no such job file", "give the path of a YAML file") from None
    except OSError as error:
        raise JobError(str(path), f"cannot be read ({error.strerror or error})") from None
    return parse_mapping(_decode(content, str(path)), str(path))


def parse_mapping(text: str, where: str) -> dict[str, Written]:
    """The mapping that a YAML text is; raises JobError."""
    tree = parse_yaml(text, where)
    if tree is None or tree == PlainScalar(""):
        raise JobError(where, "is empty: a mapping of keys is expected", "see jobs/quickstart.yaml")
    if not isinstance(tree, dict):
        raise JobError(
            where, "is not a job: a mapping of keys is expected", "see jobs/quickstart.yaml"
        )
    return tree


def parse_yaml(text: str, where: str) -> Written:
    """The tree of a YAML text, no part of which is another one; raises JobError."""
    try:
        return _Copy(where).of(yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        what, todo = _explain(error.problem or "")
        raise JobError(f"{where}{line}", what, todo) from None
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: what SafeLoader makes of `!!int x` and the like
        raise JobError(where, f"is not valid YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise JobError(where, "is nested too deeply to be a job") from None


def _explain(problem: str) -> tuple[str, str]:
    """What is wrong, and what to do about it where one cause is by far the likeliest."""
    if "found another document" in problem:
        return "holds a second document (---): a job file is one", "give each job a file of its own"
    what = problem if problem.startswith("the key") else f"is not valid YAML ({problem})"
    return what, _likely_remedy(problem)


def _likely_remedy(problem: str) -> str:
    if "unknown escape character" in problem:
        return "put a text with backslashes in single quotes"
    # A tab is also a character that "cannot start any token"; it is the tab that has to go.
    if "'\\t'" in problem:
        return "indent with spaces instead of tabs"
    if "mapping values are not allowed" in problem:
        return (
            "a value with `: ` in it needs quotes, and keys of one section begin in the same column"
        )
    if "cannot start any token" in problem:
        return "put a value that begins with this character in quotes"
    return ""


class _Copy:
    """A tree in which nothing is shared, so that setting a key changes one place alone."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._left = MOST_VALUES

    def of(self, node: object, keys: tuple[str, ...] = ()) -> Written:
        """The copy of a node that lies below `keys`."""
        self._left -= 1
        if len(keys) > MOST_LEVELS:
            raise JobError(self._where, "is nested too deeply to be a job")
        if self._left < 0:
            raise JobError(
                self._where,
                f"holds more than {MOST_VALUES:,} values, its aliases (*name) counted in full",
            )
        if isinstance(node, dict):
            return {key: self.of(value, (*keys, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [self.of(value, (*keys, str(at))) for at, value in enumerate(node)]
        if node is None or isinstance(node, (PlainScalar, str, bool, int, float)):
            return node
        # Only an explicit tag makes anything else: !!binary, !!timestamp, !!set, !!pairs.
        raise JobError(
            join_keys(self._where, keys),
            f"is {_TAGGED.get(type(node), 'no plain value')} by its tag (!!…), which no key takes",
            "leave the tag out",
        )


def join_keys(where: str, keys: Sequence[str]) -> str:
    """A file, or an override, and the dotted key in it."""
    dotted = ".".join(printable(key) for key in keys)
    return f"{where}: {dotted}" if dotted else where


def printable(text: str) -> str:
    """A text as part of one line, whatever it holds."""
    return text if text.isprintable() else repr(text)


# --- encodings ---------------------------------------------------------------------------------


def _decode(content: bytes, where: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; JobError names its encoding."""
    encoding = _wide_encoding(content)
    if encoding is not None:
        raise _wrong_encoding(where, encoding)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start)
    line = f"{where}, line {number + 1}"
    encoding = _narrow_encoding(content)
    if encoding is None:
        raise JobError(
            line,
            "is neither UTF-8 nor any other text that a job can be read from",
            "save the file as UTF-8",
        )
    # The guess may be wrong: a person sees at once whether the line reads as it should.
    shown = content.splitlines()[number].decode(encoding).strip()
    read = f", which would read it as {shown[:60]!r}"
    raise _wrong_encoding(where, encoding, line=line, read=read)


def _wrong_encoding(file: str, encoding: str, line: str = "", read: str = "") -> JobError:
    name = encoding.upper()
    return JobError(
        line or file,
        f"is not UTF-8 but looks like {name}{read}",
        f"convert it: iconv -f {name} -t UTF-8 '{file}' > converted.yaml",
    )


def _wide_encoding(content: bytes) -> str | None:
    """UTF-16 or UTF-32, by its mark or by the zeros that it puts between the letters."""
    # UTF-32's mark begins with that of UTF-16, so it is compared first.
    marks = {
        codecs.BOM_UTF32_LE: "utf-32",
        codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }
    for mark, encoding in marks.items():
        if content.startswith(mark):
            return encoding
    # Without a mark: a job begins with a key or a comment, so its first letters are of ASCII.
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
