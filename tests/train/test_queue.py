"""The actor between search and teams, without the actor: what each side sees, in which order."""

import asyncio
import pickle
from dataclasses import replace

import pytest

from raysft.errors import TrialError
from raysft.job.recipe import Train
from raysft.job.spec import Model
from raysft.train.queue import MAX_ATTEMPTS, Task, TrialQueue


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(TrialQueue()), 5))


def task(name: str) -> Task:
    return Task("train", name, name, Model(), Train(), 0)


async def kinds(queue) -> list[str]:
    """What happened since a trial was proposed."""
    return [event.kind for event in await queue.events(0, 0) if event.kind != "proposed"]


async def pending(awaitable) -> asyncio.Task:
    started = asyncio.ensure_future(awaitable)
    for _ in range(5):
        await asyncio.sleep(0)
    return started


def test_all_members_of_a_team_get_the_same_task():
    async def scenario(queue):
        first = await pending(queue.take(0, 0, 0, 1, 0))
        await queue.put(task("a"))
        await queue.put(task("b"))
        assert (await first) == (task("a"), 1, 1)
        assert (await queue.take(0, 0, 1, 1, 0)) == (task("a"), 1, 1)
        assert (await queue.take(0, 1, 0, 1, 0)) == (task("b"), 1, 1)

    run(scenario)


def test_epochs_that_may_not_be_known_come_with_the_one_that_is_decided_on():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        await pending(queue.report("a", [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}], False))
        event = await queue.next_event("a")
        assert event.payload == {"epoch": 3, "last": False, "before": [{"epoch": 1}, {"epoch": 2}]}

    run(scenario)


async def paused(queue) -> None:
    """Trial a trains an epoch with team 0, and pauses."""
    await queue.put(task("a"))
    await queue.take(0, 0, 0, 1, 0)
    report = await pending(queue.report("a", [{"epoch": 1}], False))
    assert (await queue.next_event("a")).kind == "epoch"
    await queue.pause("a")
    assert await report is False
    following = await pending(queue.next_event("a"))
    await queue.finish(0, 0, "a", {})
    assert (await following).kind == "paused"


def test_a_paused_trial_is_taken_up_by_another_team_which_trains_on():
    async def scenario(queue):
        await paused(queue)
        other = await pending(queue.take(0, 1, 0, 1, 0))
        assert not other.done()
        await queue.go_on("a")
        assert (await other)[0] == task("a")
        assert (
            await queue.report("a", [{"epoch": 1}], False) is True
        )  # told again, and nobody has to decide again
        following = await pending(queue.next_event("a"))
        assert await queue.report("a", [{"epoch": 2}], True) is False
        assert (await following).payload["epoch"] == 2
        await queue.finish(0, 1, "a", {})
        assert await kinds(queue) == ["started", "epoch", "paused", "started", "epoch", "finished"]

    run(scenario)


@pytest.mark.parametrize("how", ["stop", "finish_search", "close"])
def test_a_paused_trial_that_is_stopped_ends_and_gets_no_team(how):
    async def scenario(queue):
        await paused(queue)
        await (queue.stop("a") if how == "stop" else getattr(queue, how)())
        await queue.go_on("a")
        assert (await kinds(queue))[-1] == "stopped"
        assert (await queue.next_event("a")).kind == "stopped"
        assert not queue._pending

    run(scenario)


def test_a_worker_that_dies_while_its_trial_pauses_leaves_it_paused():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        await pending(queue.report("a", [{"epoch": 1}], False))
        await queue.next_event("a")
        await queue.pause("a")
        again = await pending(queue.take(0, 0, 0, 2, 0))
        assert (await queue.next_event("a")).kind == "paused"
        assert not again.done()
        await queue.go_on("a")
        assert (await again)[0].trial == "a"

    run(scenario)


