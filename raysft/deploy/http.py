"""The HTTP side of `raysft serve`: what is asked, what is refused, what is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive

from raysft.deploy.batching import Batcher, Sent
from raysft.deploy.settings import Refused, ServedModel, Settings
from raysft.errors import describe_error
from raysft.results.ranking import TOP, Ranking, ranking_json

TYPES = frozenset(
    {
        "image/jpeg",
        # No registered type, but what many programs send.
        "image/jpg",
        "image/png",
        "image/webp",
        "image/gif",
        "image/bmp",
        "image/tiff",
        "image/avif",
        "image/heic",
        "image/heif",
        "image/x-portable-pixmap",
        "image/x-portable-anymap",
        "application/octet-stream",
    }
)
FORM, FIELD = "multipart/form-data", "images"
FIELDS = 8  # that are no files: as many are read before one is refused
BODY_SECONDS, ANSWER_SECONDS = 60.0, 60.0
GONE = 499  # the client has closed the connection; counted, never sent
# Closer together where a network on a CPU answers, so that percentiles can be told.
LATENCIES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


Answer = TypeVar("Answer")


class Model(Protocol):
    """What predicts."""

    async def predict(self, images: Sequence[Sent], top: int) -> Sequence[Ranking | Refused]:
        """The `top` most likely classes of each image, or what is wrong with it."""

    async def running(self) -> int:
        """How many replicas can predict."""


class PredictionService:
    """The ASGI application before the replicas, which take `at_once` batches together; `report` is
    told of failures.
    """

    def __init__(
        self,
        about: ServedModel,
        settings: Settings,
        replicas: Model,
        at_once: int,
        report: Callable[[str], None],
    ) -> None:
        self._about, self._settings, self._report = about, settings, report
        self._replicas, self._at_once = replicas, at_once
        self._open = 0  # requests that are accepted and not yet answered
        self._batcher: Batcher[Ranking | Refused]
        # Of its own: the default one holds what any library of this process counts.
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "raysft_requests", "Requests to /predict by HTTP status.", ["status"], registry=registry
        )
        self._images = Counter("raysft_images", "Images that were classified.", registry=registry)
        self._seconds = Histogram(
            "raysft_request_seconds",
            "Seconds from a request's headers to its answer.",
            buckets=LATENCIES,
            registry=registry,
        )
        self._sizes = Histogram(
            "raysft_batch_images", "Images of a batch.", buckets=SIZES, registry=registry
        )
        Gauge(
            "raysft_requests_open", "Requests accepted and not yet answered.", registry=registry
        ).set_function(lambda: self._open)
        Gauge(
            "raysft_images_waiting", "Images that are in no batch yet.", registry=registry
        ).set_function(lambda: self._batcher.waiting)

    def app(self) -> Starlette:
        """The application, with the paths it answers."""
        routes = [
            Route("/", self.describe),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        return Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: self._no_such_path, Exception: self._failed},
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        # Not in __init__: its events and futures belong to the server's loop, which runs by now.
        self._batcher = Batcher(
            self._counted,
            self._settings.max_batch,
            self._settings.batch_wait_ms / 1000,
            self._at_once,
        )
        working = asyncio.create_task(self._batcher.work())
        yield
        working.cancel()

    async def _counted(self, images: list[Sent], top: int) -> Sequence[Ranking | Refused]:
        self._sizes.observe(len(images))
        return await self._replicas.predict(images, top)

    # --- what is asked --------------------------------------------------------------------------

    async def describe(self, request: Request) -> Response:
        """GET /: the model, and what may be asked of it."""
        return JSONResponse(self._about)

    async def health(self, request: Request) -> Response:
        """GET /health: 200 where at least one replica has loaded the model and answers."""
        running = await self._replicas.running()
        return JSONResponse(
            {
                "status": "ready" if running else "no replica can predict",
                "replicas": running,
                "wanted": self._settings.replicas,
            },
            200 if running else 503,
        )

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in Prometheus' text format."""
        return Response(
            generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST}
        )

    async def predict(self, request: Request) -> Response:
        """POST /predict: the classes of one image or of several."""
        begun, status = time.perf_counter(), 500
        try:
            answer = await self._predictions(request)
            status = answer.status_code
        except Refused as refused:
            answer, status = _refusal(refused), refused.status
        except ClientDisconnect:
            answer, status = Response(status_code=GONE), GONE
        finally:
            self._requests.labels(status).inc()
            self._seconds.observe(time.perf_counter() - begun)
        return answer

    async def _predictions(self, request: Request) -> Response:
        top = _top(request)
        # Before anything of the body is read, so that a refusal costs next to nothing.
        if self._open >= self._settings.queue:
            raise Refused(503, "queue", f"{self._open} requests are waiting", "send it again later")
        # No lock: everything between two awaits runs in one thread.
        self._open += 1
        try:
            images = await _in_time(
                self._sent(request),
                BODY_SECONDS,
                Refused(408, "body", f"has not come within {BODY_SECONDS:g} seconds"),
            )
            answers = await _in_time(
                self._batcher.predict(images, top),
                ANSWER_SECONDS,
                Refused(
                    504,
                    "model",
                    f"has not answered within {ANSWER_SECONDS:g} seconds",
                    "send it again later",
                ),
            )
        finally:
            self._open -= 1
        predictions = []
        for answer in answers:
            if isinstance(answer, Refused):
                raise answer
            # A batch is ranked as far as its most demanding request asks.
            predictions.append(ranking_json(answer[:top]))
        self._images.inc(len(predictions))
        return JSONResponse({"predictions": predictions})

    # --- what was sent --------------------------------------------------------------------------

    async def _sent(self, request: Request) -> list[Sent]:
        """The images of a request, of which no more is read than is allowed; raises Refused."""
        # What stands behind the semicolon, as a boundary or a charset, is no part of the type.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != FORM and kind not in TYPES:
            raise Refused(
                415,
                "content-type",
                f"{kind or 'nothing'} is not one of an image",
                f"send image/jpeg, image/png, application/octet-stream, or {FORM} with files as "
                f"{FIELD}",
            )
        most = self._settings.max_body
        # An honest client is told before it sends; what others send is counted as it comes.
        if int(request.headers.get("content-length", 0)) > most:
            raise self._too_large()
        bounded = Request(request.scope, self._bounded(request.receive, most))
        images = await self._of_form(bounded) if kind == FORM else [("image", await bounded.body())]
        for name, content in images:
            if not content:
                raise Refused(422, name, "is empty", "send an image file")
        return images

    async def _of_form(self, request: Request) -> list[Sent]:
        most = self._settings.max_images
        try:
            # The form removes its temporary files at the end of the block.
            async with request.form(max_files=most, max_fields=FIELDS) as form:
                for field, value in form.multi_items():
                    if field != FIELD or not isinstance(value, UploadFile):
                        raise Refused(422, field, "is not expected", f"send files, each as {FIELD}")
                files = [file for file in form.getlist(FIELD) if isinstance(file, UploadFile)]
                images = [
                    (file.filename or f"{FIELD}[{i}]", await file.read())
                    for i, file in enumerate(files)
                ]
        except HTTPException as error:  # Starlette's, in the words of its parser
            # Starlette has one error for all that its parser refuses; only the words tell which.
            if "Too many files" in error.detail:
                raise Refused(
                    413,
                    FIELD,
                    f"are more than {most}",
                    "send fewer at a time, or serve with --max-images",
                ) from None
            raise Refused(
                400,
                "body",
                f"is not {FORM} with files as {FIELD} ({error.detail})",
                f"see `curl --form {FIELD}=@FILE`",
            ) from None
        if not images:
            raise Refused(422, FIELD, "is missing", f"send files, each as {FIELD}")
        return images

    def _bounded(self, receive: Receive, most: int) -> Receive:
        """What hands a body on piece by piece and raises Refused once it has more than `most`
        bytes.
        """
        seen = 0

        async def _receive() -> Message:
            nonlocal seen
            message = await receive()
            # By what has come: a chunked body has no length, and a stated one may be wrong.
            seen += len(message.get("body", b""))
            if seen > most:
                raise self._too_large()
            return message

        return _receive

    def _too_large(self) -> Refused:
        return Refused(
            413,
            "body",
            f"has more than {self._settings.max_body_mb} MB",
            "send fewer or smaller images, or serve with --max-body-mb",
        )

    # --- what goes wrong ------------------------------------------------------------------------

    async def _no_such_path(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = Refused(
            error.status_code,
            f"{request.method} {request.url.path}",
            error.detail.lower(),
            "there are POST /predict, GET /, GET /health and GET /metrics",
        )
        return _refusal(found, error.headers)

    async def _failed(self, request: Request, error: Exception) -> Response:
        self._report(f"{request.method} {request.url.path}: {describe_error(error, -1)}")
        return _refusal(
            Refused(
                500,
                "server",
                f"failed ({describe_error(error, -1)})",
                "see what `raysft serve` prints",
            )
        )


def _refusal(refused: Refused, headers: Mapping[str, str] | None = None) -> Response:
    # Of all refusals the one that passes by itself.
    again = {"retry-after": "1"} if refused.status == 503 else {}
    return JSONResponse({"error": str(refused)}, refused.status, {**(headers or {}), **again})


def _top(request: Request) -> int:
    """How many classes of an image are asked for; raises Refused."""
    text = request.query_params.get("top", str(TOP))
    # Eight digits at most: int refuses very long numbers with an error of its own.
    if not (text.isdecimal() and len(text) < 9 and int(text) > 0):
        raise Refused(422, f"top={text}", "is not a number of classes", "give 1 or more")
    return int(text)


async def _in_time(what: Awaitable[Answer], seconds: float, late: Refused) -> Answer:
    """What is awaited; raises `late` where it takes longer."""
    # wait_for also cancels what is late, so its images leave their batch.
    with suppress(asyncio.TimeoutError):
        return await asyncio.wait_for(what, seconds)
    raise late
