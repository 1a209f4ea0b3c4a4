"""Ctrl-C and SIGTERM as KeyboardInterrupt, raised again until the clean-up has begun.

Python drops an exception that is raised inside `__del__` or a callback of the garbage collector,
and libraries here and there catch all of them. A run whose one interrupt went that way would go on
as if nothing had been asked.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_SECONDS = 2.0


def listen() -> None:
    """Make Ctrl-C, SIGTERM (how Ray stops a job) and the timer of this module interrupt the main
    thread.

    To be called again after what sets handlers of its own, as `ray.init` does. Does nothing in
    another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if (
        signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    ):  # a shell's background job stays deaf to Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)


def acknowledge() -> None:
    """Raise it no more: the clean-up has begun."""
    if threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Keep a further Ctrl-C from interrupting the clean-up of the first."""
    acknowledge()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
    raise KeyboardInterrupt
