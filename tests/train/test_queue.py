"""The actor between search and teams, without the actor: what each side sees, in which order."""

import asyncio
import pickle
from dataclasses import replace

import pytest

from raysft.errors import TrialError
from raysft.job.recipe import Train
from raysft.job.spec import Model
from raysft.train.queue.assignment import Assignment, Member, Turn
from raysft.train.queue.events import Event, TrialEnded, TrialProgress
from raysft.train.queue.policy import MAX_ATTEMPTS, Failure
from raysft.train.queue.trial_queue import TrialQueue


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(TrialQueue()), 5))


def task(name: str) -> Assignment:
    return Assignment("train", name, name, Model(), Train(), 0)


def member(
    slot: int = 0, team: int = 0, rank: int = 0, incarnation: int = 1, workers: int = 1
) -> Member:
    return Member(slot, team, rank, workers, incarnation)


async def kinds(queue) -> list[str]:
    """What happened since a trial was proposed."""
    return [kind(event) for event in await queue.events(0, 0) if event.kind != "proposed"]


def kind(event: Event) -> str:
    """What kind of event it is; of the end of a trial, how it ended."""
    return event.status if isinstance(event, TrialEnded) else event.kind


async def pending(awaitable) -> asyncio.Task:
    started = asyncio.ensure_future(awaitable)
    for _ in range(5):
        await asyncio.sleep(0)
    return started


def test_all_members_of_team_get_same_task():
    async def scenario(queue):
        first = await pending(queue.next_assignment(member(0, 0, 0, 1), 0))
        await queue.put(task("a"))
        await queue.put(task("b"))
        assert (await first) == Turn(task("a"), 1, 1)
        assert (await queue.next_assignment(member(0, 0, 1, 1), 0)) == Turn(task("a"), 1, 1)
        assert (await queue.next_assignment(member(0, 1, 0, 1), 0)) == Turn(task("b"), 1, 1)

    run(scenario)


def test_earlier_epochs_come_with_the_reported_one():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await pending(queue.report_epoch("a", [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}], False))
        event = await queue.next_event("a")
        assert (event.metrics, event.last) == ({"epoch": 3}, False)
        assert event.before == [{"epoch": 1}, {"epoch": 2}]

    run(scenario)


async def paused(queue) -> None:
    """Trial a trains an epoch with team 0, and pauses."""
    await queue.put(task("a"))
    await queue.next_assignment(member(0, 0, 0, 1), 0)
    report = await pending(queue.report_epoch("a", [{"epoch": 1}], False))
    assert kind(await queue.next_event("a")) == "epoch"
    await queue.pause("a")
    assert await report is False
    following = await pending(queue.next_event("a"))
    await queue.finish_trial(member(0, 0), "a", "")
    assert kind(await following) == "paused"


def test_resumed_trial_continues_on_another_team():
    async def scenario(queue):
        await paused(queue)
        other = await pending(queue.next_assignment(member(0, 1, 0, 1), 0))
        assert not other.done()
        await queue.resume("a")
        assert (await other).assignment == task("a")
        assert (
            await queue.report_epoch("a", [{"epoch": 1}], False) is True
        )  # told again, and nobody has to decide again
        following = await pending(queue.next_event("a"))
        assert await queue.report_epoch("a", [{"epoch": 2}], True) is False
        assert (await following).metrics["epoch"] == 2
        await queue.finish_trial(member(0, 1), "a", "")
        assert await kinds(queue) == ["started", "epoch", "paused", "started", "epoch", "finished"]

    run(scenario)


def test_trial_resumed_before_it_has_left_its_team_reports_no_epoch_twice():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await pending(queue.report_epoch("a", [{"epoch": 1}], False))
        assert kind(await queue.next_event("a", "first")) == "epoch"
        await queue.pause("a")
        await queue.resume("a")
        following = await pending(queue.next_event("a", "second"))
        assert not following.done()
        await queue.pause("a")  # it may have been chosen too soon
        await queue.finish_trial(member(0, 0), "a", "")
        assert kind(await following) == "paused"
        assert not queue._pending

    run(scenario)


