"""Batches of the images of many requests: how they fill, when they go, what happens to those that
fail.
"""

import asyncio
from contextlib import asynccontextmanager

import pytest

from raysft.deploy.batching import Batcher


class Model:
    """Answers each image with its content doubled, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def __call__(self, images, top):
        self.batches.append([name for name, _ in images])
        await self.may_go.wait()
        if any(content == b"bad" for _, content in images):
            raise ValueError("not this one")
        return [content * top for _, content in images]


@asynccontextmanager
async def batcher(model: Model, most: int = 4, wait_s: float = 0.0, at_once: int = 1):
    made = Batcher(model, most, wait_s, at_once)
    working = asyncio.create_task(made.work())
    yield made
    working.cancel()


def images(*names: str) -> list[tuple[str, bytes]]:
    return [(name, name.encode()) for name in names]


def test_requests_share_batch_and_get_own_answers():
    async def story():
        model = Model()
        async with batcher(model, most=4, wait_s=60) as made:  # only a full batch goes
            return model.batches, await asyncio.gather(
                made.predict(images("a", "b"), 2),
                made.predict(images("c"), 1),
                made.predict(images("d"), 1),
            )

    batches, answers = asyncio.run(story())
    assert batches == [["a", "b", "c", "d"]]
    assert answers == [
        [b"aa", b"bb"],
        [b"cc"],
        [b"dd"],
    ]  # a request cuts off what another has asked for


def test_a_lone_image_goes_when_it_has_waited():
    async def story():
        async with batcher(Model(), most=4, wait_s=0.01) as made:
            return await asyncio.wait_for(made.predict(images("a"), 1), 5)

    assert asyncio.run(story()) == [b"a"]


def test_what_comes_while_there_is_no_room_gathers():
    async def story():
        model = Model()
        async with batcher(model, most=8) as made:
            model.may_go.clear()
            asked = [asyncio.create_task(made.predict(images("first"), 1))]
            while not model.batches:
                await asyncio.sleep(0)
            asked += [asyncio.create_task(made.predict(images(str(i)), 1)) for i in range(10)]
            while made.waiting < 10:
                await asyncio.sleep(0)
            assert model.batches == [["first"]]
            model.may_go.set()
            await asyncio.gather(*asked)
        return [len(batch) for batch in model.batches]

    assert asyncio.run(story()) == [1, 8, 2]


def test_a_failure_is_that_of_its_batch_alone():
    async def story():
        async with batcher(Model(), most=1) as made:
            with pytest.raises(ValueError, match="not this one"):
                await made.predict(images("bad"), 1)
            return await made.predict(images("good"), 1)

    assert asyncio.run(story()) == [b"good"]


def test_images_of_cancelled_request_are_not_predicted():
    async def story():
        model = Model()
        async with batcher(model, most=4) as made:
            model.may_go.clear()
            first = asyncio.create_task(made.predict(images("first"), 1))
            while not model.batches:
                await asyncio.sleep(0)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(made.predict(images("gone"), 1), 0.01)
            model.may_go.set()
            await first
            await made.predict(images("last"), 1)
        return model.batches

    assert asyncio.run(story()) == [["first"], ["last"]]
