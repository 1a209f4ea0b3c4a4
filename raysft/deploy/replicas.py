"""The model on Ray Serve: replicas that decode and classify, and the way to them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from PIL import Image
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from raysft.data.images import fit, open_rgb, read_size
from raysft.deploy.batching import Sent
from raysft.deploy.settings import Refused, Settings
from raysft.errors import DataError, RunError, describe_error
from raysft.job.plan import Node
from raysft.results.ranking import Ranking
from raysft.storage import storage_path

APPLICATION, DEPLOYMENT = "raysft", "Predictor"
BATCHES_A_REPLICA = 2  # one is decoded while the other is in the network
PROBES = 8  # questions after a replica's health that need not wait for its batches
HEALTH_SECONDS = 2.0
NOTICE_SECONDS = 1.0  # how often Serve looks whether a replica lives


class Predictor:
    """One replica: decodes images in threads, and classifies those of a batch together."""

    def __init__(
        self, model: str, max_pixels: int, threads: int, device: str, import_from: str | None
    ) -> None:
        import torch  # here: the process that starts the replicas needs none of it

        from raysft.results.predict import Classifier, batch_size_for

        torch.set_num_threads(threads)
        Image.MAX_IMAGE_PIXELS = None  # `max_pixels` takes its place
        self._max_pixels = max_pixels
        # Behind the libraries: a file of that folder must not take the place of one of theirs.
        if import_from is not None:  # a network of a person's own, which they trust
            sys.path.append(import_from)
        self._classifier = Classifier(storage_path(model), device, import_from is not None)
        self._decoders = ThreadPoolExecutor(threads, "decode")
        # One thread, so that two batches do not share the cores in the middle of a network.
        self._network = ThreadPoolExecutor(1, "network")
        card = self._classifier.card
        self._at_once = batch_size_for(card)  # of large images fewer than a batch has
        # The first call of a network allocates and chooses kernels: no request need wait for that.
        self._classifier.rank(np.zeros((1, card.height, card.width, 3), np.uint8), 1)

    async def alive(self) -> None:
        """Returns once the model is loaded."""

    async def predict(self, images: Sequence[Sent], top: int) -> list[Ranking | Refused]:
        """The `top` most likely classes of each image, or what is wrong with it."""
        loop = asyncio.get_running_loop()
        decoded = await asyncio.gather(
            *(loop.run_in_executor(self._decoders, self._decoded, *image) for image in images)
        )
        # A bad image among good ones costs its own answer alone.
        sound = [image for image in decoded if not isinstance(image, Refused)]
        ranked = await loop.run_in_executor(self._network, self._ranked, sound, top)
        rest = iter(ranked)
        return [image if isinstance(image, Refused) else next(rest) for image in decoded]

    def _decoded(self, name: str, content: bytes) -> np.ndarray | Refused:
        """(height, width, 3) uint8 of the card's size; nothing is decoded before its size is
        known.
        """
        card = self._classifier.card
        try:
            # From the header: a small file may claim an image that would fill the memory.
            height, width = read_size(content, name)
            if height * width > self._max_pixels:
                return Refused(
                    413,
                    name,
                    f"has {height * width / 1e6:,.1f} megapixels, the limit is "
                    f"{self._max_pixels / 1e6:g}",
                    "scale it down, or serve with --max-megapixels",
                )
            return fit(
                open_rgb(content, name, card.decoding), card.height, card.width, card.resampling
            )
        except DataError as error:
            return Refused(
                422,
                error.where,
                error.what,
                error.todo or "send a whole JPEG, PNG, WebP, TIFF, BMP, GIF, PPM or AVIF file",
            )

    def _ranked(self, images: Sequence[np.ndarray], top: int) -> list[Ranking]:
        size = self._at_once
        return [
            ranking
            for start in range(0, len(images), size)
            for ranking in self._classifier.rank(np.stack(images[start : start + size]), top)
        ]


class Replicas:
    """All replicas of the model, in whatever state they are."""

    def __init__(self, handle: DeploymentHandle[Predictor]) -> None:
        self._handle = handle

    async def predict(self, images: Sequence[Sent], top: int) -> list[Ranking | Refused]:
        """Let one replica do it; raises Refused where it died over it."""
        try:
            answers: list[Ranking | Refused] = await self._handle.predict.remote(images, top)
        except RayTaskError:  # an error of the code in it, which has not died
            raise
        # Serve has another replica take later requests; this one may have been half done.
        except (RayError, RayServeException) as error:
            raise Refused(
                503,
                "replica",
                f"died while it had this request ({type(error).__name__})",
                "send it again",
            ) from error
        return answers

    async def running(self) -> int:
        """How many replicas can predict, by one that has just answered and by what Serve knows of
        the others.
        """
        answer = self._handle.alive.remote()
        try:
            await asyncio.wait_for(answer, HEALTH_SECONDS)
        except asyncio.TimeoutError:
            answer.cancel()  # type: ignore[no-untyped-call]  # Ray has no types there
            return 0
        except (RayError, RayServeException):
            return 0
        # Ray restarts what answers here, too: without it the one that has answered counts.
        with suppress(asyncio.TimeoutError, RayError, RayServeException):
            # In a thread: serve.status blocks, and with it would every request.
            known = await asyncio.wait_for(asyncio.to_thread(_running_replicas), HEALTH_SECONDS)
            return max(1, known)
        return 1


def _running_replicas() -> int:
    deployment = serve.status().applications[APPLICATION].deployments[DEPLOYMENT]
    # Typed as members of an enumeration of strings, and in fact plain ones: both equal the name.
    states = deployment.replica_states.items()
    return sum(number for state, number in states if state == "RUNNING")


def share(settings: Settings, node: Node) -> tuple[float, int]:
    """(CPUs a replica reserves, threads it computes with)."""
    cpus = node.cpus / settings.replicas
    # Whole CPUs where there are any: threads come in whole numbers.
    return (float(int(cpus)), int(cpus)) if cpus >= 1 else (cpus, 1)


def start(model: str, settings: Settings, node: Node) -> Replicas:
    """Put the model on Serve in this Ray, and return when all replicas have loaded it; raises
    RunError.
    """
    cpus, threads = share(settings, node)
    device = "cuda" if settings.gpus_per_replica else "cpu"
    import_from = os.getcwd() if settings.trust_code else None
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=settings.replicas,
        # All batches that are under way may meet at one replica, where the others have died.
        max_ongoing_requests=BATCHES_A_REPLICA * settings.replicas + PROBES,
        ray_actor_options={"num_cpus": cpus, "num_gpus": settings.gpus_per_replica},
        health_check_period_s=NOTICE_SECONDS,
    )(Predictor)
    # Serve's own HTTP proxy would read a body of any size into memory before a replica could refuse
    # it.
    serve.start(
        proxy_location="Disabled",
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    try:
        return Replicas(
            serve.run(
                deployment.bind(model, settings.max_pixels, threads, device, import_from),
                name=APPLICATION,
                route_prefix=None,
            )
        )
    except RuntimeError as error:
        raise RunError(model, f"could not be started ({describe_error(error, -1)})") from error
