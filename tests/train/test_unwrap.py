"""Weights as other programs write them: unwrapped, told, and read without running anything."""

import argparse
import os
import pathlib
import pickle
from collections import defaultdict, deque
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet18

from raysft.errors import ModelError
from raysft.job.spec import Model
from raysft.train.modeling import Network, build_network
from tests.tiny import tiny


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(1)
    return resnet18(weights=None)


def load(file: pathlib.Path, content: object, **how) -> Network:
    save_file(content, file) if file.suffix == ".safetensors" else torch.save(content, file, **how)
    return build_network(Model(name="resnet18", weights=str(file)), 3, 0)


def prefixed(net: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in net.state_dict().items()}


def zeros(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value) for name, value in net.state_dict().items()}


WRAPPED = {
    "plain": (lambda net: net.state_dict(), ""),
    "DataParallel": (lambda net: nn.DataParallel(net).state_dict(), "prefix module. removed"),
    "compiled": (lambda net: torch.compile(net).state_dict(), "_orig_mod. removed"),
    "compiled in parallel": (
        lambda net: prefixed(net, "module._orig_mod."),
        "_orig_mod. removed, prefix module. removed",
    ),
    "Lightning": (
        lambda net: {
            "epoch": 3,
            "pytorch-lightning_version": "2.5",
            "state_dict": prefixed(net, "model.") | {"loss.weight": torch.ones(3)},
            "hyper_parameters": {"lr": 0.1},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        },
        "state_dict, prefix model. removed, 1 tensors beside it left out",
    ),
    "Lightning net": (
        lambda net: {"state_dict": prefixed(net, "net.")},
        "state_dict, prefix net. removed",
    ),
    "timm": (
        lambda net: {
            "arch": "resnet18",
            "args": argparse.Namespace(lr=0.1),
            "state_dict": zeros(net),
            "state_dict_ema": net.state_dict(),
        },
        "state_dict_ema; not taken: state_dict",
    ),
    "model_state_dict": (
        lambda net: {"model_state_dict": net.state_dict(), "epoch": 3},
        "model_state_dict",
    ),
    "model": (lambda net: {"model": net.state_dict(), "optimizer": {"state": {}}}, "model"),
    "net": (lambda net: {"net": prefixed(net, "module.")}, "net, prefix module. removed"),
    "DINO": (
        lambda net: {
            "student": {f"module.backbone.{k}": v for k, v in zeros(net).items()},
            "teacher": prefixed(net, "backbone.") | {"head.mlp.0.weight": torch.ones(3)},
        },
        "teacher, prefix backbone. removed, 1 tensors beside it left out; not taken: student "
        "with prefix "
        "module.backbone.",
    ),
    "MoCo": (
        lambda net: {
            "state_dict": {f"module.encoder_k.{k}": v for k, v in zeros(net).items()}
            | prefixed(net, "module.encoder_q.")
            | {"module.queue": torch.ones(3)}
        },
        "state_dict, prefix module.encoder_q. removed",
    ),
    "average": (
        lambda net: AveragedModel(net).state_dict(),
        "prefix module. removed, 1 tensors beside it left out",
    ),
    "encoder": (lambda net: prefixed(net, "encoder."), "prefix encoder. removed"),
    "deep": (
        lambda net: {"checkpoint": {"model": {"state": prefixed(net, "a.b.")}}},
        "checkpoint.model.state, prefix a.b. removed",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_are_unwrapped_and_told(tmp_path, source, name):
    wrap, told = WRAPPED[name]
    network = load(tmp_path / "w.pt", wrap(source))
    loaded = network.loaded
    assert (loaded.loaded, loaded.total, loaded.new) == (120, 122, ("fc.weight", "fc.bias"))
    assert loaded.source.startswith(told) if told else loaded.source == ""
    assert torch.equal(network.net.conv1.weight, source.conv1.weight)
    assert torch.equal(network.net.layer4[1].bn2.weight, source.layer4[1].bn2.weight)


def test_a_safetensors_file_is_unwrapped_too(tmp_path, source):
    network = load(
        tmp_path / "w.safetensors", {k: v.clone() for k, v in prefixed(source, "model.").items()}
    )
    assert network.loaded.source == "prefix model. removed"


def test_foreign_head_and_projections_are_left_out(tmp_path, source):
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("fc.")}
    state |= {"fc.0.weight": torch.ones(4, 4), "projector.0.weight": torch.ones(4, 4)}
    loaded = load(tmp_path / "w.pt", prefixed_with("backbone.", state)).loaded
    assert (loaded.loaded, loaded.unfit) == (120, ("fc.0.weight", "projector.0.weight"))


def prefixed_with(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": value for name, value in state.items()}


def test_fewer_tensors_than_the_body_has_are_refused(tmp_path, source):
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("layer4.1")}
    with pytest.raises(
        ModelError,
        match=r"another architecture than resnet18: \d+ of 122 tensors fit \(state_dict, "
        r"prefix module\. removed\), layer4\.1\.\S+ is missing",
    ):
        load(tmp_path / "w.pt", {"state_dict": prefixed_with("module.", state)})


def test_better_fit_beats_better_name(tmp_path, source):
    content = {
        "state_dict_ema": {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        "model": source.state_dict(),
    }
    network = load(tmp_path / "w.pt", content)
    assert network.loaded.source == "model"
    assert torch.equal(network.net.conv1.weight, source.conv1.weight)


# --- without running code ----------------------------------------------------------------------


class Own:
    """Of some training program."""

    def __init__(self, value: object = 1) -> None:
        self.value = value

    def __setstate__(self, state: dict) -> None:
        raise AssertionError("it ran")


@pytest.mark.parametrize(
    "beside",
    [Own(), argparse.Namespace(a=[1]), pathlib.PurePosixPath("x"), np.float64(0.5)],
    ids=lambda value: type(value).__name__,
)
def test_objects_beside_the_weights_are_not_made(tmp_path, source, beside):
    assert (
        load(tmp_path / "w.pt", {"model": source.state_dict(), "args": beside}).loaded.loaded == 120
    )


def test_arguments_in_legacy_format_are_not_made_either(tmp_path, source):
    content = {"model": source.state_dict(), "args": argparse.Namespace(a=[1])}
    assert (
        load(tmp_path / "w.pt", content, _use_new_zipfile_serialization=False).loaded.loaded == 120
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_network_is_refused_in_one_line(tmp_path, source, zipped):
    with pytest.raises(ModelError) as refused:
        load(tmp_path / "w.pt", source, _use_new_zipfile_serialization=zipped)
    line = str(refused.value)
    assert "\n" not in line
    assert "\x1b" not in line
    assert "weights_only" not in line
    assert "ResNet" in line
    if zipped:
        assert "is a whole pickled network (torchvision.models.resnet.ResNet)" in line


class Config(dict):
    """As yacs and EasyDict have them: a dictionary with attributes of its own."""


class Listed(list):
    pass


def a_config() -> Config:
    made = Config(lr=0.1, inner=Config(a=[1]))
    made.__dict__["frozen"] = True
    return made


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        a_config(),
        Listed([1, 2]),
        Listed([3]),
        deque([1, 2], 5),
        defaultdict(list, a=[1]),
        defaultdict(dict, a={}),
        Fraction(1, 3),
        frozenset([1]),
        range(3),
        int,
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_people_put_beside_weights_is_read_over(tmp_path, source, beside, zipped):
    content = {"config": beside, "model": source.state_dict()}
    assert (
        load(tmp_path / "w.pt", content, _use_new_zipfile_serialization=zipped).loaded.loaded == 120
    )


def test_weights_in_custom_dictionaries_are_found(tmp_path, source):
    assert load(tmp_path / "w.pt", Config(model=Config(source.state_dict()))).loaded.loaded == 120


def test_a_whole_network_by_a_name_is_told(tmp_path, source):
    with pytest.raises(
        ModelError, match=r"holds a whole pickled network \(torchvision.models.resnet.ResNet\)"
    ):
        load(
            tmp_path / "w.pt",
            {"epoch": 3, "model": source, "optimizer": {"state": {}}, "ema": None},
        )


def test_a_safetensors_file_is_known_by_its_content(tmp_path, source):
    save_file(source.state_dict(), tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / "w.pt")
    assert (
        build_network(Model(name="resnet18", weights=str(tmp_path / "w.pt")), 3, 0).loaded.loaded
        == 120
    )
    torch.save(source.state_dict(), tmp_path / "t")
    (tmp_path / "t").rename(tmp_path / "w.safetensors")
    assert (
        build_network(
            Model(name="resnet18", weights=str(tmp_path / "w.safetensors")), 3, 0
        ).loaded.loaded
        == 120
    )


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning"
)
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cut", "it is cut off or damaged"),
        ("script", "it is a TorchScript archive"),
        ("empty", "it is cut off"),
        ("page", "it is not a torch file, or damaged"),
    ],
)
def test_other_than_torch_file_is_one_line(tmp_path, source, kind, expected):
    file = tmp_path / "w.pt"
    torch.save(source.state_dict(), file)
    if kind == "script":
        torch.jit.script(nn.Linear(2, 2)).save(file)
    else:
        file.write_bytes({"cut": file.read_bytes()[:9999], "empty": b"", "page": b"<html>"}[kind])
    with pytest.raises(ModelError, match=expected) as refused:
        build_network(Model(name="resnet18", weights=str(file)), 3, 0)
    assert "weights_only" not in str(refused.value)
    assert len(str(refused.value)) < 200 + len(str(file))


