"""Batch normalisation is never trained on one row: batches are dealt so, and what cannot be is
refused.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from raysft.data.epochs import KeptSplit
from raysft.data.ingest import Rows
from raysft.data.preparation import Preparation
from raysft.errors import JobError
from raysft.job.recipe import Train
from raysft.train.checkpoint import newest_valid
from raysft.train.learner import Learner
from raysft.train.loop import Hooks, Splits, TrialPlan, run_trial
from raysft.train.normalise import can_halve, check_batches, normalises_over_batch
from raysft.train.team import Team
from raysft.train.tryout import takes_one
from tests.tiny import tiny

HOW = Preparation((0.5,) * 3, (0.25,) * 3)
ALONE = Team(0, 1, torch.device("cpu"))


class Normalising(nn.Sequential):
    """Ends in one value a channel, as deep networks do on small images, and counts the rows of its
    steps.
    """

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
        self.seen: list[int] = []
        self.dies_at: int | None = None

    def forward(self, images):
        if self.training and not images.is_meta:  # where it is only tried
            if len(self.seen) == self.dies_at:
                raise InterruptedError
            self.seen.append(len(images))
        return super().forward(images)


def rows(n: int) -> KeptSplit:
    images = np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return KeptSplit(Rows(np.arange(n), images, np.arange(n) % 3))


def trial(folder: Path, net: nn.Module, n: int, workers: int = 1, **train) -> list[dict]:
    seen: list[dict] = []

    def report(history, last):
        seen.append(history[-1])
        return True

    recipe = TrialPlan(
        Train.model_validate({"epochs": 1, "batch_size": 8} | train),
        0,
        HOW,
        (3, 3, 3),
        "val_accuracy",
        folder / "t/checkpoints",
        "3",
        workers,
    )
    hooks = Hooks(report, lambda *a: None)
    run_trial(recipe, net, Splits(rows(n), rows(6)), ALONE, hooks)
    return seen


@pytest.mark.parametrize(
    ("n", "train", "steps"),
    [
        (9, {"batch_size": 2}, [3, 2, 2, 2]),
        (3, {"batch_size": 2}, [3]),
        (17, {"batch_size": 8}, [6, 6, 5]),
        (9, {"batch_size": 8, "accumulate": 4}, [3, 2, 2, 2]),
    ],
)
def test_a_last_batch_of_one_row_trains(tmp_path, n, train, steps):
    net = Normalising()
    (epoch,) = trial(tmp_path, net, n, **train)
    assert net.seen == steps
    assert epoch["images"] == n
    assert epoch["learning_rate"] == pytest.approx(0.0, abs=0.01)


def test_parts_of_share_have_at_least_two_rows():
    learner = Learner(Normalising(), "3", Train(accumulate=4, batch_size=8), (1, 1, 1), ALONE)
    learner.enter(head_alone=False, on_features=False)
    learner.step(torch.randn(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64), 5, 0.1)
    assert learner.net.seen == [3, 2]


def test_networks_without_it_are_cut_as_ever():
    learner = Learner(tiny(3), "4", Train(accumulate=4, batch_size=8), (1, 1, 1), ALONE)
    learner.enter(head_alone=False, on_features=False)
    assert learner._parts(5, (3, 8, 8)) == 4


@pytest.mark.parametrize(
    ("train", "n", "workers", "expected"),
    [
        (
            {"batch_size": 1},
            9,
            1,
            "train.batch_size: 1: leaves one of 1 workers a single image.*give at least 2",
        ),
        ({"batch_size": 7}, 99, 4, "a single image a step, and Normalising.*give at least 8"),
        ({"batch_size": 8}, 7, 4, "lower resources.workers to 3"),
        (
            {"batch_size": 8, "accumulate": 3},
            99,
            2,
            "train.accumulate: 3: cuts the 4 images.*give at most 2",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, train, n, workers, expected):
    with pytest.raises(JobError, match=expected):
        check_batches(Normalising(), "3", Train.model_validate(train), n, workers, (8, 8))
    with pytest.raises(JobError, match=expected):
        trial(tmp_path, Normalising(), n, workers, **train)


@pytest.mark.parametrize(
    "train", [{"freeze": "backbone"}, {"head_epochs": 2}, {"freeze": ["0.", "1."]}]
)
def test_a_frozen_one_needs_no_batch(train):
    check_batches(
        Normalising(),
        "3",
        Train.model_validate({"epochs": 2, "batch_size": 1} | train),
        9,
        1,
        (8, 8),
    )


def test_a_network_without_it_needs_no_batch():
    check_batches(tiny(3), "4", Train(batch_size=1), 9, 1, (8, 8))
    assert not normalises_over_batch(nn.Sequential(nn.InstanceNorm2d(3), nn.GroupNorm(1, 3)))
    assert normalises_over_batch(nn.BatchNorm1d(3, track_running_stats=False).eval())


def test_micro_batch_is_halved_down_to_two_rows():
    train = Train(batch_size=8)
    assert can_halve(Normalising(), "3", train, 2, (8, 8))
    assert not can_halve(Normalising(), "3", train.model_copy(update={"accumulate": 2}), 2, (8, 8))
    assert can_halve(tiny(3), "4", train.model_copy(update={"accumulate": 2}), 2, (8, 8))
    assert not can_halve(tiny(3), "4", train.model_copy(update={"accumulate": 4}), 2, (8, 8))


def test_single_images_train_if_channels_have_several_values(tmp_path):
    train, net = Train(batch_size=8, accumulate=8), resnet18(num_classes=3)
    before = copy.deepcopy(net.state_dict())
    check_batches(net, "fc", train, 9, 1, (64, 64))
    assert can_halve(net, "fc", train.model_copy(update={"accumulate": 4}), 1, (64, 64))
    assert not can_halve(net, "fc", train, 1, (64, 64))
    assert not can_halve(net, "fc", train.model_copy(update={"accumulate": 4}), 1, (32, 32))
    with pytest.raises(JobError, match=r"train\.accumulate: 8: cuts the 8 images.*a single one"):
        check_batches(net, "fc", train, 9, 1, (32, 32))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for size, parts in (64, 8), (32, 4):
        learner = Learner(net, "fc", train, (1, 1, 1), ALONE)
        learner.enter(head_alone=False, on_features=False)
        assert learner._parts(8, (3, size, size)) == parts
        assert learner._parts(3, (3, size, size)) == (3 if parts == 8 else 1)
    learner.step(torch.randn(8, 3, 64, 64), torch.zeros(8, dtype=torch.int64), 8, 0.1)


def test_compiled_network_is_tried_uncompiled():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net.compile(backend=lambda *given: 1 / 0)
    assert takes_one(net, (3, 8, 8))
    assert not takes_one(net, (3, 3, 3))


def test_resuming_with_other_batches_restarts_the_epoch(tmp_path):
    net = Normalising()
    net.dies_at = 4 + 2  # an epoch of 15 rows has 4 steps for one worker, and 1 for four
    with pytest.raises(InterruptedError):
        trial(tmp_path, net, 15, epochs=3, batch_size=4, checkpoint_every="1 steps")
    assert newest_valid(tmp_path / "t/checkpoints").step == 2
    again = Normalising()
    rest = trial(tmp_path, again, 15, workers=2, epochs=3, batch_size=4)
    assert again.seen == [5, 5, 5] * 2  # the second epoch from its beginning
    assert [epoch["images"] for epoch in rest[-2:]] == [15, 15]
    same = Normalising()
    trial(tmp_path / "b", same, 15, epochs=3, batch_size=4)
    assert same.seen == [4, 4, 4, 3] * 3


def test_resuming_with_same_batches_continues_inside_the_epoch(tmp_path):
    net = Normalising()
    net.dies_at = 2
    with pytest.raises(InterruptedError):
        trial(tmp_path, net, 16, batch_size=4, checkpoint_every="1 steps")
    again = Normalising()
    trial(tmp_path, again, 16, workers=2, batch_size=4)
    assert again.seen == [4, 4]
