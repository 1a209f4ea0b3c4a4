"""The documents say what is there: links, paths, names of modules, commands and their options."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from raysft.cli import app
from tests.test_layers import LAYERS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "raysft" / "ARCHITECTURE.md"
DOCUMENTS = [
    README,
    ARCHITECTURE,
    *sorted(ROOT.glob("jobs/*.md")),
    *sorted(ROOT.glob("cluster/*.md")),
    *sorted(ROOT.glob(".github/**/*.md")),
]
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]

COMMAND = re.compile(r"(?:^ {4,}|`)(?:\.venv/bin/)?(raysft [^`\n]*)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE_CODE = re.compile(r"`([^`\n]+)`")
FILES_OF_A_RUN = {"raysft.log", "raysft.schema.json"}
IN_REPOSITORY = ("raysft/", "tests/", "jobs/", "cluster/", ".github/", ".ci/")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `raysft …`, up to a comment, a pipe or a redirection."""
    for found in COMMAND.findall(text.replace("\\\n", " ")):
        line = re.split(r" [#>|]| ---|…", found)[0]
        yield shlex.split(line)[1:]


def find_options(words: list[str]) -> set[str]:
    """The options of the command that words begin with."""
    command = typer.main.get_command(app)
    for word in words:
        inner = getattr(command, "commands", None)  # of a group of commands
        if inner is None or word.startswith("-"):
            break
        assert word in inner, f"raysft has no command {word}"
        command = inner[word]
    options = {option for each in command.params for option in [*each.opts, *each.secondary_opts]}
    return options | {"--help"}


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    document = ROOT / name
    for link in LINK.findall(document.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_options_exist(name):
    for words in commands((ROOT / name).read_text()):
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= find_options(words), f"raysft {' '.join(words)}"


@pytest.mark.parametrize("name", NAMES)
def test_named_files_exist(name):
    for code in INLINE_CODE.findall((ROOT / name).read_text()):
        path = code.split(" ")[0]
        if path.startswith(IN_REPOSITORY) and not re.search(r"[A-Z]{3,}/|[*…<]", path):
            assert (ROOT / path).exists(), code


@pytest.mark.parametrize("name", NAMES)
def test_named_modules_and_functions_exist(name):
    for dotted in re.findall(r"`(raysft(?:\.\w+)+)(?:\(\))?`", (ROOT / name).read_text()):
        if dotted not in FILES_OF_A_RUN:
            assert resolve(dotted) is not None, dotted


def resolve(dotted: str) -> object:
    """The module, or what lies in one, that a dotted name means."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not dotted.startswith(str(error.name)):
                raise
            continue
        for attribute in parts[end:]:
            found = getattr(found, attribute)
        return found
    return None


def test_architecture_names_every_package():
    text = ARCHITECTURE.read_text()
    packages = [folder.parent.name for folder in (ROOT / "raysft").glob("*/__init__.py")]
    assert [name for name in packages if f"`{name}`" not in text] == []


def test_architecture_has_the_layers_in_order():
    section = ARCHITECTURE.read_text().split("## Layers")[1].split("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    told = [set(INLINE_CODE.findall(row.split("|")[1])) for row in rows]
    assert told == [names for names in LAYERS if names != {"__main__"}]


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 180


def test_commands_of_make_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in NAMES:
        given = re.findall(r"(?:^ {4}|`)make ([\w-]+)", (ROOT / name).read_text(), re.MULTILINE)
        assert set(given) <= targets, name
