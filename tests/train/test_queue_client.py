"""A search and its teams over a queue in this process: what is protocol and not Ray."""

import pytest

from raysft.job.recipe import Train
from raysft.job.spec import Model
from raysft.train.queue.assignment import Assignment, Member
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
