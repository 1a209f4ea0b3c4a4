"""Stand-ins and teams over a queue in this process: what is protocol and neither Tune nor Ray."""

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raysft.job import Job
from raysft.search.earlier import EarlierTrials
from raysft.search.schedulers import make_scheduler
from raysft.search.stoppers import AfterFailures, AtTarget
from raysft.search.teams import Teams
from raysft.train.queue.client import QueueClient
from raysft.train.queue.events import (
    BatchHalved,
    EpochEnded,
    RunRefused,
    SearchFinished,
    TrialCopied,
    TrialEnded,
    TrialEvent,
)
from tests.search.local_tune import LocalTune, Tried
from tests.train.local_teams import LocalTeams


def wait_for_ends(queue: QueueClient, names) -> list[TrialEvent]:
    """What happened to the trials until all have ended."""
    events = []
    while {e.trial for e in events if isinstance(e, TrialEnded)} != set(names):
        found = queue.events(len(events), 5)
        assert found, events
        events += found
    return [event for event in events if isinstance(event, TrialEvent)]


def statuses(events: list[TrialEvent]) -> dict[str, str]:
    return {event.trial: event.status for event in events if isinstance(event, TrialEnded)}


def errors(events: list[TrialEvent]) -> list[str]:
    return [event.error for event in events if isinstance(event, TrialEnded) and event.error]


def test_all_trials_of_plain_search_finish(tmp_path):
    losses = {f"t{number}": [1.0, 0.5, 0.4] for number in range(5)}
    with LocalTeams(losses, teams=2) as teams:
        LocalTune(teams, tmp_path).run()
        events = wait_for_ends(teams.queue, losses)
    assert set(statuses(events).values()) == {"finished"}
    assert set(teams.trained.values()) == {3}


def test_team_begins_before_the_stand_in_of_its_trial(tmp_path):
    with LocalTeams({"t0": [1.0, 0.5]}, teams=1) as teams:
        LocalTune(teams, tmp_path).paced.suggest("id")
        events = []
        while not any(isinstance(event, EpochEnded) for event in events):
            found = teams.queue.events(len(events), 5)
            assert found, events
            events += found


def test_halving_pauses_all_trials_and_resumes_the_best(tmp_path):
    losses = {f"t{number}": [1.0 + number] * 9 for number in range(9)}
    given = {"name": "halving", "grace_epochs": 1, "reduction_factor": 3}
    search = {"metric": "val_loss", "scheduler": given}
    job = Job.model_validate({"search": search, "train": {"epochs": 9}})
    with LocalTeams(losses, teams=2) as teams:
        scheduler = make_scheduler(job, 9, 2, EarlierTrials())
        LocalTune(teams, tmp_path, scheduler).run()
        events = wait_for_ends(teams.queue, losses)
    finished = {trial for trial, status in statuses(events).items() if status == "finished"}
    assert finished == {"t0", "t1"}  # as many as there are teams
    assert teams.trained["t0"] == 9
    assert sum(teams.trained.values()) < 9 * 9 / 2
    assert {event.kind for event in events if event.trial == "t0"} >= {"paused", "epoch"}


def test_a_failed_trial_does_not_stop_the_others(tmp_path):
    losses = {"t0": [1.0, ValueError("boom")], "t1": [1.0, 0.9]}
    with LocalTeams(losses, teams=1) as teams:
        tune = LocalTune(teams, tmp_path)
        tune.run()
        events = wait_for_ends(teams.queue, losses)
    assert statuses(events) == {"t0": "failed", "t1": "finished"}
    assert errors(events) == ["boom"]
    assert tune.searcher.ended == {"0": True, "1": False}


def test_trial_short_of_memory_continues_with_half_batches(tmp_path):
    losses = {"t0": [1.0, MemoryError("out of memory"), 0.5]}
    with LocalTeams(losses, teams=1) as teams:
        LocalTune(teams, tmp_path).run()
        events = wait_for_ends(teams.queue, losses)
    assert statuses(events) == {"t0": "finished"}
    assert [e.accumulate for e in events if isinstance(e, BatchHalved)] == [2]
    assert teams.accumulate["t0"] == 2
    epochs = [e.metrics["epoch"] for e in events if isinstance(e, EpochEnded)]
    assert epochs == [1, 2]


def test_an_impossible_configuration_fails_its_trial_alone(tmp_path):
    losses = {"t0": [1.0], "t1": [1.0]}
    with LocalTeams(losses, teams=2) as teams:
        tune = LocalTune(teams, tmp_path)

        def make(number, config):
            if number == 0:
                raise ValueError("too few\nepochs")
            return tune.make_assignment(number, config)

        tune.callback.make_assignment = make
        tune.run()
        events = wait_for_ends(teams.queue, losses)
    assert statuses(events) == {"t0": "failed", "t1": "finished"}
    assert errors(events) == ["too few epochs"]


