"""Whether a cluster's Python has what raysft needs, and the Ray of the client's series."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec

from raysft.errors import UserError

# Those that the quickstart and the tests of driver and search were run on; as in pyproject.toml.
SUPPORTED_SERIES = ("2.59", "2.60")
CLIENT_RAY = "RAYSFT_CLIENT_RAY"  # in a Ray job: the version of the Ray that it was sent by
INSTALL = "install raysft's requirements.lock on every node, and start the cluster again"


def client_environment() -> dict[str, str]:
    """What a Ray job is told of the client that sends it."""
    return {CLIENT_RAY: version("ray")}


def check_versions() -> None:
    """Raise UserError where this cluster's Python environment is not one that raysft works in."""
    for package in ("ray", "torch"):
        # Looked for and not imported: what is missing is told in one line, not as a traceback.
        if find_spec(package) is None:
            raise UserError(
                "cluster",
                f"its Python {platform.python_version()} has no {package}",
                "install raysft's requirements.lock on every node",
            )
    import ray

    problem = series_problem(ray.__version__)
    if problem is not None:
        raise UserError("cluster", *problem)


def series_problem(here: str) -> tuple[str, str] | None:
    """What is wrong with the cluster's version of Ray, and what to do; None where it fits."""
    # Patch releases keep what raysft uses, minor ones do not promise to.
    series = series_of(here)
    if series not in SUPPORTED_SERIES:
        return f"runs Ray {here}, raysft needs Ray {' or '.join(SUPPORTED_SERIES)}", INSTALL
    client = os.environ.get(CLIENT_RAY)  # none in a job of an older raysft
    if client is not None and series_of(client) != series:
        return (
            f"runs Ray {here}, the client has Ray {client}",
            f"install Ray {series}.* on the client, or {series_of(client)}.* on every node",
        )
    return None


def series_of(text: str) -> str:
    """The minor series of a version: 2.60 of 2.60.1."""
    return ".".join(text.split(".")[:2])
