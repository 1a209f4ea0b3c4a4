"""A network by its name, with a new head and the weights a job asks for."""

from __future__ import annotations

import difflib
import importlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from raysft.errors import ModelError, describe_error
from raysft.job.spec import Model
from raysft.storage import locked
from raysft.train import weights
from raysft.train.architecture import TIMM, torchvision_arguments
from raysft.train.unwrap import Found, is_beside
from raysft.train.weights import ExpectedImages

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Loaded:
    """Which tensors of a network came from its weights."""

    loaded: int
    new: tuple[str, ...]
    """Drawn at random: the head."""
    unfit: tuple[str, ...]
    """Tensors of the weights that were left out."""
    total: int
    """Tensors of the network."""
    source: str = ""
    """What was unwrapped to get at the weights, in words."""


@dataclass
class Network:
    """A network ready to be trained."""

    net: nn.Module
    head: str
    """Name of the last layer, which has one output a class."""
    images: ExpectedImages | None
    """How its weights want their images; None where nothing says so."""
    loaded: Loaded | None
    """What came from pretrained weights; None without any."""


def build_network(spec: Model, classes: int, seed: int) -> Network:
    """The network of `spec` with a new head of `classes` outputs, its new tensors drawn from
    `seed`.

    Raises ModelError for an unknown name, weights that are not there, cannot be fetched, or belong
    to another network.
    """
    torch.manual_seed(seed)
    if spec.name.startswith(TIMM):
        return _of_timm(spec, classes)
    if ":" in spec.name:
        return _of_factory(spec, classes)
    return _of_torchvision(spec, classes)


def create_network(name: str, classes: int, image_size: int | None = None) -> nn.Module:
    """The network of a delivered model, before its weights are loaded; raises ModelError."""
    try:
        spec = Model(name=name, weights="none", image_size=image_size)
    except ValueError:
        raise ModelError(
            f"{name!r:.80}",
            f"is no network for images of size {image_size!r:.80}",
            "restore the model.json",
        ) from None
    return build_network(spec, classes, seed=0).net


# --- architectures -----------------------------------------------------------------------------


def _of_factory(spec: Model, classes: int) -> Network:
    net = _from_factory(spec.name, classes)
    layers = [name for name, m in net.named_modules() if _outputs(m) is not None]
    head = layers[-1] if layers else ""
    if spec.weights == "none":
        return Network(net, head, None, None)
    file = weights.fetch_weights_file(spec)
    if file is None:
        raise ModelError(
            f"model.weights: {spec.weights}",
            f"{spec.name} has no weights by name",
            "give a file, or none",
        )
    loaded = load_weights(net, weights.read_fetched(file, net.state_dict(), spec), head, spec)
    return Network(net, head, weights.delivered_images(spec), loaded)


def _from_factory(name: str, classes: int) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the module does when it is imported
        raise ModelError(
            f"model.name: {name}",
            f"cannot be imported ({describe_error(error)})",
            "give package.module:factory, importable where raysft runs",
        ) from None
    try:
        net = factory(num_classes=classes)
    except Exception as error:  # whatever the factory does
        raise ModelError(
            f"model.name: {name}",
            f"cannot make a network ({describe_error(error)})",
            "it is called as factory(num_classes=N)",
        ) from None
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"model.name: {name}", f"made a {type(net).__name__}, not a torch.nn.Module"
        )
    return net


def _of_torchvision(spec: Model, classes: int) -> Network:
    net = _from_torchvision(spec)
    head = replace_head(net, classes)
    if spec.weights == "none":
        return Network(net, head, None, None)
    file = weights.fetch_weights_file(spec)
    images = weights.delivered_images(spec) or weights.torchvision_images(spec.name, spec.weights)
    path = file or weights.torchvision_file(spec.name, spec.weights)
    found = weights.read_fetched(path, net.state_dict(), spec)
    sized = replace(found, state=_for_its_size(net, found.state))
    return Network(net, head, images, load_weights(net, sized, head, spec))


