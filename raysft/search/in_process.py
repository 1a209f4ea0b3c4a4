"""What Tune is given for this process alone."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T", bound="InProcess")


class InProcess:
    """An object that Tune's files leave out, and of which it makes no copies.

    It writes down what it is given, with pickle, to restore a search from it; raysft never does,
    since reading a pickle can run code.
    """

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()

    def __deepcopy__(self: T, memo: dict[int, object]) -> T:
        return self