class Calls:
    def __init__(self, what, *given) -> None:
        self.called = what, given

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize(
    "evil",
    [
        Calls(exec, "print('it ran')"),
        Calls(eval, "print('it ran')"),
        Calls(pickle.loads, b"N."),
        Calls(os.system, "echo it ran"),
    ],
    ids=["exec", "eval", "loads", "system"],
)
def test_what_would_call_something_is_refused(tmp_path, source, evil, capfd):
    for zipped in (True, False):
        with pytest.raises(ModelError, match="cannot be read") as refused:
            load(
                tmp_path / "w.pt",
                {"model": source.state_dict(), "args": evil},
                _use_new_zipfile_serialization=zipped,
            )
        assert "\n" not in str(refused.value)
        assert "\x1b" not in str(refused.value)
    assert "it ran" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(3), "text", {}], ids=str)
def test_what_holds_no_weights_is_refused(tmp_path, content):
    with pytest.raises(ModelError, match="is not a state dict"):
        load(tmp_path / "w.pt", content)


def test_small_networks_are_not_taken_for_one_another(tmp_path):
    torch.save(
        {"other": {"0.weight": torch.ones(3)}, "net": tiny(3).state_dict()}, tmp_path / "w.pt"
    )
    loaded = build_network(
        Model(name="tests.tiny:tiny", weights=str(tmp_path / "w.pt")), 3, 0
    ).loaded
    assert (loaded.loaded, loaded.source) == (4, "net")