@pytest.mark.parametrize("how", ["stop", "finish_search", "close"])
def test_stopped_paused_trial_ends_without_a_team(how):
    async def scenario(queue):
        await paused(queue)
        await (queue.stop("a") if how == "stop" else getattr(queue, how)())
        await queue.resume("a")
        assert (await kinds(queue))[-1] == "stopped"
        assert kind(await queue.next_event("a")) == "stopped"
        assert not queue._pending

    run(scenario)


def test_pausing_trial_stays_paused_when_worker_dies():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await pending(queue.report_epoch("a", [{"epoch": 1}], False))
        await queue.next_event("a")
        await queue.pause("a")
        again = await pending(queue.next_assignment(member(0, 0, 0, 2), 0))
        assert kind(await queue.next_event("a")) == "paused"
        assert not again.done()
        await queue.resume("a")
        assert (await again).assignment.trial == "a"

    run(scenario)


def test_report_waits_until_search_asks_for_next():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        report = await pending(queue.report_epoch("a", [{"epoch": 1}], False))
        assert kind(await queue.next_event("a")) == "epoch"
        assert not report.done()
        following = await pending(queue.next_event("a"))
        assert await report is True
        assert await queue.report_epoch("a", [{"epoch": 2}], True) is False
        assert (await following).metrics["epoch"] == 2

    run(scenario)


@pytest.mark.parametrize("read_first", [True, False])
def test_a_stopped_trial_lets_its_team_go(read_first):
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        report = await pending(queue.report_epoch("a", [{"epoch": 1}], False))
        if read_first:
            await queue.next_event("a")
        await queue.stop("a")
        assert await report is False
        await queue.finish_trial(member(0, 0), "a", "")
        assert await kinds(queue) == ["started", "epoch", "stopped"]

    run(scenario)


def test_a_trial_stopped_before_it_starts_never_does():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.stop("a")
        await queue.put(task("b"))
        assert (await queue.next_assignment(member(0, 0, 0, 1), 0)).assignment.trial == "b"

    run(scenario)


def test_failure_is_reported_once_and_team_regroups():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await queue.report_failure(member(0, 0, 1, workers=2), "a", Failure("first", ""))
        settled = await pending(queue.wait_for_team(member(0, 0), 1))
        assert not settled.done()
        await queue.report_failure(member(0, 0, 0, workers=2), "a", Failure("second", ""))
        await settled
        assert [event.error for event in await queue.events(2, 0)] == ["first"]
        assert kind(await queue.next_event("a")) == "failed"
        await queue.put(task("b"))
        assert await queue.next_assignment(member(0, 0, 0, 1), 1) == Turn(task("b"), 2, 2)

    run(scenario)


def test_hanging_member_is_named_with_its_step():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await queue.report_progress(1, TrialProgress("a", 17, 40))
        await queue.report_failure(member(0, 0, 0, workers=3), "a", Failure("timed out", ""))
        settled = await pending(queue.wait_for_team(member(0, 0), 1))
        assert not settled.done()
        assert isinstance(await queue.report_hang(member(0, 0)), TrialError)
        event = await queue.next_event("a")
        assert kind(event) == "failed"
        assert event.error == (
            "rank 1 (last seen after step 17 of 40), rank 2 (not seen in training) did "
            "not answer any more; the others: timed out"
        )
        await queue.put(task("b"))
        assert (
            await queue.next_assignment(member(0, 0, 0, 2), 0)
        ).assignment.trial == "b"  # its workers have been started again

    run(scenario)


def test_restarting_group_is_not_taken_for_hanging():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await queue.next_assignment(member(0, 0, 1, 1), 0)
        await queue.next_assignment(member(0, 0, 2, 1), 0)
        await queue.report_failure(
            member(0, 0, 0, workers=3), "a", Failure("connection reset", "")
        )  # the machine of rank 2 is gone
        settled = await pending(queue.wait_for_team(member(0, 0), 1))
        waiting = await pending(queue.next_assignment(member(0, 0, 1, 1), 1))
        found = (await queue.next_assignment(member(0, 0, 0, 2), 0)).assignment
        assert (found.trial, found.attempt) == ("a", 1)
        await settled
        assert await waiting is None  # of a process that is dead by now
        assert await queue.report_hang(member(0, 0)) is None
        assert "failed" not in await kinds(queue)

    run(scenario)


