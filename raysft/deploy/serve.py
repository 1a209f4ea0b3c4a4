"""`raysft serve`: a delivered model on Ray Serve on this machine, over HTTP, until Ctrl-C."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft import __version__, interrupts
from raysft.cluster.local import local_ray, this_node
from raysft.console import Output
from raysft.deploy.settings import Settings
from raysft.errors import ResourceError, RunError, UserError
from raysft.job.plan import Node
from raysft.results.model import ModelCard, check_trust, read_card
from raysft.storage import storage_path
from raysft.wording import count_text

if TYPE_CHECKING:
    from raysft.deploy.replicas import Replicas

BACKLOG = 2048  # connections that are not yet accepted
KEEP_ALIVE_SECONDS = 75
FAREWELL_SECONDS = 10  # for requests that are accepted when the end comes


def serve_here(model: str, settings: Settings, output: Output) -> None:
    """Serve a model until Ctrl-C or SIGTERM, which is raised as KeyboardInterrupt.

    Raises UserError for what can be known to be wrong before Ray starts, RunError where the model
    does not start.
    """
    _check_installed()
    card = read_card(storage_path(model))
    check_trust(storage_path(model), card, settings.trust_code)
    node = this_node()
    check_gpus(settings, node)
    with _bound(settings) as listener, _log() as log:
        if not is_loopback(settings.host):
            output.warning(
                f"--host {settings.host}: whoever reaches this machine can use the model; there "
                "is no "
                "authentication"
            )
        output.line(
            f"Ray starts on this machine ({node.cpus:g} CPUs, {node.gpus:g} GPUs) with "
            f"{count_text(settings.replicas, 'replica')} of {model}"
        )
        output.send_others_to(log)
        with local_ray(node):
            interrupts.listen()  # Ray has put handlers of its own there
            from raysft.deploy.replicas import start

            try:
                replicas = start(str(storage_path(model)), settings, node)
            except RunError as error:
                raise RunError(error.where, error.what, f"see {log}") from error
            _serve(replicas, about(model, card, settings), card, settings, listener, output)


def _serve(
    replicas: Replicas,
    document: dict[str, Any],
    card: ModelCard,
    settings: Settings,
    listener: socket.socket,
    output: Output,
) -> None:
    import uvicorn

    from raysft.deploy.http import FIELD, Front
    from raysft.deploy.replicas import BATCHES_A_REPLICA

    front = Front(
        document, settings, replicas, BATCHES_A_REPLICA * settings.replicas, output.warning
    )
    server = uvicorn.Server(
        uvicorn.Config(
            front.app(),
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FAREWELL_SECONDS,
        )
    )
    listener.listen(BACKLOG)
    url = url_of(listener)
    output.line(f"{document['model']} answers at {url} (Ctrl-C ends it)")
    output.line(f"  curl --form {FIELD}=@IMAGE {url}/predict")
    server.run(sockets=[listener])
    raise KeyboardInterrupt  # nothing else ends it; it has answered what it had accepted


def about(model: str, card: ModelCard, settings: Settings) -> dict[str, Any]:
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
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _check_installed() -> None:
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
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """A socket that holds the port from now on, and does not listen yet; raises UserError."""
    where = f"{settings.host}:{settings.port}"
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise UserError(
                where, f"cannot be used ({error.strerror})", "give another --port or --host"
            ) from None
        yield listener


@contextmanager
def _log() -> Iterator[Path]:
    """A file for what Ray and the libraries print; it stays where something failed."""
    descriptor, name = tempfile.mkstemp(prefix="raysft-serve-", suffix=".log")
    os.close(descriptor)
    keep = False
    try:
        yield Path(name)
    except Exception:
        keep = True
        raise
    finally:
        if not keep:
            Path(name).unlink(missing_ok=True)