def test_a_report_waits_until_the_search_asks_for_the_next():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        report = await pending(queue.report("a", [{"epoch": 1}], False))
        assert (await queue.next_event("a")).kind == "epoch"
        assert not report.done()
        following = await pending(queue.next_event("a"))
        assert await report is True
        assert await queue.report("a", [{"epoch": 2}], True) is False
        assert (await following).payload["epoch"] == 2

    run(scenario)


@pytest.mark.parametrize("read_first", [True, False])
def test_a_stopped_trial_lets_its_team_go(read_first):
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        report = await pending(queue.report("a", [{"epoch": 1}], False))
        if read_first:
            await queue.next_event("a")
        await queue.stop("a")
        assert await report is False
        await queue.finish(0, 0, "a", {})
        assert await kinds(queue) == ["started", "epoch", "stopped"]

    run(scenario)


def test_a_trial_stopped_before_it_starts_never_does():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.stop("a")
        await queue.put(task("b"))
        assert (await queue.take(0, 0, 0, 1, 0))[0].trial == "b"

    run(scenario)


def test_a_failure_is_told_once_and_the_team_gets_a_new_group():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        await queue.fail(0, 0, 1, 2, "a", "first", "")
        settled = await pending(queue.settle(0, 0, 1))
        assert not settled.done()
        await queue.fail(0, 0, 0, 2, "a", "second", "")
        await settled
        assert [e.payload.get("error") for e in await queue.events(2, 0)] == ["first"]
        assert (await queue.next_event("a")).kind == "failed"
        await queue.put(task("b"))
        assert await queue.take(0, 0, 0, 1, 1) == (task("b"), 2, 2)

    run(scenario)


def test_a_member_that_hangs_is_named_with_where_it_stood():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        await queue.progress("a", 1, 17, 40)
        await queue.fail(0, 0, 0, 3, "a", "timed out", "")
        settled = await pending(queue.settle(0, 0, 1))
        assert not settled.done()
        assert isinstance(await queue.hang(0, 0), TrialError)
        event = await queue.next_event("a")
        assert event.kind == "failed"
        assert event.payload["error"] == (
            "rank 1 (last seen after step 17 of 40), rank 2 (not seen in training) did "
            "not answer any more; the others: timed out"
        )
        await queue.put(task("b"))
        assert (await queue.take(0, 0, 0, 2, 0))[
            0
        ].trial == "b"  # its workers have been started again

    run(scenario)


def test_a_group_that_starts_again_takes_its_trial_up_however_long_that_takes():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        await queue.take(0, 0, 1, 1, 0)
        await queue.take(0, 0, 2, 1, 0)
        await queue.fail(0, 0, 0, 3, "a", "connection reset", "")  # the machine of rank 2 is gone
        settled = await pending(queue.settle(0, 0, 1))
        waiting = await pending(queue.take(0, 0, 1, 1, 1))
        found, *_ = await queue.take(0, 0, 0, 2, 0)
        assert (found.trial, found.attempt) == ("a", 1)
        await settled
        assert await waiting is None  # of a process that is dead by now
        assert await queue.hang(0, 0) is None
        assert "failed" not in await kinds(queue)

    run(scenario)


def test_a_member_that_was_done_already_does_not_hold_up_the_others():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        await queue.finish(0, 0, "a", {})
        await queue.fail(0, 0, 1, 2, "a", "late", "")
        settled = await pending(queue.settle(0, 0, 1))
        await queue.put(task("b"))
        assert await queue.take(0, 0, 0, 1, 1) == (task("b"), 2, 2)
        await settled
        assert await kinds(queue) == ["started", "finished", "started"]

    run(scenario)


def test_a_member_that_died_says_nothing_and_the_trial_goes_on():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        await queue.take(0, 0, 1, 1, 0)
        await queue.progress("a", 1, 7, 20)
        await queue.fail(0, 0, 0, 2, "a", "connection closed by peer", "")
        found, *_ = await queue.take(0, 0, 1, 2, 0)
        assert (found.trial, found.attempt) == ("a", 1)
        assert "failed" not in await kinds(queue)
        again = (await queue.events(0, 0))[-1]
        assert (again.kind, again.payload["stood"]) == (
            "started",
            "rank 1 last seen after step 7 of 20",
        )

    run(scenario)


