"""A search and its teams over a queue in this process: what is protocol and not Ray."""

import pytest

from raysft.job.recipe import Train
from raysft.job.scheduler import Scheduler
from raysft.job.spec import Model
from raysft.search.earlier import EarlierTrials
from raysft.search.halving import Halving
from raysft.search.propose import InOrder
from raysft.search.rules import Scheduler as EveryTrial
from raysft.search.tuner import search
from raysft.train.queue.assignment import Assignment, Member
from raysft.train.queue.client import QueueClient
from raysft.train.queue.events import BatchHalved, EpochEnded, TrialEnded, TrialEvent
from raysft.train.queue.policy import (
    MAX_ATTEMPTS,
    End,
    Failure,
    Ignore,
    Pause,
    Requeue,
    after_failure,
    after_lost_team,
)
from raysft.train.queue.trial_state import TRANSITIONS, WITHOUT_TEAM, Phase, TrialState
from tests.train.local_teams import LocalTeams


def assignment(trial: str, **more) -> Assignment:
    return Assignment("train", trial, "", Model(), Train(), 0, **more)


def run_search(teams: LocalTeams, names: list[str], scheduler, make=None) -> list[TrialEvent]:
    """Search until all trials have ended; returns what happened to them."""
    configs = {number: {"seed": number} for number in range(len(names))}

    def make_assignment(number: int, config: dict) -> Assignment:
        return assignment(names[number], config=config)

    proposals = InOrder(list(configs), configs)
    search(proposals, make or make_assignment, names, teams.queue, len(teams.threads), scheduler)
    return wait_for_ends(teams.queue, names)


def wait_for_ends(queue: QueueClient, names: list[str]) -> list[TrialEvent]:
    events: list[TrialEvent] = []
    while {e.trial for e in events if isinstance(e, TrialEnded)} != set(names):
        found = queue.events(len(events), 5)
        assert found, events
        events += [event for event in found if isinstance(event, TrialEvent)]
    return events


def statuses(events: list[TrialEvent]) -> dict[str, str]:
    return {event.trial: event.status for event in events if isinstance(event, TrialEnded)}


def test_all_trials_of_plain_search_finish():
    losses = {f"t{number}": [1.0, 0.5, 0.4] for number in range(5)}
    with LocalTeams(losses, teams=2) as teams:
        events = run_search(teams, list(losses), EveryTrial())
    assert set(statuses(events).values()) == {"finished"}
    assert set(teams.trained.values()) == {3}


def test_halving_pauses_all_trials_and_resumes_the_best():
    losses = {f"t{number}": [1.0 + number] * 9 for number in range(9)}
    spec = Scheduler(grace_epochs=1, reduction_factor=3)
    with LocalTeams(losses, teams=2) as teams:
        scheduler = Halving(spec, 9, 9, 2, "val_loss", EarlierTrials())
        events = run_search(teams, list(losses), scheduler)
    finished = {trial for trial, status in statuses(events).items() if status == "finished"}
    assert finished == {"t0", "t1"}  # as many as there are teams
    assert teams.trained["t0"] == 9
    assert sum(teams.trained.values()) < 9 * 9 / 2
    assert {event.kind for event in events if event.trial == "t0"} >= {"paused", "epoch"}


def test_a_failed_trial_does_not_stop_the_others():
    losses = {"t0": [1.0, ValueError("boom")], "t1": [1.0, 0.9]}
    with LocalTeams(losses, teams=1) as teams:
        events = run_search(teams, list(losses), EveryTrial())
    assert statuses(events) == {"t0": "failed", "t1": "finished"}
    assert [e.error for e in events if isinstance(e, TrialEnded) and e.error] == ["boom"]


def test_trial_short_of_memory_continues_with_half_batches():
    losses = {"t0": [1.0, MemoryError("out of memory"), 0.5]}
    with LocalTeams(losses, teams=1) as teams:
        events = run_search(teams, list(losses), EveryTrial())
    assert statuses(events) == {"t0": "finished"}
    assert [e.accumulate for e in events if isinstance(e, BatchHalved)] == [2]
    assert teams.accumulate["t0"] == 2
    epochs = [e.metrics["epoch"] for e in events if isinstance(e, EpochEnded)]
    assert epochs == [1, 2]


