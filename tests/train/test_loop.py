"""One trial in one process: it learns, it repeats itself, and it goes on where a checkpoint left off."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raysft.data.ingest import Kept, Rows
from raysft.data.preparation import Preparation
from raysft.errors import TrialError
from raysft.job.optimizers import NAMES
from raysft.job.recipe import Train
from raysft.train.checkpoint_paths import last_checkpoint
from raysft.train.loop import Recipe, Splits, best_epoch, run_trial
from raysft.train.team import Team
from tests.tiny import tiny


def rows(n: int, seed: int) -> Kept:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = rng.normal(60 + 60 * labels[:, None, None, None], 30, (n, 8, 8, 3)).clip(0, 255).astype(np.uint8)
    return Kept(Rows(np.arange(n), images, labels))


TRAIN, VAL = rows(50, 0), rows(20, 1)
HOW = Preparation((0.5,) * 3, (0.25,) * 3)


def trial(folder: Path, epochs: int = 4, stop_after: int | None = None, net=None, **knobs) -> list[dict]:
    knobs = {"optimizer": {"name": "adam", "lr": 0.01}} | knobs
    train = Train.model_validate({"epochs": epochs, "batch_size": 8} | knobs)
    recipe = Recipe(train, 0, HOW, (17, 17, 16), "val_accuracy", folder / "t0/checkpoints", "4")
    torch.manual_seed(0)
    seen = []

    def report(metrics, last):
        seen.append(metrics)
        return stop_after is None or metrics["epoch"] < stop_after

    run_trial(recipe, net or tiny(3), Splits(TRAIN, VAL), Team(0, 1, torch.device("cpu")), report, lambda *a: None)
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


@pytest.mark.parametrize("knobs", [*({"optimizer": {"name": name}} for name in NAMES), {"ema": 0.9},
                                   {"head_epochs": 3}, {"augment": {"mixup": 0.4, "cutmix": 1.0, "erasing": 0.5}},
                                   {"layer_decay": 0.7, "accumulate": 2, "clip_norm": 0.1}], ids=str)
def test_a_trial_taken_up_again_ends_as_if_it_had_never_stopped(tmp_path, knobs):
    whole = trial(tmp_path / "a", **knobs)
    first = trial(tmp_path / "b", **knobs, stop_after=2)
    rest = trial(tmp_path / "b", **knobs)
    assert [m["epoch"] for m in first + rest[1:]] == [1, 2, 3, 4]
    assert values(first + rest[1:]) == values(whole)


def test_an_epoch_whose_report_was_lost_in_a_crash_is_reported_again(tmp_path):
    first = trial(tmp_path, stop_after=2)
    seen = trial(tmp_path)
    assert [m["epoch"] for m in seen] == [2, 3, 4]
    assert values(seen[:1]) == values(first[1:])


def test_a_trial_that_had_trained_to_its_end_is_only_reported(tmp_path):
    whole = trial(tmp_path)
    assert values(trial(tmp_path)) == values(whole[-1:])


def test_only_the_best_and_the_last_checkpoint_are_kept(tmp_path):
    history = trial(tmp_path, epochs=5)
    left = sorted(int(p.name[-4:]) for p in (tmp_path / "t0/checkpoints").iterdir())
    assert left == sorted({best_epoch(history, "val_accuracy"), 5})


def test_a_torn_checkpoint_is_not_taken_up(tmp_path):
    trial(tmp_path, epochs=2)
    folder = tmp_path / "t0/checkpoints"
    (folder / "epoch-0009").mkdir()
    assert last_checkpoint(folder) == folder / "epoch-0002"


def test_a_loss_that_is_not_finite_ends_the_trial(tmp_path):
    class Exploding(torch.nn.Module):
        def forward(self, images):
            return images * torch.nan

    with pytest.raises(TrialError, match="diverged: the training loss is nan in epoch 1"):
        trial(tmp_path, net=torch.nn.Sequential(*tiny(3), Exploding()))


def test_equal_accuracies_are_told_apart_by_the_loss():
    history = [{"epoch": 1, "val_accuracy": 0.9, "val_loss": 0.5}, {"epoch": 2, "val_accuracy": 0.9, "val_loss": 0.4},
               {"epoch": 3, "val_accuracy": 0.8, "val_loss": 0.1}]
    assert best_epoch(history, "val_accuracy") == 2
    assert best_epoch(history, "val_loss") == 3
