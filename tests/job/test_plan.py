"""The plan: what fits where, and one line where it does not."""

import pytest

from raysft.errors import DataError, ResourceError
from raysft.job import Job
from raysft.job.plan import Node, Outline, Slot, count_trials, make_plan, make_slots
from raysft.job.spec import Resources

OUTLINE = Outline(("a", "b"), 1000, 200, "D")


def job(**sections) -> Job:
    return Job.model_validate(sections)


def test_rows_steps_and_batches_follow_from_job():
    plan = make_plan(job(train={"batch_size": 128}, resources={"workers": 2}), OUTLINE, [Node(2)])
    assert (plan.train_rows, plan.val_rows, plan.test_rows) == (900, 100, 200)
    assert (plan.steps_per_epoch, plan.batch_per_worker, plan.teams) == (8, 57, 1)


def test_limit_applies_before_validation_share():
    plan = make_plan(job(data={"limit": 100}), OUTLINE, [Node(1)])
    assert (plan.train_rows, plan.val_rows) == (90, 10)


@pytest.mark.parametrize(
    ("resources", "nodes", "trials", "expected"),
    [
        ({"workers": 1}, [Node(2)], 4, [Slot(2, 1)]),
        ({"workers": 1}, [Node(2)], 1, [Slot(1, 1)]),
        ({"workers": 2}, [Node(2)], 4, [Slot(1, 2)]),
        ({"workers": 2}, [Node(4), Node(8)], 16, [Slot(4, 2), Slot(2, 2)]),
        ({"workers": 4}, [Node(2), Node(2), Node(2)], 16, [Slot(1, 4)]),
        (
            {"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 4},
            [Node(64, 4)],
            16,
            [Slot(2, 2)],
        ),
        ({"workers": 1, "gpus_per_worker": 0.25}, [Node(16, 1)], 16, [Slot(4, 1)]),
        ({"workers": [1, 4]}, [Node(2)], 16, [Slot(1, 4, least=1)]),
        ({"workers": [2, 4]}, [Node(4), Node(4), Node(2)], 16, [Slot(1, 4, least=2)] * 2),
        ({"workers": [1, 2]}, [Node(8)], 1, [Slot(1, 2, least=1)]),
    ],
)
def test_slots_hold_as_many_teams_as_fit(resources, nodes, trials, expected):
    assert make_slots(Resources.model_validate(resources), nodes, trials) == tuple(expected)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"workers": [3, 5]}, "a trial of 3 workers needs 3 CPUs, the cluster has 2 CPUs"),
        ({"workers": 3}, "needs 3 CPUs, the cluster has 2 CPUs and 0 GPUs"),
        ({"workers": 1, "gpus_per_worker": 1}, "needs 1 GPU, the cluster has 2 CPUs and 0 GPUs"),
    ],
)
def test_shortage_names_the_missing_resource(resources, expected):
    with pytest.raises(ResourceError, match=expected):
        make_slots(Resources.model_validate(resources), [Node(2)], 4)


def test_single_class_is_refused():
    with pytest.raises(DataError, match="single class"):
        make_plan(job(), Outline(("a",), 10, 0, "D"), [Node(1)])


def test_searched_batch_sizes_are_the_ones_checked():
    space = {"train.batch_size": {"choice": [32, 64]}}
    make_plan(
        job(train={"batch_size": 1}, search={"space": space}, resources={"workers": 2}),
        OUTLINE,
        [Node(2)],
    )
    small = {"train.batch_size": {"choice": [2, 64]}}
    with pytest.raises(DataError, match="a batch of 1 images for 2 workers"):
        make_plan(
            job(data={"limit": 23}, search={"space": small}, resources={"workers": 2}),
            OUTLINE,
            [Node(2)],
        )


def test_validation_share_must_leave_training_images():
    with pytest.raises(DataError, match="0 training and 4 validation images"):
        make_plan(job(data={"limit": 4, "val_fraction": 0.9}), OUTLINE, [Node(1)])


def test_batches_smaller_than_workers_are_refused():
    with pytest.raises(DataError, match="workers"):
        make_plan(job(data={"limit": 4}, resources={"workers": 4}), OUTLINE, [Node(4)])


@pytest.mark.parametrize(
    ("space", "trials", "expected"),
    [
        ({"optimizer": [{"name": "sgd", "lr": {"loguniform": [0.01, 0.1]}}]}, 5, 5),
        ({"optimizer": [{"name": "sgd", "lr": {"grid": [0.01, 0.1]}}, {"name": "adam"}]}, 16, 3),
        (
            {"train.batch_size": {"grid": [16, 32]}, "train.augment.flip": {"grid": [True, False]}},
            1,
            4,
        ),
        (
            {
                "optimizer": [{"name": "sgd", "lr": {"loguniform": [0.01, 0.1]}}],
                "train.batch_size": {"grid": [16, 32]},
            },
            5,
            4,
        ),
        ({"train.batch_size": {"grid": [64]}}, 16, 1),
        ({"optimizer": [{"name": "sgd"}, {"name": "adam"}]}, 16, 2),
    ],
)
def test_grid_tries_every_combination(space, trials, expected):
    assert count_trials(job(search={"trials": trials, "space": space})) == expected
