"""Python's garbage collector, kept out of the way of imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import modules without garbage collections on the way, and have what they made never looked
    at again.

    Of the many objects that an import makes none is garbage, and the collector walks over all of
    them again and again: a fifth of the time it takes to import torch and torchvision.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
