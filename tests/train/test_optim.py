"""Optimizers by name, and learning rates by step."""

import pytest
import torch

from raysft.job.spec import Optimizer, Schedule
from raysft.train.optim import build_optimizer, learning_rate


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam),
                                            ("adamw", torch.optim.AdamW), ("rmsprop", torch.optim.RMSprop)])
def test_an_optimizer_has_the_values_of_the_job(name, kind):
    spec = Optimizer(name=name, lr=0.3, weight_decay=0.2)
    optimizer = build_optimizer(spec, [torch.nn.Parameter(torch.ones(2))])
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.2)
    assert group.get("momentum", spec.momentum) == spec.momentum


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
