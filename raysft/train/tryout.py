"""Two examples through a network before anything is trained: what it cannot take is known then, and
said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch.func import functional_call

from raysft.errors import ModelError, describe_error

EXAMPLES = 2
# Usual sizes of images, tried to tell which ones a network takes that does not take those it would
# get.
SIZES = (32, 48, 64, 75, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)


def try_network(net: nn.Module, name: str, classes: int, height: int, width: int) -> None:
    """Raise ModelError unless `net` makes (2, classes) outputs of two images, in training and in
    evaluation.

    Neither `net` nor any random number generator is changed.
    """
    try:
        outputs = _outputs(net, height, width)
    except Exception as error:  # whatever a network does with images that it cannot take
        if "process group has not been initialized" in str(error):
            return  # it talks to other workers, who are not there yet: its first step will tell
        where = f"model.name: {name}"
        sizes = [size for size in SIZES if _takes(net, size)]
        if not sizes:
            raise ModelError(
                where,
                f"fails on two images of {height} × {width} pixels ({describe_error(error)})",
                "give a network that takes (n, 3, height, width) float32",
            ) from None
        raise ModelError(
            where,
            f"cannot take images of {height} × {width} pixels ({describe_error(error)})",
            f"set model.image_size; of the usual sizes it takes {_listed(sizes)}",
        ) from None
    shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if shape != (EXAMPLES, classes):
        raise ModelError(
            f"model.name: {name}",
            f"makes {shape} of two images, where ({EXAMPLES}, {classes}) is needed",
            "give a network that makes a number for each class",
        )


def takes_one(net: nn.Module, shape: Sequence[int]) -> bool:
    """Whether `net`, in the mode it is in, makes something of one input of `shape`; it is not
    changed.

    Batch normalisation in training does where it has several values a channel of it, as of an image
    that is not small.
    """
    for device in ("meta", "cpu"):
        try:
            with _unchanged(net), torch.no_grad():
                functional_call(
                    _Plain(net),
                    {f"net.{name}": value for name, value in _copies(net, device).items()},
                    (torch.zeros(1, *shape, device=device),),
                )
            return True
        except Exception as error:  # whatever a network does with what it cannot take
            if "Expected more than 1 value per channel" in str(
                error
            ):  # no values would change that
                return False
    return False


class _Plain(nn.Module):
    """A network as it is before it is compiled."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.training = net.training
        self.net = net

    def forward(self, inputs: torch.Tensor) -> object:
        return self.net.forward(inputs)


def _takes(net: nn.Module, size: int) -> bool:
    with suppress(Exception):  # as above
        _forward(net, size, size, "meta")
        return True
    return False


def _listed(sizes: list[int]) -> str:
    return (
        " ".join(map(str, sizes[:1]))
        if len(sizes) == 1
        else f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
    )


def _outputs(net: nn.Module, height: int, width: int) -> object:
    """What `net` makes of two images: shapes alone, which costs next to nothing, or where that
    cannot be, in full.
    """
    try:
        return _forward(net, height, width, "meta")
    except Exception:  # some make tensors of their own on the CPU, or look at values
        return _forward(net, height, width, "cpu")


def _forward(net: nn.Module, height: int, width: int, device: str) -> object:
    """The outputs of evaluation, after those of training, of a network whose tensors are copies on
    `device`.
    """
    images = torch.zeros(EXAMPLES, 3, height, width, device=device)
    with _unchanged(net), torch.no_grad():
        for training in (True, False):
            net.train(training)
            outputs = functional_call(net, _copies(net, device), (images,))
    return outputs


def _copies(net: nn.Module, device: str) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().to(device, copy=True)
        for name, value in (*net.named_parameters(), *net.named_buffers())
    }


@contextmanager
def _unchanged(net: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
