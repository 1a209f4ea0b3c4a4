"""Teams without a network and without Ray: threads that report metrics from a table to a queue."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from raysft.records.documents import EpochMetrics
from raysft.train.queue.assignment import Assignment, Member, Source
from raysft.train.queue.client import LocalLink, QueueClient
from raysft.train.queue.policy import Failure


class LocalTeams:
    """A queue in this process with `teams` teams of one worker; `losses`: of each trial's epochs.

    A trial whose table holds an exception at an epoch fails there with it, once.
    """

    def __init__(self, losses: Mapping[str, list[float | Exception]], teams: int) -> None:
        self.losses = losses
        self.link = LocalLink()
        self.queue = QueueClient(self.link)
        self.trained: dict[str, int] = dict.fromkeys(losses, 0)
        """Epochs of each trial that were trained."""
        self.accumulate: dict[str, int] = {}
        self.sources: list[Source] = []
        """The checkpoints of others that trials went on from."""
        members = [Member(0, team, 0, 1, incarnation=1) for team in range(teams)]
        self.threads = [
            threading.Thread(target=self._work, args=(member,), daemon=True) for member in members
        ]

    def __enter__(self) -> LocalTeams:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self.queue.close()
        for thread in self.threads:
            thread.join(5)
        self.link.shut_down()

    def _work(self, member: Member) -> None:
        number = 0
        while (turn := self.queue.next_assignment(member, number)) is not None:
            number = turn.next_turn
            try:
                self._train(member, turn.assignment)
            except Exception as error:
                cause = "out_of_memory" if isinstance(error, MemoryError) else "failed"
                failure = Failure(str(error), "", cause)
                self.queue.report_failure(member, turn.assignment.trial, failure)
                number = self.queue.wait_for_team(member, number).result(5)

    def _train(self, member: Member, assignment: Assignment) -> None:
        trial = assignment.trial
        self.accumulate[trial] = assignment.train.accumulate
        losses = self.losses[trial]
        go_on = True
        if assignment.source is not None:
            self._copy(trial, assignment.source)
        while go_on and self.trained[trial] < len(losses):
            loss = losses[self.trained[trial]]
            if isinstance(loss, Exception):
                losses.remove(loss)  # a trial that is tried again gets further
                raise loss
            self.trained[trial] += 1
            epoch = self.trained[trial]
            metrics = _metrics(epoch, loss)
            go_on = self.queue.report_epoch(trial, [metrics], epoch == len(losses))
        self.queue.finish_trial(member, trial, "here")

    def _copy(self, trial: str, source: Source) -> None:
        self.sources.append(source)
        self.trained[trial] = source.epoch
        copied = enumerate(self.losses[source.trial][: source.epoch], 1)
        history = [_metrics(epoch, loss) for epoch, loss in copied]
        self.queue.report_epoch(trial, history, last=False)


def _metrics(epoch: int, loss: float) -> EpochMetrics:
    return {"epoch": epoch, "val_loss": loss, "val_accuracy": 1 / (1 + loss)}
