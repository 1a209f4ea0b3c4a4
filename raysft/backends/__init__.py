"""Where commands take effect: on this machine, or on a Ray cluster."""

from __future__ import annotations

from raysft.backends.backend import Backend
from raysft.cluster.address import Address
from raysft.console import Output


def backend_for(address: Address | None, output: Output) -> Backend:
    """The one that runs at an address; None: this machine."""
    # Imported here: a command for one of them needs none of the libraries of the other.
    if address is None:
        from raysft.backends.local import LocalBackend

        return LocalBackend(output)
    from raysft.backends.cluster import ClusterBackend

    return ClusterBackend(address, output)
