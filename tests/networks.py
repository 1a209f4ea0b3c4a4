"""Networks that go wrong on purpose."""

import torch
from torch import nn

from tests.tiny import tiny


class Unbounded(nn.Module):
    """Overflows when its weights grow."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = tiny(classes)

    def forward(self, images):
        return self.net(images) ** 9


def unbounded(num_classes: int) -> nn.Module:
    return Unbounded(num_classes)


class FailsOnRank1(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = tiny(classes)

    def forward(self, images):
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            raise RuntimeError("boom on rank 1")
        return self.net(images)


def fails_on_rank_1(num_classes: int) -> nn.Module:
    return FailsOnRank1(num_classes)


class Failing(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = tiny(classes)

    def forward(self, images):
        if len(images) > 2:  # what is tried beforehand
            raise RuntimeError("not today")
        return self.net(images)


def failing(num_classes: int) -> nn.Module:
    return Failing(num_classes)


def raises(num_classes: int) -> nn.Module:
    raise RuntimeError("no weights today")


class ShortOfMemory(nn.Module):
    """Has memory for four images in training."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = tiny(classes)

    def forward(self, images):
        if self.training and len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return self.net(images)


def short_of_memory(num_classes: int) -> nn.Module:
    return ShortOfMemory(num_classes)


class OnlyLookedAt(nn.Module):
    """Can be used, but not trained as a whole."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = tiny(classes)

    def forward(self, images):
        if torch.is_grad_enabled():
            raise RuntimeError("trained as a whole")
        return self.net(images)


def only_looked_at(num_classes: int) -> nn.Module:
    return OnlyLookedAt(num_classes)


def for_large_images(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 40), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, num_classes)
    )
