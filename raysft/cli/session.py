"""What one call of the command line has: its console, and whether tracebacks are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysft.backends.backend import Backend
    from raysft.cluster.address import Address
    from raysft.console import Output

_debug = False


def set_debug(on: bool) -> None:
    """Have errors shown with their tracebacks."""
    global _debug
    _debug = on


def is_debug() -> bool:
    """Whether errors are shown with their tracebacks."""
    return _debug


@cache
def output() -> Output:
    """The console. Made when first needed: it takes hold of the standard streams."""
    from raysft.console import Output

    return Output()


def backend_at(address: Address | None) -> Backend:
    """What runs a command: a cluster, or this machine where there is no address."""
    from raysft.backends import backend_for

    return backend_for(address, output())


def show_rows(rows: Sequence[Mapping[str, object]], columns: Sequence[str], as_json: bool) -> None:
    """Rows as a table of some of their keys, or whole as a document."""
    from raysft.console import make_table

    if as_json:
        output().json(rows)
    else:
        output().show(make_table(rows, columns))