def test_finished_member_does_not_hold_up_others():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await queue.finish_trial(member(0, 0), "a", "")
        await queue.report_failure(member(0, 0, 1, workers=2), "a", Failure("late", ""))
        settled = await pending(queue.wait_for_team(member(0, 0), 1))
        await queue.put(task("b"))
        assert await queue.next_assignment(member(0, 0, 0, 1), 1) == Turn(task("b"), 2, 2)
        await settled
        assert await kinds(queue) == ["started", "finished", "started"]

    run(scenario)


def test_trial_continues_after_a_member_died_silently():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await queue.next_assignment(member(0, 0, 1, 1), 0)
        await queue.report_progress(1, TrialProgress("a", 7, 20))
        await queue.report_failure(
            member(0, 0, 0, workers=2), "a", Failure("connection closed by peer", "")
        )
        found = (await queue.next_assignment(member(0, 0, 1, 2), 0)).assignment
        assert (found.trial, found.attempt) == ("a", 1)
        assert "failed" not in await kinds(queue)
        again = (await queue.events(0, 0))[-1]
        assert (again.kind, again.last_seen) == (
            "started",
            "rank 1 last seen after step 7 of 20",
        )

    run(scenario)


def test_deaths_are_not_counted_while_trial_progresses():
    async def scenario(queue):
        await queue.put(task("a"))
        for incarnation in range(3 * MAX_ATTEMPTS):
            found = (await queue.next_assignment(member(0, 0, 0, incarnation), 0)).assignment
            assert (found.trial, found.attempt) == ("a", min(1, incarnation))
            await queue.report_progress(0, TrialProgress("a", 10 * incarnation + 10, 1000))
        for attempt in range(2, MAX_ATTEMPTS):  # from here on it dies where it has been before
            found = (await queue.next_assignment(member(0, 0, 0, 100 + attempt), 0)).assignment
            await queue.report_progress(0, TrialProgress("a", 5, 1000))
        assert "failed" not in await kinds(queue)

    run(scenario)


def test_restarted_group_retries_until_too_many_deaths():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.put(task("b"))
        for attempt in range(MAX_ATTEMPTS):
            found = (await queue.next_assignment(member(0, 0, 0, attempt), 0)).assignment
            assert (found.trial, found.attempt) == ("a", attempt)
        found = (await queue.next_assignment(member(0, 0, 0, MAX_ATTEMPTS), 0)).assignment
        assert found.trial == "b"
        failed = next(e for e in await queue.events(0, 0) if kind(e) == "failed")
        assert failed.error == "its worker died 3 times without getting further"

    run(scenario)


def test_epoch_between_deaths_resets_the_count():
    async def scenario(queue):
        await queue.put(task("a"))
        for incarnation in range(2 * MAX_ATTEMPTS):
            found = (await queue.next_assignment(member(0, 0, 0, incarnation), 0)).assignment
            assert found.trial == "a"
            await pending(queue.report_epoch("a", [{"epoch": incarnation + 1}], False))

    run(scenario)


def test_restarted_members_share_a_turn_in_any_order():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)  # rank 1 was killed before it came
        one = await queue.next_assignment(member(0, 0, 1, 2), 0)
        assert await queue.next_assignment(member(0, 0, 0, 2), 0) == one
        assert one.assignment.attempt == 1
        assert (
            await queue.next_assignment(member(0, 0, 0, 1), 1) is None
        )  # a late call of the group before

    run(scenario)


