"""A Ray of this machine for one command."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysft.cluster.local import local_ray
from raysft.console import Output
from raysft.job.plan import Node


@contextmanager
def silent_ray(node: Node, output: Output) -> Iterator[Path]:
    """A Ray whose own messages nobody sees; yields its scratch folder."""
    # There is no run directory to keep a log in. The file has no name any more once this process
    # writes to it, so nothing is left of it, however the process ends.
    with tempfile.NamedTemporaryFile(prefix="raysft-", suffix=".log") as log:
        output.redirect_other_output(Path(log.name))
    with local_ray(node) as scratch:
        yield scratch
