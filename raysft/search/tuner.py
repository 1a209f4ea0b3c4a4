"""The search of a run: Ray Tune's Tuner over trials that teams train."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.stopper import CombinedStopper, Stopper

from raysft.errors import RunError
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

MOST_DEATHS = 3  # of the stand-ins of a trial; one that dies while it is handed on is the last
MOST_SECONDS = 15.0  # until the places of a search that has ended are free

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


@dataclass(frozen=True)
class Place:
    """Where a search works."""

    queue: QueueClient
    teams: int
    scratch: Path
    """For Tune's files, which are removed with the search."""
    is_over: threading.Event
    """Ends the search before its trials have ended."""


def run_search(job: Job, trials: Trials, place: Place) -> None:
    """Run the trials that have not ended, one a team at a time, until the last one has ended."""
    assert job.search is not None
    queue = place.queue
    stoppers = _stoppers(job.search, trials, place)
    failures = next((one for one in stoppers if isinstance(one, AfterFailures)), None)
    most = None if _needs_all(job.search) else place.teams
    # With one team the stand-in of another trial could take the place, and wait for the team, which
    # waits for this trial.
    deaths = 0 if most is None and place.teams == 1 else MOST_DEATHS
    callback = Teams(queue, trials.names, trials.make_assignment, most, failures)
    searcher = make_searcher(job, trials.numbers, trials.configs, trials.past)
    place.scratch.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(prefix="tune-", dir=place.scratch)
    with _settings(_most_pending(job.search, trials, place.teams)), scratch as folder:
        trainable = tune.with_parameters(
            StandIn,
            queue=queue,
            names=tuple(trials.names),
            trials_copy=job.search.scheduler.changes_trials,
        )
        share = {"CPU": 0, _free_resource(place.teams): share_of_stand_in(place.teams)}
        tune.Tuner(
            tune.with_resources(trainable, PlacementGroupFactory([share])),
            tune_config=_tune_config(job, searcher, trials, place.teams, callback),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                callbacks=[callback],
                stop=CombinedStopper(*stoppers),
                failure_config=tune.FailureConfig(max_failures=deaths),
                # Only those that others go on from are needed, and a trial may fail without any.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    if searcher.exhausted:
        queue.finish_search(searcher.exhausted)
    for number in trials.numbers:
        name = trials.names[number]
        if name not in callback.folders:  # the search has ended before
            queue.skip(name, trials.configs.get(number, {}))


def _tune_config(
    job: Job, searcher: Searcher, trials: Trials, teams: int, callback: Teams
) -> tune.TuneConfig:
    """What proposes the trials, and what decides on them."""
    assert job.search is not None
    scheduler = make_scheduler(job, len(trials.names), teams, trials.known)
    return tune.TuneConfig(
        search_alg=Paced(searcher, callback),
        scheduler=scheduler,
        # As many as the searcher proposes, which says when there are no more.
        num_samples=len(trials.numbers) if _needs_all(job.search) else -1,
        reuse_actors=True,
        trial_dirname_creator=_folder_name,
    )


def _stoppers(search: Search, trials: Trials, place: Place) -> list[Stopper]:
    queue = place.queue
    stoppers: list[Stopper] = [WithRun(place.is_over)]
    if search.target is not None:
        stoppers.append(AtTarget(search.target, search.metric, queue))
    if search.max_failures is not None:
        most = search.max_failures
        stoppers.append(AfterFailures(most, trials.failed, trials.file_of, queue))
    return stoppers


def _needs_all(search: Search) -> bool:
    """Whether it compares trials that begin together, and pauses them for those that wait."""
    return search.scheduler.changes_trials or search.scheduler.name in ("hyperband", "bohb")


def share_of_stand_in(teams: int) -> float:
    """How much of a resource of its node each stand-in takes: as many fit as there are teams.

    It is the least share of which one more does not fit. What is left, up to some ninety teams, is
    for actors of Ray's own: Ray Train and Ray Data take a thousandth each.
    """
    return (10_000 // (teams + 1) + 1) / 10_000  # Ray counts ten-thousandths


def _free_resource(teams: int) -> str:
    """What the stand-ins share: a resource of this node, and no CPU, which teams need.

    Tune starts one for every trial that waits where nothing keeps it from that, and keeps none
    where no trial waits for one. They work beside the driver, whose files they share.
    """
    wanted = teams * share_of_stand_in(teams)
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)  # type: ignore[no-untyped-call]
    # Each node has one of a resource named after it, and the first one of another.
    names: list[str] = [name for name in node["Resources"] if name.startswith("node:")]
    deadline = time.monotonic() + MOST_SECONDS
    while time.monotonic() < deadline:
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        for name in names:
            if free.get(name, 0.0) >= wanted:
                return name
        time.sleep(0.1)
    raise RunError(
        "search",
        f"{len(names)} other searches are run from this node, as many as it has places for",
        "resume this one when one of them has ended",
    )


def _folder_name(trial: Trial) -> str:
    name: str = trial.trial_id
    return name


def _most_pending(search: Search, trials: Trials, teams: int) -> int:
    """How many trials may wait for a stand-in."""
    # A bracket of HyperBand takes in whoever comes while it has a place: were trials proposed as
    # others end, the first bracket, in which all train to the end, would take in most of them.
    if search.scheduler.name == "hyperband":
        return len(trials.numbers)
    # As many stand-ins start at once as there are teams; one after the other is Tune's way.
    return teams


@contextmanager
def _settings(pending: int) -> Iterator[None]:
    """Tune's settings, which it takes from the environment."""
    wanted = SETTINGS | {"TUNE_MAX_PENDING_TRIALS_PG": str(pending)}
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