@pytest.mark.parametrize("heard", [True, False], ids=["after its result", "before its result"])
def test_dead_stand_in_loses_no_epoch(tmp_path, heard):
    """Another one goes on where it was, also when its last result was lost with it."""
    losses = {"t0": [1.0, 0.9, 0.8]}
    seen = []

    def after(tune: LocalTune, trial: Tried, result: dict) -> None:
        seen.append(result["epoch"])
        if seen == [1, 2]:
            if heard:  # it has asked for the next epoch, and died while it waited
                assert tune.threads.submit(trial.stand_in.step).result(5)["epoch"] == 3
            tune.start(trial)

    with LocalTeams(losses, teams=1) as teams:
        LocalTune(teams, tmp_path, after=after).run()
        events = wait_for_ends(teams.queue, losses)
    assert statuses(events) == {"t0": "finished"}
    assert teams.trained["t0"] == 3
    assert seen[-1] == 3
    assert [e.metrics["epoch"] for e in events if isinstance(e, EpochEnded)] == [1, 2, 3]


class CopyAtTwo(FIFOScheduler):
    """The second trial goes on from the first one's checkpoint after its second epoch."""

    def on_trial_result(  # type: ignore[override]
        self, tune: LocalTune, trial: Tried, result: dict
    ) -> str:
        number = trial.config["number"]
        if number == 0 and result["epoch"] == 2:
            self.checkpoint = tune.save(trial)
        if number == 1 and result["epoch"] == 2:
            tune.pause_trial(trial, should_checkpoint=False)
            trial.checkpoint = self.checkpoint
            trial.config = {"number": 1, "config": {"train.batch_size": 8}}
            return TrialScheduler.NOOP
        return TrialScheduler.CONTINUE


def test_trial_continues_from_another_ones_checkpoint(tmp_path):
    losses = {"t0": [0.5, 0.4, 0.3], "t1": [1.0, 0.9, 0.8]}
    with LocalTeams(losses, teams=1) as teams:
        LocalTune(teams, tmp_path, CopyAtTwo(), trials_copy=True).run()
        events = wait_for_ends(teams.queue, losses)
        assert list(teams.queue.pinned_epochs("t0")) == [2]
    assert statuses(events) == {"t0": "finished", "t1": "finished"}
    (source,) = teams.sources
    assert (source.trial, source.folder, source.epoch) == ("t0", "folder of t0", 2)
    (copied,) = (event for event in events if isinstance(event, TrialCopied))
    assert (copied.trial, copied.source) == ("t1", "t0")
    assert copied.config == {"train.batch_size": 8}
    assert [metrics["val_loss"] for metrics in copied.history] == [0.5, 0.4]
    after = events[events.index(copied) + 1 :]
    assert [e.metrics["epoch"] for e in after if isinstance(e, EpochEnded)] == [3]


# --- what ends a search before its trials ---------------------------------------------------------


def test_reached_target_stops_trials_after_their_epoch(tmp_path):
    losses = {"t0": [1.0 - epoch / 1000 for epoch in range(1000)], "t1": [1.0] * 1000}

    def after(tune: LocalTune, trial: Tried, result: dict) -> None:
        target("id", result)
        tune.is_over = target.stop_all()

    with LocalTeams(losses, teams=2) as teams:
        target = AtTarget(0.99, "val_loss", teams.queue)
        LocalTune(teams, tmp_path, after=after).run()
        events = teams.queue.events(0, 0)
        said = [event.reason for event in events if isinstance(event, SearchFinished)]
    assert said == ["t0 has reached search.target with val_loss 0.9900: the search ends"]
    assert teams.trained["t0"] <= 12


def test_too_many_failures_refuse_the_run(tmp_path):
    losses = {f"t{number}": [ValueError("boom")] for number in range(4)}

    def after(tune: LocalTune, trial: Tried, result: dict) -> None:
        failures("id", result)
        tune.is_over = failures.stop_all()

    with LocalTeams(losses, teams=1) as teams:
        # one has failed in an earlier part of the run
        failures = AfterFailures(2, 1, "see {}".format, teams.queue)
        LocalTune(teams, tmp_path, after=after).run()
        (refused,) = (e for e in teams.queue.events(0, 5) if isinstance(e, RunRefused))
    assert str(refused.error) == (
        "search: 3 trials have failed, more than search.max_failures 2; t1: boom; see t1"
    )


def test_trial_whose_stand_ins_die_counts_as_failure(tmp_path):
    with LocalTeams({"t0": [0.5]}, teams=1) as teams:
        failures = AfterFailures(0, 0, "see {}".format, teams.queue)
        make = LocalTune(teams, tmp_path).make_assignment
        callback = Teams(teams.queue, ["t0"], make, failures=failures)
        trial = Tried({"number": 0, "config": {}}, "id")
        callback.on_trial_start(0, [trial], trial)
        callback.on_trial_error(0, [trial], trial)
        events = teams.queue.events(0, 5)
    assert failures.stop_all()
    (refused,) = (e for e in events if isinstance(e, RunRefused))
    assert "t0: the process that followed it for the search died" in str(refused.error)


def test_trial_whose_stand_ins_die_before_it_begins_has_failed(tmp_path):
    with LocalTeams({"t0": [0.5]}, teams=1) as teams:
        trial = Tried({"number": 0, "config": {}}, "id")
        LocalTune(teams, tmp_path).callback.on_trial_error(0, [trial], trial)
        events = wait_for_ends(teams.queue, ["t0"])
    assert statuses(events) == {"t0": "failed"}