def test_deaths_of_a_trial_that_gets_further_each_time_are_not_counted():
    async def scenario(queue):
        await queue.put(task("a"))
        for incarnation in range(3 * MAX_ATTEMPTS):
            found, *_ = await queue.take(0, 0, 0, incarnation, 0)
            assert (found.trial, found.attempt) == ("a", min(1, incarnation))
            await queue.progress("a", 0, 10 * incarnation + 10, 1000)
        for attempt in range(2, MAX_ATTEMPTS):  # from here on it dies where it has been before
            found, *_ = await queue.take(0, 0, 0, 100 + attempt, 0)
            await queue.progress("a", 0, 5, 1000)
        assert "failed" not in await kinds(queue)

    run(scenario)


def test_a_restarted_group_gets_its_trial_back_until_it_has_died_too_often():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.put(task("b"))
        for attempt in range(MAX_ATTEMPTS):
            found, *_ = await queue.take(0, 0, 0, attempt, 0)
            assert (found.trial, found.attempt) == ("a", attempt)
        found, *_ = await queue.take(0, 0, 0, MAX_ATTEMPTS, 0)
        assert found.trial == "b"
        failed = next(e for e in await queue.events(0, 0) if e.kind == "failed")
        assert failed.payload["error"] == "its worker died 3 times without getting further"

    run(scenario)


def test_an_epoch_between_two_deaths_starts_the_count_anew():
    async def scenario(queue):
        await queue.put(task("a"))
        for incarnation in range(2 * MAX_ATTEMPTS):
            found, *_ = await queue.take(0, 0, 0, incarnation, 0)
            assert found.trial == "a"
            await pending(queue.report("a", [{"epoch": incarnation + 1}], False))

    run(scenario)


def test_members_of_a_restarted_group_meet_in_one_process_group_whoever_comes_first():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)  # rank 1 was killed before it came
        one = await queue.take(0, 0, 1, 2, 0)
        assert await queue.take(0, 0, 0, 2, 0) == one
        assert one[0].attempt == 1
        assert await queue.take(0, 0, 0, 1, 1) is None  # a late call of the group before

    run(scenario)


def test_a_trial_taken_before_the_last_one_was_signed_off_is_not_forgotten():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.put(task("b"))
        await queue.take(0, 0, 0, 1, 0)
        await queue.take(0, 0, 1, 1, 1)  # another member is quicker than rank 0
        await queue.finish(0, 0, "a", {})
        found, *_ = await queue.take(0, 0, 0, 2, 0)  # and dies
        assert (found.trial, found.attempt) == ("b", 1)

    run(scenario)


def test_a_failure_told_late_gives_back_the_trial_that_others_took_meanwhile():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.put(task("b"))
        await queue.take(0, 0, 0, 1, 0)
        await queue.take(0, 0, 1, 1, 0)
        await queue.finish(0, 0, "a", {})
        _, _, turn = await queue.take(0, 0, 0, 1, 1)  # rank 0 is in b
        await queue.fail(0, 0, 1, 2, "a", "late", "")
        other = await pending(queue.settle(0, 0, 1))
        await queue.fail(0, 0, 0, 2, "b", "the others are gone", "")
        turns = {await queue.settle(0, 0, turn), await other}
        assert turns == {2}
        again = [await queue.take(0, 0, rank, 1, 2) for rank in (0, 1)]
        assert again[0] == again[1]
        assert (again[0][0].trial, again[0][0].attempt) == ("b", 1)

    run(scenario)


def test_nobody_waits_for_a_member_that_gave_up_before_it_could_be_met():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        waiting = await pending(queue.meet(0, 0, 1, None))
        await queue.fail(0, 0, 0, 2, "a", "no port", "")
        with pytest.raises(ConnectionError, match="no port"):
            await waiting

    run(scenario)


