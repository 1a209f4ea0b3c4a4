"""The HTTP server before the replicas of a model, and what can be wrong before it starts."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from raysft import __version__
from raysft.console import Output
from raysft.deploy.settings import ServedModel, Settings
from raysft.errors import ResourceError, UserError
from raysft.job.plan import Node
from raysft.results.model import ModelCard
from raysft.wording import count_text

if TYPE_CHECKING:
    from raysft.deploy.replicas import Replicas

BACKLOG = 2048  # connections that are not yet accepted
KEEP_ALIVE_SECONDS = 75
FAREWELL_SECONDS = 10  # for requests that are accepted when the end comes


def serve(
    replicas: Replicas,
    document: ServedModel,
    settings: Settings,
    listener: socket.socket,
    output: Output,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which is raised as KeyboardInterrupt."""
    import uvicorn

    from raysft.deploy.http import FIELD, PredictionService
    from raysft.deploy.replicas import BATCHES_A_REPLICA

    service = PredictionService(
        document, settings, replicas, BATCHES_A_REPLICA * settings.replicas, output.warning
    )
    server = uvicorn.Server(
        uvicorn.Config(
            service.app(),
            # The batcher starts there; "auto" would hide that it could not.
            lifespan="on",
            # uvicorn would set up logging for the whole process, Ray's included.
            log_config=None,
            log_level="warning",
            access_log=False,
            # Longer than the 60 s of usual load balancers, which would find a closed connection.
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FAREWELL_SECONDS,
        )
    )
    # Only now: until the model is loaded a client is refused and need not wait.
    listener.listen(BACKLOG)
    url = url_of(listener)
    output.line(f"{document['model']} answers at {url} (Ctrl-C ends it)")
    output.line(f"  curl --form {FIELD}=@IMAGE {url}/predict")
    server.run(sockets=[listener])
    raise KeyboardInterrupt  # nothing else ends it; it has answered what it had accepted


def about(model: str, card: ModelCard, settings: Settings) -> ServedModel:
    """What GET / tells."""
    return {
        "model": model,
        "raysft": __version__,
        "architecture": card.architecture,
        "classes": card.classes,
        "image": {"height": card.height, "width": card.width},
        "scores": card.scores,
        "limits": {
            "body_mb": settings.max_body_mb,
            "images": settings.max_images,
            "megapixels": settings.max_megapixels,
            "queue": settings.queue,
        },
        "paths": ["POST /predict?top=K", "GET /health", "GET /metrics", "GET /"],
    }


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_gpus(settings: Settings, node: Node) -> None:
    """Raise ResourceError where this machine has too few GPUs."""
    gpus = settings.replicas * settings.gpus_per_replica
    # Serve itself would wait for GPUs that never come.
    if gpus > node.gpus:
        raise ResourceError(
            f"--gpus-per-replica {settings.gpus_per_replica:g}",
            f"{count_text(settings.replicas, 'replica')} would take {gpus:g} GPUs, this machine "
            "has "
            f"{node.gpus:g}",
            "give fewer, or 0 to predict on CPUs",
        )


def url_of(listener: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = listener.getsockname()[:2]
    # An IPv6 address has colons of its own.
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_installed() -> None:
    """Raise UserError where a library of Ray Serve is missing."""
    # Without importing Ray, which reads its settings then. Starlette reads forms with
    # python_multipart.
    missing = [
        name
        for name in ("fastapi", "starlette", "uvicorn", "python_multipart")
        if find_spec(name) is None
    ]
    if missing:
        raise UserError(
            "raysft serve",
            f"Ray Serve is not installed (no {missing[0]})",
            "pip install 'raysft[serve]'",
        )


@contextmanager
def bound_socket(settings: Settings) -> Iterator[socket.socket]:
    """A socket that holds the port from now on, and does not listen yet; raises UserError."""
    where = f"{settings.host}:{settings.port}"
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as listener:
        # Else a server that has just ended keeps its port for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise UserError(
                where, f"cannot be used ({error.strerror})", "give another --port or --host"
            ) from None
        yield listener
