"""Configurations: a function of seed and space, inside their ranges, each optimizer with its
share.
"""

import pytest

from raysft.errors import JobError
from raysft.job import Job
from raysft.job.load import validate_job
from raysft.job.space import trial_settings
from raysft.records.trial import TrialRecord
from raysft.run.outcome import summarize_repeats
from raysft.search.space import check_configurations, configurations


def job(space, trials=12, seed=0) -> Job:
    return Job.model_validate({"search": {"space": space, "trials": trials}, "seed": seed})


SPACE = {
    "optimizer": [
        {"name": "sgd", "lr": {"loguniform": [1e-3, 1e-1]}, "momentum": 0.8},
        {"name": "adam", "lr": {"uniform": [1e-4, 1e-3]}, "weight_decay": {"choice": [0.0, 0.1]}},
    ],
    "train.batch_size": {"int": [16, 18]},
}


def test_same_seed_gives_the_same_configurations():
    assert configurations(job(SPACE)) == configurations(job(SPACE))
    assert configurations(job(SPACE)) != configurations(job(SPACE, seed=1))


def test_a_seed_means_the_same_configurations_in_every_version():
    """What a seed draws is in papers and tickets: change these figures only with a line in
    CHANGELOG.
    """
    space = {**SPACE, "train.augment.flip": {"grid": [True, False]}}
    found = configurations(job(space, trials=8, seed=7))
    drawn = [
        ("adam", 0.0005846462833693903, 0.0, 17, True),
        ("sgd", 0.0013934848991057581, None, 18, False),
        ("sgd", 0.0010760209372350656, None, 18, True),
        ("adam", 0.0007113069965088465, 0.1, 16, False),
        ("adam", 0.00045364807888375745, 0.1, 18, False),
        ("sgd", 0.02211233200687724, None, 16, False),
        ("sgd", 0.002671595523907358, None, 17, True),
        ("adam", 0.0009365753720558094, 0.1, 17, True),
    ]
    for config, (name, rate, decay, batch, flip) in zip(found, drawn, strict=True):
        optimizer = config["optimizer"]
        assert (optimizer["name"], optimizer.get("weight_decay")) == (name, decay)
        # Processors differ in the last digit of an exponential.
        assert optimizer["lr"] == pytest.approx(rate, rel=1e-12)
        assert (config["train.batch_size"], config["train.augment.flip"]) == (batch, flip)


def test_optimizers_share_trials_within_their_own_ranges():
    found = configurations(job(SPACE, trials=60))
    by_name = {
        name: [c["optimizer"] for c in found if c["optimizer"]["name"] == name]
        for name in ("sgd", "adam")
    }
    assert {name: len(options) for name, options in by_name.items()} == {"sgd": 30, "adam": 30}
    assert all(1e-3 <= o["lr"] <= 1e-1 and o["momentum"] == 0.8 for o in by_name["sgd"])
    assert all(1e-4 <= o["lr"] <= 1e-3 for o in by_name["adam"])
    assert {o["weight_decay"] for o in by_name["adam"]} == {0.0, 0.1}
    assert {c["train.batch_size"] for c in found} == {16, 17, 18}


def test_loguniform_is_even_on_the_logarithm():
    found = configurations(
        job({"optimizer": [{"name": "sgd", "lr": {"loguniform": [1e-4, 1.0]}}]}, trials=400)
    )
    below = sum(c["optimizer"]["lr"] < 1e-2 for c in found)
    assert 160 < below < 240


def test_grid_tries_every_combination():
    space = {
        "optimizer": [{"name": "sgd", "lr": {"grid": [0.1, 0.01]}}, {"name": "adam"}],
        "train.augment.flip": {"grid": [True, False]},
    }
    found = configurations(job(space))
    seen = {
        (c["optimizer"]["name"], c["optimizer"].get("lr"), c["train.augment.flip"]) for c in found
    }
    assert len(found) == len(seen) == 6


def test_without_a_search_one_trial_is_the_job():
    job = Job()
    assert configurations(job) == [{}]
    assert trial_settings(job, {}).train == job.train