def test_a_trial_that_trained_to_its_end_is_finished_even_if_the_search_says_stop_first():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        await queue.report("a", [{"epoch": 1}], True)
        await queue.stop("a")
        await queue.finish(0, 0, "a", {})
        assert (await queue.events(0, 0))[-1].kind == "finished"

    run(scenario)


def test_the_trials_of_a_lost_slot_go_to_the_others():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        waiting = await pending(queue.take(0, 1, 0, 1, 0))
        await queue.lost(0)
        assert await waiting is None
        found, *_ = await queue.take(1, 0, 0, 1, 0)
        assert (found.trial, found.attempt) == ("a", 1)

    run(scenario)


def test_a_slot_that_was_given_up_is_not_wanted_when_it_starts_once_more():
    async def scenario(queue):
        assert await queue.arrive(0, 0)
        await queue.lost(0)
        assert not await queue.arrive(0, 0)
        assert await queue.arrive(1, 0)

    run(scenario)


def test_an_epoch_trained_again_after_a_crash_is_not_told_again():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.take(0, 0, 0, 1, 0)
        await pending(queue.report("a", [{"epoch": 1}], False))
        await queue.next_event("a")
        following = await pending(queue.next_event("a"))
        await queue.take(0, 0, 0, 2, 0)
        assert await queue.report("a", [{"epoch": 1}], False) is True
        await queue.report("a", [{"epoch": 2}], True)
        assert (await following).payload["epoch"] == 2

    run(scenario)


def test_the_search_does_not_wait_for_trials_of_a_closed_queue():
    async def scenario(queue):
        await queue.put(task("a"))
        waiting = await pending(queue.next_event("a"))
        await queue.close()
        assert (await waiting).kind == "stopped"
        await queue.put(task("b"))
        assert (await queue.next_event("b")).kind == "stopped"

    run(scenario)


def test_teams_go_home_when_the_queue_is_closed():
    async def scenario(queue):
        waiting = await pending(queue.take(0, 0, 0, 1, 0))
        await queue.close()
        assert await waiting is None
        assert await queue.take(0, 1, 0, 1, 0) is None

    run(scenario)


def test_a_trial_that_ran_out_of_memory_goes_on_once_with_half_the_micro_batch():
    async def scenario(queue):
        await queue.put(task("a"))
        for attempt, parts in enumerate((1, 2)):
            taken, _, turn = await queue.take(0, 0, 0, 1, attempt)
            assert taken.train.accumulate == parts
            await queue.fail(0, 0, 0, 1, "a", "out of memory", "", "out_of_memory")
            assert await queue.settle(0, 0, turn) == turn
        assert await kinds(queue) == ["started", "halved", "started", "failed"]

    run(scenario)


def test_a_search_that_is_finished_begins_no_more_trials_of_it():
    async def scenario(queue):
        await queue.put(task("a"))
        await queue.put(task("b"))
        await queue.take(0, 0, 0, 1, 0)
        reported = await pending(queue.report("a", [{"epoch": 1}], False))
        await queue.finish_search()
        assert await reported is False
        await queue.finish(0, 0, "a", {})
        await queue.put(task("c"))
        assert await kinds(queue) == ["started", "epoch", "stopped", "stopped", "stopped"]
        repeat = replace(task("d"), of_search=False)
        await queue.put(repeat)
        assert (await queue.take(0, 0, 0, 1, 1))[0] == repeat
        assert await queue.report("d", [{"epoch": 1}], False) is True  # without anyone to decide

    run(scenario)


def test_a_configuration_that_cannot_be_fails_its_trial_alone():
    async def scenario(queue):
        await queue.reject("a", {"train.epochs": 0}, "too few epochs")
        event = await queue.next_event("a")
        assert (event.kind, event.payload["error"]) == ("failed", "too few epochs")
        await queue.finish_search()
        await queue.close()
        await queue.put(task("late"))
        assert await kinds(queue) == ["failed", "stopped"]

    run(scenario)


