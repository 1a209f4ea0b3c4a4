"""Which tensors of a network are trained, and which layers stay as they are."""

from __future__ import annotations

from torch import nn

from raysft.errors import TrialError


def frozen_names(net: nn.Module, head: str, freeze: str | list[str]) -> frozenset[str]:
    """Names of the parameters that a recipe leaves as they are; raises TrialError where that is
    all, or a name is none.

    freeze: none | backbone (all but the head) | prefixes of names.
    """
    names = [name for name, _ in net.named_parameters()]
    if freeze == "none":
        return frozenset()
    if freeze == "backbone":
        frozen = {name for name in names if not _below(name, head)}
    else:
        for prefix in freeze:
            if not any(name.startswith(prefix) for name in names):
                known = dict.fromkeys(name.split(".")[0] for name in names)
                raise TrialError(
                    "train.freeze",
                    f"no tensor begins with {prefix}; they begin with {', '.join(known)}",
                )
        frozen = {name for name in names if name.startswith(tuple(freeze))}
    if len(frozen) == len(names):
        raise TrialError("train.freeze", "leaves nothing to train")
    return frozenset(frozen)


def train_only(net: nn.Module, frozen: frozenset[str]) -> None:
    """Have gradients for all parameters but the frozen ones."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)


def training_mode(net: nn.Module, head: str, head_alone: bool) -> None:
    """Set the network to training; what is frozen works as in evaluation, batch statistics and
    dropout included.
    """
    net.train()
    if head_alone:
        net.eval()
        net.get_submodule(head).train()
        return
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _below(name: str, head: str) -> bool:
    return name == head or name.startswith(f"{head}.")