def _for_its_size(net: nn.Module, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The weights of a vision transformer with its positions stretched to the image size that `net`
    was made for.
    """
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    place = "encoder.pos_embedding"
    if not isinstance(net, VisionTransformer) or place not in state:
        return state
    # heads of another number of classes are left out by load_weights, which says so
    resized: Mapping[str, torch.Tensor] = interpolate_embeddings(
        net.image_size, net.patch_size, OrderedDict(state), reset_heads=False
    )
    return resized


def _from_torchvision(spec: Model) -> nn.Module:
    from torchvision import models

    name = spec.name
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        others = "timm:NAME, or package.module:factory"
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}, {others}"
        raise ModelError(f"model.name: {name}", "is not a torchvision classifier", hint)
    try:
        arguments = torchvision_arguments(name, spec.image_size)
        net: nn.Module = models.get_model(name, weights=None, **arguments)
    except (
        AssertionError,
        ValueError,
    ) as error:  # of a transformer whose patches do not fill the image
        raise ModelError(
            f"model.image_size: {spec.image_size}",
            f"{name} cannot be made for it ({describe_error(error)})",
            "give another, such as 224",
        ) from None
    return net


def replace_head(net: nn.Module, classes: int) -> str:
    """Put a new last layer of `classes` outputs in place of the one of 1,000; returns its name."""
    named: list[tuple[str, nn.Module]] = list(net.named_modules())
    last = [(name, m) for name, m in named if _outputs(m) == _IMAGENET_CLASSES][-1:]
    if not last:
        raise ModelError(type(net).__name__, "has no layer of 1,000 classes to replace")
    name, layer = last[0]
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.Linear(layer.in_features, classes, bias=layer.bias is not None)
    else:
        assert isinstance(layer, nn.Conv2d)  # as SqueezeNet classifies
        kernel = (layer.kernel_size[0], layer.kernel_size[1])
        new = nn.Conv2d(layer.in_channels, classes, kernel)
    parent, _, attribute = name.rpartition(".")
    setattr(net.get_submodule(parent), attribute, new)
    return name


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _of_timm(spec: Model, classes: int) -> Network:
    """A network of the library timm; by a weights name it fetches its own, tagged ones as
    timm:NAME.TAG.
    """
    try:
        import timm
    except ImportError:
        raise ModelError(
            f"model.name: {spec.name}", "needs the library timm", "pip install 'raysft[timm]'"
        ) from None
    name = spec.name.removeprefix(TIMM)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise ModelError(
            f"model.name: {spec.name}",
            "is not a network of timm",
            f"did you mean {TIMM}{close[0]}?" if close else "see timm.list_models()",
        )
    file = weights.fetch_weights_file(spec) if spec.weights != "none" else None
    named = file is None and spec.weights != "none"
    if named and spec.weights != "DEFAULT":
        raise ModelError(
            f"model.weights: {spec.weights}",
            f"{spec.name} has none of that name",
            "give DEFAULT, a file, or none; other weights of timm are part of the name, "
            "timm:NAME.TAG",
        )
    net = _make_timm(timm, name, classes, named, spec)
    how = net.pretrained_cfg
    head = how["classifier"]
    if not isinstance(head, str):
        raise ModelError(
            f"model.name: {spec.name}",
            f"has {len(head) if head else 'no'} heads",
            "give a network with one",
        )
    images = ExpectedImages(tuple(how["mean"]), tuple(how["std"]), how["interpolation"])
    if file is not None:
        loaded = load_weights(net, weights.read_fetched(file, net.state_dict(), spec), head, spec)
        return Network(net, head, weights.delivered_images(spec) or images, loaded)
    new = tuple(key for key in net.state_dict() if key.startswith(f"{head}."))
    if named:
        begin_small(net.get_submodule(head))
    total = len(net.state_dict())
    if not named:
        return Network(net, head, None, None)
    return Network(net, head, images, Loaded(total - len(new), new, new, total))


def _make_timm(timm: Any, name: str, classes: int, pretrained: bool, spec: Model) -> Any:
    lock = weights._cache() / f"raysft-timm-{name.replace('/', '-')}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    sizes = (
        [{"img_size": spec.image_size}, {}] if spec.image_size else [{}]
    )  # transformers want to know theirs
    with locked(lock):  # one worker fetches, the others find it
        for size in sizes:
            try:
                return timm.create_model(name, pretrained=pretrained, num_classes=classes, **size)
            except TypeError:
                if not size:
                    raise
            except Exception as error:  # the hub's client has a tree of errors of its own
                if not pretrained:
                    raise ModelError(
                        f"model.name: {spec.name}", f"cannot be made ({describe_error(error)})"
                    ) from None
                raise ModelError(
                    f"model.weights: {spec.weights}",
                    f"cannot be downloaded ({describe_error(error)})",
                    "give a file of them, or weights: none",
                ) from None
    raise AssertionError("create_model takes its arguments")


def begin_small(head: nn.Module) -> None:
    """New weights of a head on a pretrained body: from N(0, 0.01²), biases 0 (Girshick et al. 2014,
    arXiv 1311.2524).

    What libraries draw is made for training from scratch: up to ±0.3 in EfficientNets, whose first
    losses and gradients would undo what the body has learnt.
    """
    for module in head.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# --- weights -----------------------------------------------------------------------------------


def load_weights(net: nn.Module, found: Found, head: str, spec: Model) -> Loaded:
    """Load every tensor but those of another head; raises ModelError when anything else does not
    fit.
    """
    own, state = net.state_dict(), found.state
    in_head = {key for key in own if head and key.startswith(f"{head}.")}
    unfit = {key for key in in_head if key in state and state[key].shape != own[key].shape}
    # Auxiliary heads for training are left out; see raysft.train.architecture.
    auxiliary = {key for key in state if "aux" in key.lower() and key not in own}
    auxiliary |= {key for key in state if key not in own and (is_beside(key) or _below(key, head))}
    given = {key: value for key, value in state.items() if key not in unfit | auxiliary}
    fitting = {key for key, value in given.items() if key in own and own[key].shape == value.shape}
    # Counters of batch normalisation are absent from the files of some libraries and do not matter.
    missing = [
        k
        for k in own
        if k not in fitting and k not in in_head and not k.endswith("num_batches_tracked")
    ]
    extra = [k for k in given if k not in fitting]
    if missing or extra:
        example = f"{missing[0]} is missing" if missing else f"{extra[0]} does not fit"
        unwrapped = f" ({found.source})" if found.source else ""
        raise ModelError(
            f"model.weights: {spec.weights}",
            f"are of another architecture than {spec.name}: {len(fitting)} of {len(own)} tensors "
            "fit"
            f"{unwrapped}, {example}",
            "give weights of this network, or weights: none",
        )
    net.load_state_dict(given, strict=False)
    if not in_head & fitting:
        begin_small(net.get_submodule(head))
    return Loaded(
        len(fitting),
        tuple(key for key in own if key in in_head and key not in fitting),
        tuple(sorted(unfit | auxiliary)),
        len(own),
        found.source,
    )


def _below(name: str, module: str) -> bool:
    return bool(module) and name.startswith(f"{module}.")
