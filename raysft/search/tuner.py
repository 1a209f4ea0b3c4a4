"""The search of a run: Ray Tune's Tuner over trials that teams train."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler
from ray.tune.stopper import CombinedStopper, Stopper

from raysft.job import Job
from raysft.job.spec import Search
from raysft.job.values import Config
from raysft.search.earlier import EarlierTrials, Past
from raysft.search.pace import Paced
from raysft.search.schedulers import make_scheduler
from raysft.search.searchers import make_searcher
from raysft.search.standin import StandIn
from raysft.search.stoppers import AfterFailures, AtTarget, WithRun
from raysft.search.teams import MakeAssignment, Teams
from raysft.train.queue.client import QueueClient

MOST_DEATHS = 3  # of the stand-ins of a trial

# What Tune reads from the environment when a search begins.
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run has files of its own
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no metrics
    "TUNE_GLOBAL_CHECKPOINT_S": "1e12",  # a resume replays what is in the run directory
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints even where it is told to be silent
}


@dataclass(frozen=True)
class Trials:
    """The trials that a search is about."""

    names: Sequence[str]
    """Of all trials of the run, by their numbers."""
    numbers: Sequence[int]
    """Those that have not ended."""
    configs: Mapping[int, Config]
    """As far as they are known before."""
    past: Sequence[Past]
    known: EarlierTrials
    failed: int
    make_assignment: MakeAssignment
    file_of: Callable[[str], str]
    """What tells more of a trial."""


def run_search(
    job: Job,
    trials: Trials,
    queue: QueueClient,
    teams: int,
    scratch: Path,
    is_over: threading.Event,
) -> None:
    """Run the trials that have not ended, `teams` at a time; returns when the last one has ended.

    `is_over` ends it before; Tune's files come to `scratch`.
    """
    search = job.search
    assert search is not None
    epochs = job.train.epochs
    scheduler = make_scheduler(search, len(trials.names), epochs, teams, trials.known)
    searcher = make_searcher(job, trials.numbers, trials.configs, trials.past)
    # These compare trials that begin together, and pause for those that wait to begin.
    needs_all = search.scheduler.changes_trials or isinstance(scheduler, HyperBandScheduler)
    most = None if needs_all else teams
    callback = Teams(queue, trials.names, trials.make_assignment)
    trainable = tune.with_parameters(
        StandIn, queue=queue, names=tuple(trials.names), trials_copy=search.scheduler.changes_trials
    )
    scratch.mkdir(parents=True, exist_ok=True)
    with _settings(teams), tempfile.TemporaryDirectory(prefix="tune-", dir=scratch) as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, _resources(teams)),
            tune_config=tune.TuneConfig(
                search_alg=Paced(searcher, callback, most),
                scheduler=scheduler,
                num_samples=len(trials.numbers),
                reuse_actors=True,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                callbacks=[callback],
                stop=_stopper(search, trials, queue, is_over),
                failure_config=tune.FailureConfig(max_failures=MOST_DEATHS),
                verbose=0,
            ),
        )
        tuner.fit()
    for number in trials.numbers:
        name = trials.names[number]
        if name not in callback.folders:  # the search has ended before
            queue.skip(name, trials.configs.get(number, {}))


def _stopper(
    search: Search, trials: Trials, queue: QueueClient, is_over: threading.Event
) -> Stopper:
    stoppers: list[Stopper] = [WithRun(is_over)]
    if search.target is not None:
        stoppers.append(AtTarget(search.target, search.metric, queue))
    if search.max_failures is not None:
        most = search.max_failures
        stoppers.append(AfterFailures(most, trials.failed, trials.file_of, queue))
    return CombinedStopper(*stoppers)


def _resources(teams: int) -> PlacementGroupFactory:
    """Of a stand-in: no CPU, which the teams need, and as many stand-ins as there are teams."""
    # Beside the driver, whose files it shares. Each node has one of a resource named after it.
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)  # type: ignore[no-untyped-call]
    address = f"node:{node['NodeManagerAddress']}"
    return PlacementGroupFactory([{"CPU": 0, address: 1 / teams}])


def _folder_name(trial: Trial) -> str:
    name: str = trial.trial_id
    return name


@contextmanager
def _settings(teams: int) -> Iterator[None]:
    """Tune's settings, which it takes from the environment."""
    # As many stand-ins start at once as there are teams; one after the other is Tune's way.
    wanted = SETTINGS | {"TUNE_MAX_PENDING_TRIALS_PG": str(teams)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    # It misses files in the end that it was told not to write.
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
