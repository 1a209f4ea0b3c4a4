"""Networks by name, heads, and weights that fit or are refused."""

import pytest
import torch
from safetensors.torch import save_file

from raysft.errors import ModelError
from raysft.job.spec import Model
from raysft.train.modeling import build_network
from tests.tiny import tiny, wider


def build(name="tests.tiny:tiny", weights="none", classes=3, seed=0):
    return build_network(Model(name=name, weights=weights), classes, seed).net


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet", "vit_b_16"]
)
def test_every_family_gets_a_new_head(name):
    net = build(name, classes=5).eval()
    assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 5)


def test_the_seed_fixes_new_tensors():
    first, again, other = build(), build(), build(seed=1)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet81", "did you mean resnet18"),
        ("fasterrcnn_resnet50_fpn", "not a torchvision classifier"),
        ("tests.tiny:none", "cannot be imported"),
        ("no.such:thing", "cannot be imported"),
        ("tests.tiny:not_a_network", "made a int"),
        ("tests.networks:raises", r"cannot make a network \(RuntimeError: no weights today\)"),
    ],
)
def test_unknown_networks_say_what_to_do(name, expected):
    with pytest.raises(ModelError, match=expected):
        build(name)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_of_weights_is_loaded_whole(tmp_path, suffix):
    path, source = tmp_path / f"w.{suffix}", tiny(3)
    if suffix == "pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    net = build(weights=str(path))
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), source.parameters(), strict=True)
    )


def test_a_pretrained_body_takes_a_new_head(tmp_path):
    from torchvision.models import resnet18

    source = resnet18(weights=None)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    net = build("resnet18", str(tmp_path / "w.safetensors"), classes=7)
    assert torch.equal(net.conv1.weight, source.conv1.weight)
    assert net.fc.out_features == 7


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_file(wider(3).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError, match=r"another architecture than tests\.tiny:tiny: 1 of 4 tensors fit"
    ):
        build(weights=str(tmp_path / "w.safetensors"))


class Evil:
    def __reduce__(self):
        return eval, (
            "print('run')",
        )  # not print itself: Ray puts one of its own in its place, which no pickle finds


def test_weights_that_could_run_code_are_refused(tmp_path, capsys):
    torch.save({"a": Evil()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        build(weights=str(tmp_path / "w.pt"))
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet18", "IMAGENET1K_V9", "give DEFAULT, IMAGENET1K_V1"),
        ("tests.tiny:tiny", "DEFAULT", "has no weights by name"),
        ("resnet18", "none/w.safetensors", "does not exist"),
    ],
)
def test_weights_that_are_not_there(name, weights, expected):
    with pytest.raises(ModelError, match=expected):
        build(name, weights)


def test_offline_error_says_where_to_put_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot be downloaded") as caught:
        build("resnet18", "DEFAULT")
    assert f"put it at {tmp_path}/checkpoints/resnet18-f37072fd.pth" in caught.value.todo
