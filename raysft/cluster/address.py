"""Where a cluster is: what --address and RAY_ADDRESS may say, and the dashboard that is meant.
Needs no Ray.
"""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from raysft.errors import UserError
from raysft.ray_shortcuts import is_dashboard

VARIABLE = "RAY_ADDRESS"
DASHBOARD_PORT = 8265
# Ray's defaults for its own wire, and for the client that raysft does not use.
GCS_PORT = 6379
CLIENT_PORT = 10001
ANSWER_SECONDS = 1.0  # of a dashboard on this machine
HELP = "give http://HOST:8265; `raysft connect cluster/gpu.yaml` opens a tunnel and prints one"


@dataclass(frozen=True)
class Address:
    """The dashboard of a cluster, and whether the environment named it rather than the person who
    calls.
    """

    url: str
    from_environment: bool = False

    def __str__(self) -> str:
        return f"{VARIABLE}={self.url}" if self.from_environment else self.url


def parse_address(given: str | None, from_environment: bool) -> Address | None:
    """The dashboard that is meant; None for this machine. Raises UserError for what is none."""
    if not given or given == "local":
        return None
    name = str(Address(given, from_environment))
    if given == "auto":
        return Address(_dashboard_here(name), from_environment)
    # urlsplit takes HOST:PORT for a scheme with a path.
    scheme, _, rest = given.rpartition("://")
    try:
        parts = urlsplit(given if scheme else f"http://{given}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UserError(name, f"is not an address ({error})", HELP) from None
    if scheme not in ("", "http", "https") or not host:
        raise UserError(name, "is not the address of a dashboard", _hint(host, from_environment))
    # The address that `ray start` prints first; no HTTP is spoken there.
    if port in (GCS_PORT, CLIENT_PORT):
        raise UserError(
            name,
            "is a port that Ray's processes speak to each other on, not the dashboard's",
            _hint(host, from_environment),
        )
    if not scheme and port is None:
        rest = f"{given}:{DASHBOARD_PORT}"
    return Address(f"{scheme or 'http'}://{rest.rstrip('/')}", from_environment)


def _hint(host: str, from_environment: bool) -> str:
    where = f"[{host}]" if ":" in host else host or "HOST"
    unset = f", or unset {VARIABLE} to run on this machine" if from_environment else ""
    return (
        f"give http://{where}:{DASHBOARD_PORT}, or what `raysft connect cluster/gpu.yaml` "
        f"prints{unset}"
    )


def _dashboard_here(name: str) -> str:
    """The dashboard of the Ray that runs on this machine; raises UserError where there is none, or
    several.
    """
    ports = [port for port in _ports_here() if _listens(port)]
    # Of a process that is not seen from here, as in another container.
    if not ports and _answers(DASHBOARD_PORT):
        ports = [DASHBOARD_PORT]
    found = [f"http://127.0.0.1:{port}" for port in ports]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(name, f"may be each of {', '.join(found)}", "give the one that is meant")
    raise UserError(
        name,
        "finds no dashboard of a Ray on this machine",
        "`ray start --head` starts one; else give "
        f"http://HOST:{DASHBOARD_PORT}, or local to run on this machine alone",
    )


def _ports_here() -> list[int]:
    """Where dashboards of this machine listen, as their processes say."""
    import psutil

    ports = set()
    for process in psutil.process_iter():
        # Processes end while they are listed, and those of others may not be read.
        with suppress(psutil.Error, ValueError):
            words = process.cmdline()
            if is_dashboard(words):
                ports |= {
                    int(word.partition("=")[2]) for word in words if word.startswith("--port=")
                }
    return sorted(ports)


def _listens(port: int) -> bool:
    """Whether someone listens; a dashboard that has just started takes some seconds for its first
    answer.
    """
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS):
        return True
    return False


def _answers(port: int) -> bool:
    """Whether a dashboard answers there, also with that it wants a token."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/version", timeout=ANSWER_SECONDS
        ) as answer:
            return "ray_version" in json.load(answer)
    except urllib.error.HTTPError as error:
        # Who asks for a token is there; that it is missing is told when it is used.
        return error.code in (401, 403)
    except (OSError, ValueError):
        return False
