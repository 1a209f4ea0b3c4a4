"""How the members of a team start on an assignment together, and part when one gives it up.

Members ask in turns: turn 0, 1, … of a team is one assignment, whoever asks first. They leave a
failed trial one by one, because a member notices only when a collective breaks; the team goes on
when all have left, with a turn that none of them has had and a new process group.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from raysft.train.queue.assignment import Assignment
from raysft.train.queue.policy import Failure


@dataclass
class GivingUp:
    """A failed trial that some members of its team may not have left yet."""

    trial: str
    failure: Failure
    """Of the member that failed first: what the others say is only that it has gone."""
    missing: set[int]
    """Ranks that have not left yet."""
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class TeamState:
    """What the queue knows of a team."""

    slot: int
    number: int
    incarnation: int = -1
    """Grows with every start of its worker group."""
    turn: int = -1
    next_turn: int = 0
    """From which all go on together, after they have given up a trial."""
    assignment: asyncio.Future[Assignment | None] | None = None
    """Of this turn; None once the slot is given up."""
    running: str | None = None
    """The trial it has, until its rank 0 says that it has finished."""
    giving_up: GivingUp | None = None
    group: int = 0
    """Number of its process group: a broken one cannot be used again."""
    addresses: dict[int, asyncio.Future[str]] = field(default_factory=dict)
    """Of rank 0, by the number of the process group."""

    async def rank_0_address(self, group: int, address: str | None) -> str:
        """The address of rank 0, which gives its own here and for which the others wait."""
        future = self.addresses.setdefault(group, asyncio.get_running_loop().create_future())
        if address is not None and not future.done():
            future.set_result(address)
        # shielded: a call that Ray cancels must not take the answer from the other members
        return await asyncio.shield(future)

    def fail(self, trial: str, workers: int, failure: Failure) -> None:
        """A member gives its trial up."""
        if self.giving_up is None:
            self.giving_up = GivingUp(trial, failure, set(range(workers)))
        for address in self.addresses.values():
            # nobody must wait for a member that gave up before it could be met
            if not address.done():
                address.set_exception(ConnectionError(f"the team did not meet: {failure.error}"))
                # asyncio prints exceptions that nobody has looked at, as where no member waits
                address.exception()

    def leave(self, rank: int) -> bool:
        """A member has left a failed trial; returns whether it was the last one."""
        assert self.giving_up is not None
        self.giving_up.missing.discard(rank)
        return not self.giving_up.missing

    def part(self) -> tuple[GivingUp, str | None]:
        """All have left; returns the failed trial, and the one that some may have taken since."""
        assert self.giving_up is not None
        given_up, running = self.giving_up, self.running
        self.giving_up = None
        self.running = None
        self.group += 1
        self.next_turn = self.turn + 1
        return given_up, running if running != given_up.trial else None

    def restart(self, incarnation: int) -> str | None:
        """Its worker group has been started again; returns the trial it was training."""
        if self.giving_up is not None:
            self.giving_up.done.set()  # only calls of processes that are dead still wait for it
        lost = self.running
        self.incarnation = incarnation
        self.turn = -1
        self.next_turn = 0
        self.group += 1
        self.running = None
        self.giving_up = None
        return lost
