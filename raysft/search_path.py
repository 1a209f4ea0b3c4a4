"""Where modules are looked for: the current folder comes after the libraries, never before them.

A file there that is named like a module (queue.py, types.py, torch.py) would be imported in its
place, by this process and by every process of Ray. What a person keeps there is found all the same,
as long as no library has its name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWN = Path(__file__).parent  # the package


def current_folder_last() -> None:
    """Have this process, and those it starts, look into the current folder after the libraries."""
    try:
        os.getcwd()
    except FileNotFoundError:  # it was removed: there is nothing in it
        return
    kept = [entry for entry in sys.path if not _is_current(entry)]
    if len(kept) < len(sys.path):
        sys.path[:] = [*kept, os.getcwd()]
    given = os.environ.get("PYTHONPATH")
    if given is not None:
        # They are told of the current folder where they need it; an empty entry is the current
        # folder, too.
        os.environ["PYTHONPATH"] = os.pathsep.join(
            e for e in given.split(os.pathsep) if e and not _is_current(e)
        )


def _is_current(entry: str) -> bool:
    """Whether an entry is the current folder; not where raysft itself is found there."""
    folder = Path(entry or ".")
    return folder.resolve() == Path.cwd().resolve() and folder.resolve() != OWN.parent.resolve()


@contextmanager
def empty_current_folder(folder: Path) -> Iterator[None]:
    """Let `ray.init` see an empty folder as the current one, and no script.

    Ray puts both the current folder and that of the script before everything else in its workers'
    search path.
    """
    folder.mkdir()
    before, script = os.getcwd(), sys.argv[0]
    os.chdir(folder)
    sys.argv[0] = ""
    try:
        yield
    finally:
        sys.argv[0] = script
        os.chdir(before)