def test_trial_taken_before_previous_finished_is_retried():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.put(task("b"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await queue.next_assignment(member(0, 0, 1, 1), 1)  # another member is quicker than rank 0
        await queue.finish_trial(member(0, 0), "a", "")
        found = (await queue.next_assignment(member(0, 0, 0, 2), 0)).assignment  # and dies
        assert (found.trial, found.attempt) == ("b", 1)

    run(scenario)


def test_late_failure_gives_back_the_next_trial():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.put(task("b"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await queue.next_assignment(member(0, 0, 1, 1), 0)
        await queue.finish_trial(member(0, 0), "a", "")
        turn = await queue.next_assignment(member(0, 0, 0, 1), 1)  # rank 0 is in b
        await queue.report_failure(member(0, 0, 1, workers=2), "a", Failure("late", ""))
        other = await pending(queue.wait_for_team(member(0, 0), 1))
        await queue.report_failure(
            member(0, 0, 0, workers=2), "b", Failure("the others are gone", "")
        )
        turns = {await queue.wait_for_team(member(0, 0), turn.next_turn), await other}
        assert turns == {2}
        again = [await queue.next_assignment(member(0, 0, rank, 1), 2) for rank in (0, 1)]
        assert again[0] == again[1]
        assert (again[0].assignment.trial, again[0].assignment.attempt) == ("b", 1)

    run(scenario)


def test_waiting_for_failed_rank_0_raises_its_error():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        waiting = await pending(queue.rank_0_address(member(0, 0), 1, None))
        await queue.report_failure(member(0, 0, 0, workers=2), "a", Failure("no port", ""))
        with pytest.raises(ConnectionError, match="no port"):
            await waiting

    run(scenario)


def test_fully_trained_trial_finishes_despite_stop():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await queue.report_epoch("a", [{"epoch": 1}], True)
        await queue.stop("a")
        await queue.finish_trial(member(0, 0), "a", "")
        assert kind((await queue.events(0, 0))[-1]) == "finished"

    run(scenario)


def test_trials_of_lost_slot_go_to_others():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        waiting = await pending(queue.next_assignment(member(0, 1, 0, 1), 0))
        await queue.remove_slot(0)
        assert await waiting is None
        found = (await queue.next_assignment(member(1, 0, 0, 1), 0)).assignment
        assert (found.trial, found.attempt) == ("a", 1)

    run(scenario)


def test_removed_slot_cannot_register_workers_again():
    async def scenario(queue):
        assert await queue.register_worker(0, 0)
        await queue.remove_slot(0)
        assert not await queue.register_worker(0, 0)
        assert await queue.register_worker(1, 0)

    run(scenario)


def test_epoch_repeated_after_crash_is_told_once():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        await pending(queue.report_epoch("a", [{"epoch": 1}], False))
        await queue.next_event("a")
        following = await pending(queue.next_event("a"))
        await queue.next_assignment(member(0, 0, 0, 2), 0)
        assert await queue.report_epoch("a", [{"epoch": 1}], False) is True
        await queue.report_epoch("a", [{"epoch": 2}], True)
        assert (await following).metrics["epoch"] == 2

    run(scenario)


def test_closed_queue_answers_that_trials_are_stopped():
    async def scenario(queue):
        await queue.put(task("a"))
        waiting = await pending(queue.next_event("a"))
        await queue.close()
        assert kind(await waiting) == "stopped"
        await queue.put(task("b"))
        assert kind(await queue.next_event("b")) == "stopped"

    run(scenario)


def test_teams_go_home_when_the_queue_is_closed():
    async def scenario(queue):
        waiting = await pending(queue.next_assignment(member(0, 0, 0, 1), 0))
        await queue.close()
        assert await waiting is None
        assert await queue.next_assignment(member(0, 1, 0, 1), 0) is None

    run(scenario)


def test_out_of_memory_halves_micro_batch_only_once():
    async def scenario(queue):
        await queue.put(task("a"))
        for attempt, parts in enumerate((1, 2)):
            turn = await queue.next_assignment(member(0, 0, 0, 1), attempt)
            assert turn.assignment.train.accumulate == parts
            await queue.report_failure(
                member(0, 0, 0, workers=1), "a", Failure("out of memory", "", "out_of_memory")
            )
            assert await queue.wait_for_team(member(0, 0), turn.next_turn) == turn.next_turn
        assert await kinds(queue) == ["started", "halved", "started", "failed"]

    run(scenario)


def test_finished_search_begins_no_more_trials():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.put(task("b"))
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        reported = await pending(queue.report_epoch("a", [{"epoch": 1}], False))
        await queue.finish_search()
        assert await reported is False
        await queue.finish_trial(member(0, 0), "a", "")
        await queue.put(task("c"))
        assert await kinds(queue) == ["started", "epoch", "stopped", "stopped", "stopped"]
        repeat = replace(task("d"), of_search=False)
        await queue.put(repeat)
        assert (await queue.next_assignment(member(0, 0, 0, 1), 1)).assignment == repeat
        assert (
            await queue.report_epoch("d", [{"epoch": 1}], False) is True
        )  # without anyone to decide

    run(scenario)


def test_rejected_configuration_fails_only_its_trial():
    async def scenario(queue):
        await queue.reject("a", {"train.epochs": 0}, "too few epochs")
        event = await queue.next_event("a")
        assert (kind(event), event.error) == ("failed", "too few epochs")
        await queue.finish_search()
        await queue.close()
        await queue.put(task("late"))
        assert await kinds(queue) == ["failed", "stopped"]

    run(scenario)


def test_repeats_of_best_outlive_the_search():
    async def scenario(queue):
        await queue.put(replace(task("a-seed1"), of_search=False))
        await queue.finish_search()
        assert (await queue.next_assignment(member(0, 0, 0, 1), 0)).assignment.trial == "a-seed1"
        assert await queue.report_epoch("a-seed1", [{"epoch": 1}], False) is True

    run(scenario)


TEAMS = 8


async def in_training(queue) -> list[str]:
    """The names of trials, one a team."""
    names = [f"t{number}" for number in range(TEAMS)]
    for team, name in enumerate(names):
        await queue.put(replace(task(name), of_search=False))
        await queue.next_assignment(member(0, team, 0, 1), 0)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [1, 600])
def test_day_of_events_stays_small_at_any_pace(pause_s):
    """Each team tells where it stands every second, and of an epoch every minute."""

    async def scenario(queue):
        names, seen, most, epochs = await in_training(queue), 0, 0, 0
        for second in range(24 * 3600):
            for name in names:
                if second % 60:
                    await queue.report_progress(0, TrialProgress(name, second % 60, 60, 1.0, 0.0))
                else:
                    await queue.report_epoch(name, [{"epoch": 1 + second // 60}], False)
            if second % pause_s == 0:
                most = max(most, len(pickle.dumps(queue._log._events)))
                told = await queue.events(seen, 0)
                seen += len(told)
                epochs += sum(event.kind == "epoch" for event in told)
        epochs += sum(event.kind == "epoch" for event in await queue.events(seen, 0))
        assert epochs == TEAMS * 24 * 60
        assert most < 100_000
        assert not any(len(state.unread) for state in queue._trials.values())

    asyncio.run(scenario(TrialQueue()))


def test_events_repeat_until_the_driver_confirms_them():
    async def scenario(queue):
        await queue.put(task("a"))
        first = await queue.events(0, 0)
        await queue.next_assignment(member(0, 0, 0, 1), 0)
        assert [event.kind for event in await queue.events(0, 0)] == [
            "proposed",
            "started",
        ]  # the answer was lost
        assert [event.kind for event in await queue.events(len(first), 0)] == ["started"]
        with pytest.raises(ValueError, match="were delivered"):
            await queue.events(0, 0)

    run(scenario)


def test_only_latest_unread_progress_of_trial_is_kept():
    async def scenario(queue):
        for name, team in (("a", 0), ("b", 1)):
            await queue.put(task(name))
            await queue.next_assignment(member(0, team, 0, 1), 0)
        seen = len(await queue.events(0, 0))
        for step in (1, 2, 3):
            await queue.report_progress(0, TrialProgress("a", step, 9))
            await queue.report_progress(0, TrialProgress("b", step, 9))
        await pending(queue.report_epoch("a", [{"epoch": 1}], False))
        await queue.report_progress(0, TrialProgress("a", 1, 9))
        await queue.report_progress(0, TrialProgress("b", 4, 9))

        def told(events) -> list[tuple]:
            return [(event.trial, event.kind, getattr(event, "step", None)) for event in events]

        heard = told(await queue.events(seen, 0))
        assert heard == [
            ("a", "progress", 3),
            ("b", "progress", 4),
            ("a", "epoch", None),
            ("a", "progress", 1),
        ]
        await queue.report_progress(
            0, TrialProgress("a", 2, 9)
        )  # what was given may have been read: it stays as it is
        assert told(await queue.events(seen, 0)) == [*heard, ("a", "progress", 2)]

    run(scenario)


def test_waiting_for_events_ends_with_the_first():
    async def scenario(queue):
        waiting = await pending(queue.events(0, 5))
        assert not waiting.done()
        await queue.put(task("a"))
        assert [event.kind for event in await waiting] == ["proposed"]
        assert await queue.events(1, 0.01) == []

    run(scenario)
