"""Images of many requests gathered into batches, of which a bounded number is under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Sent = tuple[str, bytes]  # an image as it came: its name, for what is said about it, and the file
Answer = TypeVar("Answer")
# Images and how many classes to name: an answer an image.
Run = Callable[[list[Sent], int], Awaitable[Sequence[Answer]]]


@dataclass
class _Waiting(Generic[Answer]):
    image: Sent
    top: int
    since: float
    answer: asyncio.Future[Answer] = field(repr=False)


class Batcher(Generic[Answer]):
    """Hands images to `run`, at most `most` at a time and `at_once` times at once.

    A batch goes when it is full, or when its first image has waited `wait_s` and there is room for
    it. What comes while there is none gathers, so that batches grow with the load.
    """

    def __init__(self, run: Run[Answer], most: int, wait_s: float, at_once: int) -> None:
        self._run, self._most, self._wait_s = run, most, wait_s
        # A deque: a list would move all that wait whenever a batch is taken from its front.
        self._waiting: deque[_Waiting[Answer]] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Semaphore(at_once)
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Images that are in no batch yet."""
        return len(self._waiting)

    async def predict(self, images: Sequence[Sent], top: int) -> list[Answer]:
        """An answer for each image, in their order; raises what `run` raises."""
        loop = asyncio.get_running_loop()
        mine: list[_Waiting[Answer]] = [
            _Waiting(image, top, loop.time(), loop.create_future()) for image in images
        ]
        self._waiting.extend(mine)
        self._arrived.set()
        return list(await asyncio.gather(*(one.answer for one in mine)))

    async def work(self) -> None:
        """Send batch after batch; runs until it is cancelled."""
        while True:
            # Room first: until there is some, images gather and the next batch grows.
            await self._room.acquire()
            task = asyncio.create_task(self._send(await self._next()))
            # The event loop keeps only weak references to tasks.
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _next(self) -> list[_Waiting[Answer]]:
        loop = asyncio.get_running_loop()
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        # Counted from the oldest image, so that a steady trickle cannot keep it waiting for ever.
        goes = self._waiting[0].since + self._wait_s
        while len(self._waiting) < self._most and (left := goes - loop.time()) > 0:
            self._arrived.clear()
            # A time-out is the usual end: the batch goes as it is.
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)
        return [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]

    async def _send(self, batch: list[_Waiting[Answer]]) -> None:
        # A request that has given up, or whose client is gone, has cancelled its future.
        wanted = [one for one in batch if not one.answer.done()]
        try:
            if wanted:
                # As many classes as any of them wants; each request cuts its answers to its own.
                answers = await self._run(
                    [one.image for one in wanted], max(one.top for one in wanted)
                )
                for one, answer in zip(wanted, answers, strict=True):
                    # Set twice, it would raise, and the rest of the batch would go without.
                    if not one.answer.done():
                        one.answer.set_result(answer)
        # Every image gets the error, else its request would wait until it is too late for it.
        except Exception as error:
            for one in wanted:
                if not one.answer.done():
                    one.answer.set_exception(error)
        finally:
            self._room.release()
