"""Numbers of things by their kind, in words; imports nothing, so that commands answer at once."""

from __future__ import annotations

from collections.abc import Mapping


def format_counts(numbers: Mapping[str, int]) -> str:
    """Kinds with their numbers, the most frequent first: 4 hidden or system files, 2 not images
    (.txt).
    """
    return ", ".join(
        f"{n:,} {kind}" for kind, n in sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    )
