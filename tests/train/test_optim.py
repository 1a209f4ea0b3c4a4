"""Optimizers by name, and learning rates by step."""

import inspect
import math

import pytest
import torch

from raysft.job.optimizers import ARGUMENTS_LEFT_OUT, LEFT_OUT, NAMES, OPTIMIZERS, WITHOUT_DECAY
from raysft.job.recipe import Optimizer, Schedule
from raysft.train.optim import (
    build_optimizer,
    layer_depths,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)


def test_the_table_of_optimizers_is_that_of_torch():
    classes = {
        n.lower(): k
        for n, k in vars(torch.optim).items()
        if inspect.isclass(k)
        and issubclass(k, torch.optim.Optimizer)
        and k is not torch.optim.Optimizer
    }
    assert set(classes) - LEFT_OUT == set(OPTIMIZERS)
    for name, (_, arguments) in OPTIMIZERS.items():
        assert set(inspect.signature(classes[name]).parameters) - ARGUMENTS_LEFT_OUT == set(
            arguments
        ), name


GIVEN = {
    "momentum": 0.8,
    "nesterov": True,
    "betas": [0.8, 0.95],
    "eps": 1e-6,
    "amsgrad": True,
    "alpha": 0.9,
}


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_has_the_values_of_the_job(name):
    known = OPTIMIZERS[name][1]
    given = {
        k: [v, v] if known[k] == "pair" and k == "eps" else v
        for k, v in GIVEN.items()
        if k in known
    }
    decay = {} if name in WITHOUT_DECAY else {"weight_decay": 0.2}
    spec = Optimizer(name=name, lr=0.3, **given, **decay)
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer(spec, [{"params": [parameter], "share": 1.0}])
    assert type(optimizer).__name__.lower() == name
    (group,) = optimizer.param_groups
    found = {
        k: list(group[k]) if isinstance(group[k], tuple) else group[k]
        for k in ("lr", *given, *decay)
    }
    assert found == {"lr": 0.3, **given, **decay}
    parameter.grad = torch.ones(2, 2)
    optimizer.step()
    assert (parameter < 1).all()


@pytest.mark.parametrize(
    ("given", "in_stages", "expected"),
    [
        ({"name": "sgd"}, False, True),
        ({"name": "adamw"}, True, True),
        ({"name": "sgd"}, True, None),
        ({"name": "sgd", "foreach": True}, False, None),
        ({"name": "adam", "fused": False}, False, False),
    ],
)
def test_updates_are_fused_where_possible_and_allowed(given, in_stages, expected):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))]}]
    assert (
        build_optimizer(Optimizer.model_validate(given), groups, in_stages).defaults["fused"]
        is expected
    )


def test_norms_and_biases_decay_only_on_request():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    groups = parameter_groups(net, Optimizer(weight_decay=0.1), 1.0)
    assert {len(g["params"]): g.get("weight_decay", 0.1) for g in groups} == {1: 0.1, 3: 0.0}
    (all_alike,) = parameter_groups(
        net, Optimizer(weight_decay=0.1, decay_norms_and_biases=True), 1.0
    )
    assert len(all_alike["params"]) == 4


def test_each_layer_has_share_of_next_layers_rate():
    net = torch.nn.ModuleDict(
        {
            "stem": torch.nn.Linear(2, 2),
            "blocks": torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
            "head": torch.nn.Linear(2, 2),
        }
    )
    groups = parameter_groups(net, Optimizer(), 0.5)
    assert [group["share"] for group in groups] == [0.125, 0.25, 0.5, 1.0]
    optimizer = build_optimizer(Optimizer(), groups)
    set_learning_rate(optimizer, 0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.4, 0.8]


def test_the_blocks_of_a_transformer_are_layers():
    from torchvision.models import vit_b_16

    depths = layer_depths(vit_b_16(weights=None))
    assert max(depths.values()) > 12
    blocks = [depths[f"encoder.layers.encoder_layer_{i}.ln_1.weight"] for i in range(12)]
    assert blocks == list(range(blocks[0], blocks[0] + 12))
    assert depths["heads.head.weight"] > blocks[-1]


def rates(schedule, steps=4, epochs=3):
    return [learning_rate(step, 0.1, schedule, steps, epochs) for step in range(steps * epochs)]


def test_constant_stays():
    assert rates(Schedule(name="constant")) == [0.1] * 12


def test_cosine_falls_from_the_peak_to_zero():
    found = rates(Schedule(name="cosine"))
    assert found[0] == 0.1
    assert found == sorted(found, reverse=True)
    assert found[6] == pytest.approx(0.05)
    assert learning_rate(12, 0.1, Schedule(name="cosine"), 4, 3) == pytest.approx(0)


def test_warm_up_rises_to_the_peak_first():
    found = rates(Schedule(name="cosine", warmup_epochs=1))
    assert found[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert found[4] == pytest.approx(0.1)
    assert found[5] < 0.1


def closed_form(schedule: Schedule, step: int, steps: int = 4, epochs: int = 3) -> float:
    """The rate of a step at peak 0.1, written down once more from its definition."""
    warm, total = schedule.warmup_epochs * steps, steps * epochs
    if step < warm:
        return 0.1 * (step + 1) / warm
    done = (step - warm) / (total - warm)
    low = 0.1 * schedule.floor
    return {
        "constant": 0.1,
        "linear": 0.1 * (1 - done) + low * done,
        "cosine": low + (0.1 - low) * (1 + math.cos(math.pi * done)) / 2,
        "step": 0.1
        * schedule.step_factor ** math.floor((step - warm) / (schedule.step_epochs * steps)),
    }[schedule.name]


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(name="constant", warmup_epochs=0.5),
        Schedule(name="linear", floor=0.2),
        Schedule(name="cosine", floor=0.1, warmup_epochs=1),
        Schedule(name="step", step_epochs=0.75, step_factor=0.5),
        Schedule(name="step", step_epochs=1.0, warmup_epochs=1),
    ],
    ids=str,
)
def test_schedule_follows_its_closed_form(schedule):
    assert rates(schedule) == pytest.approx([closed_form(schedule, step) for step in range(12)])


@pytest.mark.parametrize("rise", [0.3, 0.5])
def test_one_cycle_matches_torch_at_every_step(rise):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    torch_one = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=12, pct_start=rise, cycle_momentum=False
    )
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 12:
            torch_one.step()
    assert rates(Schedule(name="one_cycle", rise=rise)) == pytest.approx(expected)
