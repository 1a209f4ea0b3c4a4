"""What the HTTP side answers when the model is late, fails or is flooded, with a model of the
test's own.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from raysft.deploy import http as front
from raysft.deploy.http import PredictionService
from raysft.deploy.settings import Refused, Settings


class Replicas:
    """Names each image by its content, when it is let."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.fails = fails

    async def predict(self, images, top):
        await self.may_go.wait()
        if self.fails:
            raise self.fails
        return [((content.decode(), 0.75), ("other", 0.25)) for _, content in images]

    async def running(self):
        return 0 if self.fails else 1


Ask = Callable[..., Awaitable[tuple[int, dict[str, str], bytes]]]


def answered(
    story: Callable[[Ask, Replicas], Awaitable[Any]],
    fails: Exception | None = None,
    **settings: Any,
) -> Any:
    """What `story` returns, which is given a way to ask a front, and its replicas; with the lines
    it reported.
    """
    reported: list[str] = []

    async def _run() -> Any:
        replicas = Replicas(fails)
        app = PredictionService({}, Settings(**settings), replicas, 1, reported.append).app()

        async def ask(
            path: str, *body: bytes, kind: str = "image/png", ends: bool = True, **headers: str
        ):
            pieces = [
                {"type": "http.request", "body": piece, "more_body": not ends or i + 1 < len(body)}
                for i, piece in enumerate(body or (b"",))
            ]
            sent: list[dict] = []

            async def receive():
                if pieces:
                    return pieces.pop(0)
                return await asyncio.Event().wait()

            async def send(message):
                sent.append(message)

            where, _, query = path.partition("?")
            raw = {
                "content-type": kind,
                **{name.replace("_", "-"): value for name, value in headers.items()},
            }
            scope = {
                "type": "http",
                "method": "POST" if body else "GET",
                "path": where,
                "raw_path": where.encode(),
                "query_string": query.encode(),
                "root_path": "",
                "scheme": "http",
                "http_version": "1.1",
                "headers": [(k.encode(), v.encode()) for k, v in raw.items()],
                "server": ("h", 1),
                "client": ("h", 2),
            }
            with suppress(ValueError):  # Starlette raises it again for the server's log
                await app(scope, receive, send)
            return (
                sent[0]["status"],
                {k.decode(): v.decode() for k, v in sent[0]["headers"]},
                b"".join(m.get("body", b"") for m in sent[1:]),
            )

        async with app.router.lifespan_context(app):
            return await story(ask, replicas)

    return asyncio.run(_run()), reported


def test_an_image_in_pieces():
    async def story(ask, replicas):
        return await ask("/predict?top=1", b"pi", b"ece")

    (status, _, body), _ = answered(story)
    assert (status, json.loads(body)) == (
        200,
        {
            "predictions": [
                {
                    "class": "piece",
                    "probability": 0.75,
                    "top": [{"class": "piece", "probability": 0.75}],
                }
            ]
        },
    )


def test_full_queue_refuses_until_it_has_room():
    async def story(ask, replicas):
        replicas.may_go.clear()
        first = [asyncio.create_task(ask("/predict", b"a")) for _ in range(3)]
        while b"raysft_requests_open 3.0" not in (await ask("/metrics"))[2]:
            await asyncio.sleep(0)
        refused = await ask("/predict", b"a")
        replicas.may_go.set()
        return (
            refused,
            [status for status, *_ in await asyncio.gather(*first)],
            (await ask("/predict", b"a"))[0],
        )

    ((status, headers, body), first, after), _ = answered(story, queue=3)
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(body)["error"] == "queue: 3 requests are waiting; send it again later"
    assert (first, after) == ([200] * 3, 200)


@pytest.mark.parametrize(
    ("pieces", "headers"), [([b"x" * 300_000] * 4, {}), ([b"x"], {"content_length": "2000000"})]
)
def test_oversized_body_is_refused_before_its_end(pieces, headers):
    async def story(ask, replicas):
        return await asyncio.wait_for(
            ask("/predict", *pieces, ends=False, **headers), 5
        )  # the rest never comes

    (status, _, body), _ = answered(story, max_body_mb=1)
    assert status == 413
    assert "more than 1 MB" in json.loads(body)["error"]


def test_a_body_that_does_not_come(monkeypatch):
    monkeypatch.setattr(front, "BODY_SECONDS", 0.05)

    async def story(ask, replicas):
        return await ask("/predict", b"x", ends=False)

    (status, _, body), _ = answered(story)
    assert (status, json.loads(body)["error"]) == (408, "body: has not come within 0.05 seconds")


def test_a_model_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(front, "ANSWER_SECONDS", 0.05)

    async def story(ask, replicas):
        replicas.may_go.clear()
        late = await ask("/predict", b"x")
        return late, (await ask("/metrics"))[2]

    ((status, _, body), metrics), _ = answered(story)
    assert status == 504
    assert "has not answered" in json.loads(body)["error"]
    assert b"raysft_requests_open 0.0" in metrics


def test_a_failure_is_told_to_both_sides():
    async def story(ask, replicas):
        return await ask("/predict", b"x"), await ask("/health")

    ((status, _, body), (health, _, said)), reported = answered(
        story, fails=ValueError("no such layer")
    )
    assert status == 500
    assert "ValueError: no such layer" in json.loads(body)["error"]
    assert reported == ["POST /predict: ValueError: no such layer"]
    assert (health, json.loads(said)["replicas"]) == (503, 0)


def test_dead_replica_gives_503_with_retry_after():
    async def story(ask, replicas):
        return await ask("/predict", b"x")

    (status, headers, body), reported = answered(
        story, fails=Refused(503, "replica", "died", "send it again")
    )
    assert (status, headers["retry-after"], json.loads(body)) == (
        503,
        "1",
        {"error": "replica: died; send it again"},
    )
    assert reported == []
