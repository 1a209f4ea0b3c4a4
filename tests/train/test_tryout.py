"""Two images go through a network before it is trained: what it cannot take is said, with what it
does take.
"""

import copy

import pytest
import torch
from torch import nn

from raysft.errors import ModelError
from raysft.job.spec import Model
from raysft.train.modeling import build_network
from raysft.train.smallnet import small_cnn
from raysft.train.tryout import try_network
from tests.tiny import tiny


def tried(name: str, size: int, image_size: int | None = None) -> None:
    net = build_network(Model(name=name, weights="none", image_size=image_size), 3, 0).net
    try_network(net, name, 3, size, size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [
        ("inception_v3", 64, "75, 96, 112, 128"),
        ("maxvit_t", 64, "takes 224$"),
        ("vit_b_16", 64, "takes 224$"),
        ("alexnet", 32, "64, 75"),
    ],
)
def test_network_refusing_images_says_which_it_takes(name, size, sizes):
    with pytest.raises(
        ModelError, match=rf"{name}: cannot take images of {size} × {size} pixels .*{sizes}"
    ) as refused:
        tried(name, size)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 32), ("inception_v3", 75), ("maxvit_t", 224)]
)
def test_accepted_network_is_left_unchanged(name, size):
    net = build_network(Model(name=name, weights="none"), 3, 0).net
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    generator = torch.get_rng_state()
    try_network(net, name, 3, size, size)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.slow
def test_a_transformer_is_made_for_its_image_size():
    tried("vit_b_16", 64, image_size=64)
    with pytest.raises(ModelError, match=r"model\.image_size: 65: vit_b_16 cannot be made for it"):
        tried("vit_b_16", 65, image_size=65)


class Through(nn.Module):
    """What `change` makes of the outputs of a small network."""

    def __init__(self, change) -> None:
        super().__init__()
        self.net, self.change = small_cnn(3), change

    def forward(self, images):
        return self.change(self, self.net(images))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda net, out: out[:, :2], r"makes \(2, 2\) of two images, where \(2, 3\) is needed"),
        (lambda net, out: (out, out), "makes tuple of two images"),
        (lambda net, out: 1 / 0, "fails on two images of 8 × 8 pixels .*division by zero"),
        (lambda net, out: out if not net.training else 1 / 0, "division by zero"),
        (lambda net, out: out if net.training else 1 / 0, "division by zero"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(change, expected):
    with pytest.raises(ModelError, match=expected):
        try_network(Through(change), "mine:net", 3, 8, 8)


@pytest.mark.parametrize(
    "change",
    [lambda net, out: out + torch.arange(3), lambda net, out: out * float(out.sum() > 1e9 or 1)],
)
def test_network_that_checks_values_is_accepted_unchanged(change):
    net = Through(change)
    before = copy.deepcopy(net.state_dict())
    try_network(net, "mine:net", 3, 8, 8)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_images_need_not_be_square():
    try_network(tiny(3), "tests.tiny:tiny", 3, 8, 20)


class AsksForItsRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = tiny(3)

    def forward(self, images):
        return self.net(images) * (1 + torch.distributed.get_rank())


def test_network_that_needs_its_team_is_accepted():
    try_network(AsksForItsRank(), "mine:asks", 3, 8, 8)