def test_the_end_of_a_search_leaves_repeats_of_its_best_alone():
    async def scenario(queue):
        await queue.put(replace(task("a-seed1"), of_search=False))
        await queue.finish_search()
        assert (await queue.take(0, 0, 0, 1, 0))[0].trial == "a-seed1"
        assert await queue.report("a-seed1", [{"epoch": 1}], False) is True

    run(scenario)


TEAMS = 8


async def in_training(queue) -> list[str]:
    """The names of trials, one a team."""
    names = [f"t{number}" for number in range(TEAMS)]
    for team, name in enumerate(names):
        await queue.put(replace(task(name), of_search=False))
        await queue.take(0, team, 0, 1, 0)
    return names


@pytest.mark.parametrize("pause_s", [1, 600])
def test_a_day_of_events_is_not_kept_whether_the_driver_is_quick_or_slow(pause_s):
    """Each team tells where it stands every second, and of an epoch every minute."""

    async def scenario(queue):
        names, seen, most, epochs = await in_training(queue), 0, 0, 0
        for second in range(24 * 3600):
            for name in names:
                if second % 60:
                    await queue.progress(
                        name, 0, second % 60, 60, {"seconds": 1.0, "waited": 0.0, "gpu": None}
                    )
                else:
                    await queue.report(name, [{"epoch": 1 + second // 60}], False)
            if second % pause_s == 0:
                most = max(most, len(pickle.dumps(queue._events)))
                told = await queue.events(seen, 0)
                seen += len(told)
                epochs += sum(event.kind == "epoch" for event in told)
        epochs += sum(event.kind == "epoch" for event in await queue.events(seen, 0))
        assert epochs == TEAMS * 24 * 60
        assert most < 100_000
        assert not any(len(state.unread) for state in queue._trials.values())

    asyncio.run(scenario(TrialQueue()))


def test_a_driver_that_asks_again_hears_again_what_it_may_not_have_heard():
    async def scenario(queue):
        await queue.put(task("a"))
        first = await queue.events(0, 0)
        await queue.take(0, 0, 0, 1, 0)
        assert [event.kind for event in await queue.events(0, 0)] == [
            "proposed",
            "started",
        ]  # the answer was lost
        assert [event.kind for event in await queue.events(len(first), 0)] == ["started"]
        with pytest.raises(ValueError, match="were delivered"):
            await queue.events(0, 0)

    run(scenario)


def test_of_where_a_trial_stands_only_the_last_is_kept_until_it_is_heard():
    async def scenario(queue):
        for name, team in (("a", 0), ("b", 1)):
            await queue.put(task(name))
            await queue.take(0, team, 0, 1, 0)
        seen = len(await queue.events(0, 0))
        for step in (1, 2, 3):
            await queue.progress("a", 0, step, 9)
            await queue.progress("b", 0, step, 9)
        await pending(queue.report("a", [{"epoch": 1}], False))
        await queue.progress("a", 0, 1, 9)
        await queue.progress("b", 0, 4, 9)

        def told(events) -> list[tuple]:
            return [(event.trial, event.kind, event.payload.get("step")) for event in events]

        heard = told(await queue.events(seen, 0))
        assert heard == [
            ("a", "progress", 3),
            ("b", "progress", 4),
            ("a", "epoch", None),
            ("a", "progress", 1),
        ]
        await queue.progress("a", 0, 2, 9)  # what was given may have been read: it stays as it is
        assert told(await queue.events(seen, 0)) == [*heard, ("a", "progress", 2)]

    run(scenario)


def test_who_waits_for_an_event_is_told_when_there_is_one():
    async def scenario(queue):
        waiting = await pending(queue.events(0, 5))
        assert not waiting.done()
        await queue.put(task("a"))
        assert [event.kind for event in await waiting] == ["proposed"]
        assert await queue.events(1, 0.01) == []

    run(scenario)