@pytest.mark.parametrize(
    ("config", "read"),
    [
        (
            {"optimizer": {"name": "adam", "lr": 0.5}},
            lambda t: (t.optimizer.name, t.optimizer.lr) == ("adam", 0.5),
        ),
        ({"train.schedule.warmup_epochs": 2.0}, lambda t: t.schedule.warmup_epochs == 2.0),
        ({"train.batch_size": 7}, lambda t: t.batch_size == 7),
    ],
)
def test_configuration_replaces_values_of_the_job(config, read):
    assert read(trial_settings(Job(), config).train)


def test_alternatives_have_ranges_of_their_own():
    space = {
        "train.schedule": [
            {"name": "cosine", "floor": {"uniform": [0.0, 0.2]}},
            {"name": "step", "step_factor": {"grid": [0.1, 0.5]}},
        ],
        "model": [{"name": "resnet18"}, {"name": "resnet34", "image_size": 64}],
    }
    found = configurations(job(space, trials=60))
    assert len(found) == 60
    for config in found:
        recipe = trial_settings(job(space), config)
        if recipe.train.schedule.name == "step":
            assert recipe.train.schedule.step_factor in (0.1, 0.5)
        else:
            assert 0 <= config["train.schedule"]["floor"] <= 0.2
    assert {(c["train.schedule"]["name"], c["model"]["name"]) for c in found} == {
        (s, m) for s in ("cosine", "step") for m in ("resnet18", "resnet34")
    }


def test_known_configurations_come_first_and_count():
    known = [{"optimizer": {"name": "sgd", "lr": 0.3}}, {"train.batch_size": 8}]
    tree = {"search": {"space": SPACE, "trials": 5, "start_with": known}}
    found = configurations(Job.model_validate(tree))
    assert found[:2] == known
    assert len(found) == 5


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (
            {
                "space": {
                    "train.freeze": {"choice": ["none", "backbone"]},
                    "train.head_epochs": {"choice": [0, 2]},
                }
            },
            "leave head_epochs at 0",
        ),
        (
            {
                "space": {
                    "train.schedule.name": {"choice": ["cosine", "one_cycle"]},
                    "train.schedule.warmup_epochs": {"choice": [0.0, 1.0]},
                }
            },
            "rises by itself",
        ),
        (
            {
                "space": {
                    "train.batch_size": {"choice": [4, 64]},
                    "train.accumulate": {"choice": [1, 8]},
                }
            },
            "accumulate is",
        ),
    ],
)
def test_values_wrong_together_are_refused_at_the_start(search, expected):
    with pytest.raises(JobError, match=expected):
        check_configurations(Job.model_validate({"search": search}))


def test_values_right_together_pass():
    space = {
        "train.schedule.name": {"choice": ["cosine", "one_cycle"]},
        "train.schedule.warmup_epochs": {"choice": [0.0]},
    }
    tree = {"train": {"schedule": {"warmup_epochs": 1.0}}, "search": {"space": space}}
    check_configurations(validate_job(tree, "job.yaml"))


def record(trial: str, status: str, *values: float) -> TrialRecord:
    history = [{"epoch": i + 1, "val_accuracy": v, "val_loss": 1.0} for i, v in enumerate(values)]
    return TrialRecord(trial, {}, status, history)


def test_only_finished_repeats_count():
    best = record("t0", "stopped", 0.5, 0.8)
    repeats = [
        record("t0-seed1", "finished", 0.6),
        record("t0-seed2", "failed", 0.1),
        record("t0-seed3", "stopped", 0.1),
    ]
    found = summarize_repeats(best, repeats, "val_accuracy", 0)
    assert (found["seeds"], found["values"], found["mean"]) == (
        [0, 1],
        [0.8, 0.6],
        pytest.approx(0.7),
    )
    assert summarize_repeats(best, repeats[1:], "val_accuracy", 0)["std"] == 0.0
    assert summarize_repeats(best, [], "val_accuracy", 0) is None
