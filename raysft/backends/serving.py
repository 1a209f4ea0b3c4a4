"""`raysft serve`: a delivered model over HTTP, on a Ray of this machine, until Ctrl-C."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysft import interrupts
from raysft.cluster.local import local_ray, this_node
from raysft.console import Output
from raysft.deploy.serve import about, bound_socket, check_gpus, check_installed, is_loopback
from raysft.deploy.serve import serve as answer_requests
from raysft.deploy.settings import Settings
from raysft.errors import RunError
from raysft.results.model import check_trust, read_card
from raysft.storage import storage_path
from raysft.wording import count_text


def serve_model(model: str, settings: Settings, output: Output) -> None:
    """Serve a model until Ctrl-C or SIGTERM, which is raised as KeyboardInterrupt.

    Raises UserError for what can be known to be wrong before Ray starts, RunError where the model
    does not start.
    """
    check_installed()
    card = read_card(storage_path(model))
    check_trust(storage_path(model), card, settings.trust_code)
    node = this_node()
    check_gpus(settings, node)
    # Bound before Ray starts: a port that is taken is said at once.
    with bound_socket(settings) as listener, _log_kept_on_failure() as log:
        if not is_loopback(settings.host):
            output.warning(
                f"--host {settings.host}: anyone who reaches this machine can use the model; there "
                "is no authentication"
            )
        output.line(
            f"starting Ray on this machine ({node.cpus:g} CPUs, {node.gpus:g} GPUs) with "
            f"{count_text(settings.replicas, 'replica')} of {model}"
        )
        output.redirect_other_output(log)
        with local_ray(node):
            interrupts.listen()  # ray.init has put handlers of its own there
            # Here: it imports Ray, which reads its settings from the environment when it is
            # imported, and local_ray has just set them.
            from raysft.deploy.replicas import start

            try:
                replicas = start(str(storage_path(model)), settings, node)
            except RunError as error:
                raise RunError(error.where, error.what, f"see {log}") from error
            answer_requests(replicas, about(model, card, settings), settings, listener, output)


@contextmanager
def _log_kept_on_failure() -> Iterator[Path]:
    """A file for what Ray and the libraries print; it stays where something failed."""
    descriptor, name = tempfile.mkstemp(prefix="raysft-serve-", suffix=".log")
    os.close(descriptor)
    keep = False
    try:
        yield Path(name)
    except Exception:
        # Ctrl-C is no Exception: a server that was ended on purpose leaves nothing.
        keep = True
        raise
    finally:
        if not keep:
            Path(name).unlink(missing_ok=True)
