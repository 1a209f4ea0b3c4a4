"""Numbers of things by their kind, in words; imports nothing, so that commands answer at once."""

from __future__ import annotations

from collections.abc import Mapping


def format_counts(numbers: Mapping[str, int]) -> str:
    """Kinds with their numbers, most frequent first: 4 hidden files, 2 not images (.txt)."""
    # The name breaks ties, so that two imports of the same folder say the same.
    ranked = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {kind}" for kind, number in ranked)
