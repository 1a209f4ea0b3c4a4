"""A network by its name, with a new head and the weights a job asks for."""

from __future__ import annotations

import difflib
import importlib
import socket
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysft.errors import ModelError, in_words
from raysft.job.spec import Model
from raysft.storage import local_copy, locked
from raysft.train.setup import weights_file

# Networks whose auxiliary training heads are left out: one loss, on the main head.
_AUXILIARY = {"googlenet": {"aux_logits": False, "init_weights": True},
              "inception_v3": {"aux_logits": False, "init_weights": True}}
_IMAGENET_CLASSES = 1000
DOWNLOAD_SILENCE_S = 60


def build_model(spec: Model, classes: int, seed: int) -> nn.Module:
    """The network of `spec` with a new head of `classes` outputs, its new tensors drawn from `seed`.

    Raises ModelError for an unknown name, weights that are not there, cannot be fetched, or belong to another network.
    """
    torch.manual_seed(seed)
    if ":" in spec.name:
        net = _from_factory(spec.name, classes)
        head = ""
    else:
        net = _from_torchvision(spec.name)
        head = replace_head(net, classes)
    if spec.weights != "none":
        load_weights(net, _state_dict(spec), head, spec)
    return net


def network(name: str, classes: int) -> nn.Module:
    """The network of a delivered model, before its weights are loaded; raises ModelError."""
    return build_model(Model(name=name, weights="none"), classes, seed=0)


# --- architectures ---------------------------------------------------------------------------------------------------

def _from_factory(name: str, classes: int) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the module does when it is imported
        raise ModelError(f"model.name: {name}", f"cannot be imported ({in_words(error)})",
                         "give package.module:factory, importable where raysft runs") from None
    try:
        net = factory(num_classes=classes)
    except Exception as error:  # whatever the factory does
        raise ModelError(f"model.name: {name}", f"cannot make a network ({in_words(error)})",
                         "it is called as factory(num_classes=N)") from None
    if not isinstance(net, nn.Module):
        raise ModelError(f"model.name: {name}", f"made a {type(net).__name__}, not a torch.nn.Module")
    return net


def _from_torchvision(name: str) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}, or package.module:factory"
        raise ModelError(f"model.name: {name}", "is not a torchvision classifier", hint)
    return models.get_model(name, weights=None, **_AUXILIARY.get(name, {}))


def replace_head(net: nn.Module, classes: int) -> str:
    """Put a new last layer of `classes` outputs in place of the one of 1,000; returns its name."""
    last = [(name, m) for name, m in net.named_modules() if _outputs(m) == _IMAGENET_CLASSES][-1:]
    if not last:
        raise ModelError(type(net).__name__, "has no layer of 1,000 classes to replace")
    (name, layer), = last
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.Linear(layer.in_features, classes, bias=layer.bias is not None)
    else:
        new = nn.Conv2d(layer.in_channels, classes, layer.kernel_size)  # SqueezeNet classifies by convolution
    parent, _, attribute = name.rpartition(".")
    setattr(net.get_submodule(parent), attribute, new)
    return name


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


# --- weights ---------------------------------------------------------------------------------------------------------

def load_weights(net: nn.Module, state: Mapping[str, torch.Tensor], head: str, spec: Model) -> None:
    """Load every tensor but those of a head of another size; raises ModelError when anything else does not fit."""
    own = net.state_dict()
    in_head = {key for key in own if head and key.startswith(f"{head}.")}
    new_head = {key for key in in_head if key in state and state[key].shape != own[key].shape}
    given = {key: value for key, value in state.items() if key not in new_head and "aux" not in key.lower()}
    fitting = {key for key, value in given.items() if key in own and own[key].shape == value.shape}
    # Counters of batch normalisation are absent from the files of some libraries and do not matter.
    missing = [k for k in own if k not in fitting and k not in in_head and not k.endswith("num_batches_tracked")]
    extra = [k for k in given if k not in fitting]
    if missing or extra:
        example = f"{missing[0]} is missing" if missing else f"{extra[0]} does not fit"
        raise ModelError(f"model.weights: {spec.weights}",
                         f"are of another architecture than {spec.name}: {len(fitting)} of {len(own)} tensors fit, "
                         f"{example}", "give weights of this network, or weights: none")
    net.load_state_dict(given, strict=False)


def _state_dict(spec: Model) -> Mapping[str, torch.Tensor]:
    path = weights_file(spec)
    if path is not None:
        with local_copy(path) as copy:
            return read_state_dict(copy, spec.weights)
    if ":" in spec.name:
        raise ModelError(f"model.weights: {spec.weights}", f"{spec.name} has no weights by name",
                         "give a file, or none")
    return _torchvision_weights(spec)


def read_state_dict(path: Path, shown: str | None = None) -> Mapping[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a torch file read without running code; raises ModelError."""
    where = f"model.weights: {shown or path}"
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise their own kinds for a torn or foreign file
        raise ModelError(where, f"cannot be read ({in_words(error)})",
                         "give a .safetensors file or a plain state dict") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(where, "is not a state dict", "save it with torch.save(model.state_dict(), file)")
    return state


def _torchvision_weights(spec: Model) -> Mapping[str, torch.Tensor]:
    from torchvision import models

    known = models.get_model_weights(spec.name)
    try:
        weights = known[spec.weights]
    except KeyError:
        names = ["DEFAULT", *(w.name for w in known)]
        raise ModelError(f"model.weights: {spec.weights}", f"{spec.name} has none of that name",
                         f"give {', '.join(names)}, a file, or none") from None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with locked(cached.with_name(f"{cached.name}.lock")), _time_limit():  # one worker fetches, the others find it
            return weights.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ModelError(f"model.weights: {spec.weights}", f"cannot be downloaded ({error})",
                         f"put {cached.name} into {cached.parent}, give a file, or weights: none") from None


@contextmanager
def _time_limit() -> Iterator[None]:
    """Let no download wait for ever for a server that has gone silent; torch sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_SILENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
