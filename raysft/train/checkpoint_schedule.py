"""When a team writes a checkpoint inside an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable

from raysft.job.recipe import Train
from raysft.train.team import Team

# How often a team asks its rank 0 whether a checkpoint is due: to ask is a collective, which costs
# small networks as much as a step.
ASK_STEPS = 10
# From one checkpoint to the next once a machine is about to go. Clouds announce that 30 to 120
# seconds before, so that the last of several is a few seconds old.
PREEMPTION_SECONDS = 15.0

PreemptionCheck = Callable[[], bool]  # whether a machine of this worker group is about to go


class CheckpointSchedule:
    """As often as the recipe says, and more often once a machine is about to go."""

    def __init__(self, train: Train, team: Team, is_preempted: PreemptionCheck) -> None:
        self.train = train
        self.team = team
        self.is_preempted = is_preempted
        self.last_written = time.monotonic()
        self.written_since_notice = False

    def is_due(self, step: int) -> bool:
        """Whether to write one after `step` steps; the same for the whole team."""
        every = self.train.checkpoint_steps
        if every is not None and step % every == 0:
            return True
        # A worker alone has nobody to ask, and may look at its clock every step.
        if self.team.workers > 1 and step % ASK_STEPS:
            return False
        # Clocks differ between machines: all write when rank 0 says so, or none.
        due = self.team.agree(self._is_due_now())
        if due:
            self.last_written = time.monotonic()
        return due

    def _is_due_now(self) -> bool:
        """What rank 0 thinks."""
        waited = time.monotonic() - self.last_written
        if self.is_preempted():
            is_first = not self.written_since_notice
            self.written_since_notice = True
            return is_first or waited >= PREEMPTION_SECONDS
        every = self.train.checkpoint_seconds
        return every is not None and waited >= every
