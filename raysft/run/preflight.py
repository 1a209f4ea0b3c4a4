"""What a job needs that can be looked at before anything starts: its data, its weights, its
searcher, what it is tracked with.
"""

from __future__ import annotations

import netrc
import os
from importlib.util import find_spec
from urllib.parse import urlsplit

from raysft.errors import UserError
from raysft.job import Job
from raysft.job.algorithms import ALGORITHMS
from raysft.job.plan import Outline
from raysft.job.spec import Tracking


def outline_of(job: Job) -> Outline:
    """What is known of a job's data before it is read; raises UserError for what is not there, or
    cannot be.
    """
    from raysft.data.importer import cache_folder
    from raysft.data.sources import outline_source
    from raysft.search.space import check_configurations
    from raysft.train.setup import find_weights_file

    check_tracking(job.tracking)
    check_algorithm(job)
    check_configurations(job)
    space = job.search.space if job.search else {}
    # Weights that are searched are looked for by each trial: others may do without them.
    if "model" not in space and "model.weights" not in space:
        find_weights_file(job.model)
    return outline_source(job.data, cache_folder())


def check_algorithm(job: Job) -> None:
    """Raise UserError where a library of the searcher is missing."""
    name = job.search.algorithm.name if job.search else "random"
    algorithm = ALGORITHMS[name]
    for library in algorithm.libraries:
        if not _is_installed(library):
            what = f"the library {library} is not installed"
            raise UserError(f"search.algorithm: {name}", what, f"pip install {algorithm.install}")


def check_tracking(tracking: Tracking) -> None:
    """Raise UserError where a package or a key is missing that a job is to be tracked with."""
    wanted = {
        "tensorboard": tracking.tensorboard,
        "mlflow": tracking.mlflow,
        "wandb": tracking.wandb,
    }
    for package, value in wanted.items():
        if value and not _is_installed(package):
            todo = f"`pip install 'raysft[{package}]'`"
            if package == "tensorboard":  # which nobody has asked for: it is on by itself
                todo = "`pip install tensorboard`, or set it to false"
            what = f"the package {package} is not installed"
            raise UserError(f"tracking.{package}", what, todo)
    mode = tracking.wandb_mode or os.environ.get("WANDB_MODE", "online")
    if tracking.wandb and mode == "online" and not _has_wandb_key():
        raise UserError(
            "tracking.wandb",
            "there is no key for Weights & Biases",
            "set WANDB_API_KEY, or tracking.wandb_mode: offline",
        )


def _is_installed(package: str) -> bool:
    found = find_spec(package)
    # A folder of that name, as W&B makes one for its runs, is taken for a package without a file.
    return found is not None and found.origin is not None


def _has_wandb_key() -> bool:
    """Whether the environment has a key, or `wandb login` has left one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
