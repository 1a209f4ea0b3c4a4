"""One trial in one process: it learns, it repeats itself, and it goes on where a checkpoint left
off.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from raysft.data.epochs import KeptSplit
from raysft.data.ingest import Rows
from raysft.data.preparation import Preparation
from raysft.errors import DivergedError
from raysft.job.optimizers import NAMES
from raysft.job.recipe import Train
from raysft.train.checkpoint import best_epoch, newest_valid, read_state
from raysft.train.checkpoint_schedule import CheckpointSchedule
from raysft.train.loop import Hooks, Splits, TrialPlan, run_trial
from raysft.train.team import Team
from tests.tiny import tiny


def rows(n: int, seed: int) -> KeptSplit:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = (
        rng.normal(60 + 60 * labels[:, None, None, None], 30, (n, 8, 8, 3))
        .clip(0, 255)
        .astype(np.uint8)
    )
    return KeptSplit(Rows(np.arange(n), images, labels))


TRAIN, VAL = rows(50, 0), rows(20, 1)
HOW = Preparation((0.5,) * 3, (0.25,) * 3)


def trial(
    folder: Path,
    epochs: int = 4,
    stop_after: int | None = None,
    net=None,
    source=None,
    pinned=(),
    **knobs,
) -> list[dict]:
    knobs = {"optimizer": {"name": "adam", "lr": 0.01}} | knobs
    train = Train.model_validate({"epochs": epochs, "batch_size": 8} | knobs)
    own = folder / "t0/checkpoints"
    recipe = TrialPlan(train, 0, HOW, (17, 17, 16), "val_accuracy", own, "4", source=source)
    torch.manual_seed(0)
    seen = []

    def report(history, last):
        assert [m["epoch"] for m in history] == list(range(1, len(history) + 1))
        seen.append(history[-1])
        return stop_after is None or len(history) < stop_after

    run_trial(
        recipe,
        net or tiny(3),
        Splits(TRAIN, VAL),
        Team(0, 1, torch.device("cpu")),
        Hooks(report, lambda *a: None, pinned=lambda: pinned),
    )
    return seen


def values(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in m.items() if "seconds" not in k} for m in history]


def test_a_trial_learns(tmp_path):
    history = trial(tmp_path, epochs=8)
    assert [m["epoch"] for m in history] == list(range(1, 9))
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    assert history[-1]["val_accuracy"] > 0.6
    assert all(m["images"] == 50 for m in history)


def test_one_seed_gives_the_same_metrics(tmp_path):
    assert values(trial(tmp_path / "a")) == values(trial(tmp_path / "b"))


@pytest.mark.parametrize(
    "knobs",
    [
        *({"optimizer": {"name": name}} for name in NAMES),
        {"ema": 0.9},
        {"head_epochs": 3},
        {"augment": {"mixup": 0.4, "cutmix": 1.0, "erasing": 0.5}},
        {"layer_decay": 0.7, "accumulate": 2, "clip_norm": 0.1},
    ],
    ids=str,
)
def test_resumed_trial_ends_like_an_uninterrupted_one(tmp_path, knobs):
    whole = trial(tmp_path / "a", **knobs)
    first = trial(tmp_path / "b", **knobs, stop_after=2)
    rest = trial(tmp_path / "b", **knobs)
    assert [m["epoch"] for m in first + rest[1:]] == [1, 2, 3, 4]
    assert values(first + rest[1:]) == values(whole)


def test_resumed_trial_reports_its_last_epoch_again(tmp_path):
    first = trial(tmp_path, stop_after=2)
    seen = trial(tmp_path)
    assert [m["epoch"] for m in seen] == [2, 3, 4]
    assert values(seen[:1]) == values(first[1:])


def test_trial_trained_to_its_end_only_reports(tmp_path):
    whole = trial(tmp_path)
    last = {p.name for p in (tmp_path / "t0/checkpoints/epoch-0004").iterdir()}
    assert last == {"model.safetensors", "state.json"}
    assert values(trial(tmp_path)) == values(whole[-1:])


def test_only_best_and_last_checkpoint_are_kept(tmp_path):
    history = trial(tmp_path, epochs=5)
    left = sorted(int(p.name[-4:]) for p in (tmp_path / "t0/checkpoints").iterdir())
    assert left == sorted({best_epoch(history, "val_accuracy"), 5})


def kept(folder: Path) -> set[int]:
    return {int(path.name[-4:]) for path in (folder / "t0/checkpoints").iterdir()}


def test_checkpoint_that_others_start_from_is_kept_with_its_best(tmp_path):
    history = trial(tmp_path, epochs=6, pinned=(3,))
    best = {best_epoch(history[:3], "val_accuracy"), best_epoch(history, "val_accuracy")}
    assert kept(tmp_path) == best | {3, 6}


def test_trial_continues_another_one_with_its_own_values(tmp_path):
    sgd = {"name": "sgd", "lr": 0.05, "weight_decay": 0.01, "momentum": 0.5}
    first = trial(tmp_path / "a", stop_after=2, optimizer=sgd)
    trial(tmp_path / "b", stop_after=3, optimizer=sgd | {"lr": 1e-9})  # which is given up
    own = sgd | {"lr": 0.02, "weight_decay": 0.001, "momentum": 0.9}
    source = (tmp_path / "a/t0/checkpoints", 2)
    seen = trial(tmp_path / "b", optimizer=own, source=source, stop_after=3)
    assert values(seen[:1]) == values(first[1:])
    assert [m["epoch"] for m in seen] == [2, 3]
    assert kept(tmp_path / "b") >= {3, best_epoch(first + seen[1:], "val_accuracy")}
    state = read_state(tmp_path / "b/t0/checkpoints/epoch-0003")
    options = state["param_groups"][0]
    assert (options["momentum"], options["weight_decay"]) == (0.9, 0.001)
    assert seen[1]["learning_rate"] < first[1]["learning_rate"]
    assert [m["epoch"] for m in state["standing"]["history"]] == [1, 2, 3]


class Dying(torch.nn.Sequential):
    """`tiny` with dropout, which dies in its training step number `at`."""

    def __init__(self, at=None):
        super().__init__(*tiny(3))
        self.at, self.steps = at, 0

    def forward(self, images):
        if self.training:
            if self.steps == self.at:
                raise InterruptedError
            self.steps += 1
        return super().forward(torch.nn.functional.dropout(images, 0.1, self.training))


@pytest.mark.parametrize("every", ["2 steps", "epoch"])
@pytest.mark.parametrize("knobs", [{}, {"ema": 0.9, "clip_norm": 0.1}])
def test_trial_killed_inside_epoch_ends_like_uninterrupted_one(tmp_path, every, knobs):
    torch.manual_seed(0)
    net = Dying()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    whole = trial(tmp_path / "a", net=net, **knobs)
    dying, again = Dying(at=7 + 5), Dying()  # an epoch has 7 steps
    for one in (dying, again):
        one.load_state_dict(start)
    with pytest.raises(InterruptedError):
        trial(tmp_path / "b", net=dying, checkpoint_every=every, **knobs)
    rest = trial(tmp_path / "b", net=again, checkpoint_every=every, **knobs)
    assert values(rest) == values(whole)
    assert again.steps == (4 - 1) * 7 - (4 if every == "2 steps" else 0)  # no image twice
    left = {p.name for p in (tmp_path / "b/t0/checkpoints").iterdir()}
    assert not [name for name in left if "step" in name]


def test_checkpoints_inside_an_epoch_go_by_the_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("raysft.train.checkpoint_schedule.time.monotonic", lambda: now[0])
    train, alone = (
        Train.model_validate({"checkpoint_every": "0.5 minutes"}),
        Team(0, 1, torch.device("cpu")),
    )

    def due(notice):
        schedule = CheckpointSchedule(train, alone, lambda: notice(now[0]))
        for step in range(1, 91):
            now[0] += 1
            if schedule.is_due(step):
                yield step

    assert list(due(lambda now: False)) == [30, 60, 90]
    now[0] = 0
    assert list(due(lambda now: now >= 42)) == [30, 42, 57, 72, 87]  # a machine will be gone soon


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:]]
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, file, damage):
    trial(tmp_path, epochs=4, stop_after=3)
    folder = tmp_path / "t0/checkpoints"
    shutil.copytree(folder / "epoch-0003", folder / "epoch-0004")
    (folder / "epoch-0009").mkdir()
    assert newest_valid(folder).epoch == 3
    damaged = folder / "epoch-0004" / file
    damaged.write_bytes(damage(damaged.read_bytes()))
    assert newest_valid(folder).epoch == 3


def test_loss_that_is_not_finite_ends_trial(tmp_path):
    class Exploding(torch.nn.Module):
        def forward(self, images):
            return images * torch.nan

    with pytest.raises(DivergedError, match="the training loss is nan in epoch 1"):
        trial(tmp_path, net=torch.nn.Sequential(*tiny(3), Exploding()))


def test_equal_accuracies_are_told_apart_by_the_loss():
    history = [
        {"epoch": 1, "val_accuracy": 0.9, "val_loss": 0.5},
        {"epoch": 2, "val_accuracy": 0.9, "val_loss": 0.4},
        {"epoch": 3, "val_accuracy": 0.8, "val_loss": 0.1},
    ]
    assert best_epoch(history, "val_accuracy") == 2
    assert best_epoch(history, "val_loss") == 3