def test_an_impossible_configuration_fails_its_trial_alone():
    losses = {"t0": [1.0], "t1": [1.0]}

    def make(number: int, config: dict) -> Assignment:
        if number == 0:
            raise ValueError("too few\nepochs")
        return assignment("t1", config=config)

    with LocalTeams(losses, teams=2) as teams:
        events = run_search(teams, list(losses), EveryTrial(), make)
    assert statuses(events) == {"t0": "failed", "t1": "finished"}
    assert [e.error for e in events if isinstance(e, TrialEnded) and e.error] == ["too few epochs"]


def test_a_finished_search_stops_trials_after_their_epoch():
    losses = {f"t{number}": [1.0] * 1000 for number in range(3)}

    class StopAfterTen(EveryTrial):
        def epoch(self, number, metrics):
            if metrics["epoch"] == 10:
                teams.queue.finish_search()
            return "go on"

    with LocalTeams(losses, teams=2) as teams:
        events = run_search(teams, list(losses), StopAfterTen())
    assert set(statuses(events).values()) == {"stopped"}
    assert max(teams.trained.values()) <= 11


def test_a_reply_that_does_not_come_times_out():
    from concurrent.futures import TimeoutError

    teams = LocalTeams({}, teams=0)
    teams.queue.put(assignment("a"))
    member = Member(0, 0, 0, 2, 1)
    teams.queue.next_assignment(member, 0)
    teams.queue.report_failure(member, "a", Failure("boom", ""))
    with pytest.raises(TimeoutError):
        teams.queue.wait_for_team(member, 1).result(0.01)
    teams.link.shut_down()


# --- phases and policy ----------------------------------------------------------------------------


def test_every_phase_leads_to_the_end():
    assert set(TRANSITIONS) == set(Phase)
    for phase in set(Phase) - {Phase.ENDED}:
        assert Phase.ENDED in TRANSITIONS[phase]
    assert not TRANSITIONS[Phase.ENDED]


@pytest.mark.parametrize(
    ("phase", "following"),
    [(phase, to) for phase in Phase for to in Phase if to not in TRANSITIONS[phase]],
)
def test_transition_outside_the_table_is_refused(phase, following):
    state = TrialState(assignment("a"), phase)
    with pytest.raises(ValueError, match="trial a cannot go from"):
        state.enter(following)
    assert state.phase is phase


@pytest.mark.parametrize(
    ("phase", "attempt", "decision"),
    [
        (Phase.RUNNING, 0, Requeue(assignment("a", attempt=1))),
        (
            Phase.RUNNING,
            MAX_ATTEMPTS - 1,
            End("failed", "its worker died 3 times without getting further", ""),
        ),
        (Phase.PAUSING, MAX_ATTEMPTS, Pause()),
        (Phase.STOPPING, 0, End("stopped")),
        *((phase, 0, Ignore()) for phase in Phase if phase in WITHOUT_TEAM),
    ],
)
def test_what_becomes_of_a_trial_without_its_team(phase, attempt, decision):
    assert after_lost_team(phase, assignment("a", attempt=attempt)) == decision


@pytest.mark.parametrize(
    ("phase", "cause", "halved", "decision"),
    [
        (Phase.RUNNING, "failed", False, End("failed", "why", "trace")),
        (Phase.RUNNING, "diverged", False, End("diverged", "why", "trace")),
        (Phase.RUNNING, "out_of_memory", True, End("failed", "why", "trace")),
        (Phase.STOPPING, "out_of_memory", False, End("failed", "why", "trace")),
        (Phase.PAUSING, "out_of_memory", False, Pause()),
        *((phase, "out_of_memory", False, Ignore()) for phase in Phase if phase in WITHOUT_TEAM),
    ],
)
def test_failure_outcome_depends_on_phase_and_cause(phase, cause, halved, decision):
    given = assignment("a", halved=halved)
    assert after_failure(phase, given, Failure("why", "trace", cause)) == decision


def test_memory_is_halved_by_twice_the_parts():
    given = Assignment("train", "a", "", Model(), Train(accumulate=3), 0)
    decision = after_failure(Phase.RUNNING, given, Failure("why", "", "out_of_memory"))
    assert isinstance(decision, Requeue)
    assert decision.assignment.train.accumulate == 6
    assert decision.assignment.halved
