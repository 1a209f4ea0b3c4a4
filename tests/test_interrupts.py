"""An interrupt reaches the main thread, also one that Python or a library drops on the way."""

import os
import signal
import time

import pytest

from raysft import interrupts


@pytest.fixture
def listening(monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(interrupts, "AGAIN_SECONDS", 0.05)
    interrupts.listen()
    yield
    interrupts.acknowledge()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Dropping:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the handler runs in here, and Python drops what it raises


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_was_dropped_comes_again(listening):
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        Dropping()
        time.sleep(10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_clean_up_is_left_in_peace(listening, number):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    with interrupts.ignoring_interrupts():
        os.kill(os.getpid(), number)
        time.sleep(0.2)
    time.sleep(0.1)


def test_background_shell_job_keeps_ignoring_ctrl_c(listening):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.listen()
    os.kill(os.getpid(), signal.SIGINT)
