"""What the doctor knows of a machine without importing torch."""

import pytest
import torch

from raysft.entrypoints.doctor import cached_weights, torch_hub


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"TORCH_HOME": "/models"},
        {"TORCH_HOME": "~/models"},
        {"XDG_CACHE_HOME": "/cache"},
        {"XDG_CACHE_HOME": "/cache", "TORCH_HOME": "/m"},
    ],
    ids=str,
)
def test_the_cache_is_torch_s_own(monkeypatch, variables):
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(torch_hub()) == torch.hub.get_dir()


def test_weights_are_listed_from_both_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hf/models--timm--resnet18.a1_in1k").mkdir(parents=True)
    for name in ("resnet18.pth", "w.safetensors", "w.safetensors.lock"):
        (tmp_path / "hub/checkpoints" / name).touch()
    assert cached_weights() == ["resnet18.pth", "timm/resnet18.a1_in1k", "w.safetensors"]
