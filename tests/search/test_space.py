"""Configurations: a function of seed and space, inside their ranges, each optimizer with its share."""

import pytest

from raysft.job import Job
from raysft.job.space import recipe_of
from raysft.search.space import configurations


def job(space, trials=12, seed=0) -> Job:
    return Job.model_validate({"search": {"space": space, "trials": trials}, "seed": seed})


SPACE = {"optimizer": [{"name": "sgd", "lr": {"loguniform": [1e-3, 1e-1]}, "momentum": 0.8},
                       {"name": "adam", "lr": {"uniform": [1e-4, 1e-3]}, "weight_decay": {"choice": [0.0, 0.1]}}],
         "train.batch_size": {"int": [16, 18]}}


def test_the_same_seed_gives_the_same_configurations():
    assert configurations(job(SPACE)) == configurations(job(SPACE))
    assert configurations(job(SPACE)) != configurations(job(SPACE, seed=1))


def test_every_optimizer_gets_its_share_and_stays_in_its_own_range():
    found = configurations(job(SPACE, trials=60))
    by_name = {name: [c["optimizer"] for c in found if c["optimizer"]["name"] == name] for name in ("sgd", "adam")}
    assert {name: len(options) for name, options in by_name.items()} == {"sgd": 30, "adam": 30}
    assert all(1e-3 <= o["lr"] <= 1e-1 and o["momentum"] == 0.8 for o in by_name["sgd"])
    assert all(1e-4 <= o["lr"] <= 1e-3 for o in by_name["adam"])
    assert {o["weight_decay"] for o in by_name["adam"]} == {0.0, 0.1}
    assert {c["train.batch_size"] for c in found} == {16, 17, 18}


def test_a_log_range_is_sampled_evenly_on_its_logarithm():
    found = configurations(job({"optimizer": [{"name": "sgd", "lr": {"loguniform": [1e-4, 1.0]}}]}, trials=400))
    below = sum(c["optimizer"]["lr"] < 1e-2 for c in found)
    assert 160 < below < 240


def test_a_grid_tries_every_combination():
    space = {"optimizer": [{"name": "sgd", "lr": {"grid": [0.1, 0.01]}}, {"name": "adam"}],
             "train.augment.flip": {"grid": [True, False]}}
    found = configurations(job(space))
    seen = {(c["optimizer"]["name"], c["optimizer"].get("lr"), c["train.augment.flip"]) for c in found}
    assert len(found) == len(seen) == 6


def test_without_a_search_there_is_one_trial_as_in_the_job():
    job = Job()
    assert configurations(job) == [{}]
    assert recipe_of(job, {}).train == job.train


@pytest.mark.parametrize(("config", "read"), [
    ({"optimizer": {"name": "adam", "lr": 0.5}}, lambda t: (t.optimizer.name, t.optimizer.lr) == ("adam", 0.5)),
    ({"train.schedule.warmup_epochs": 2.0}, lambda t: t.schedule.warmup_epochs == 2.0),
    ({"train.batch_size": 7}, lambda t: t.batch_size == 7),
])
def test_a_configuration_takes_the_place_of_the_jobs_values(config, read):
    assert read(recipe_of(Job(), config).train)
