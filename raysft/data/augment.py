"""Random changes to whole batches of training images, on the device of the worker.

The random numbers are drawn for the global batch from (seed, epoch, batch) and then cut to the
worker's share, so an image is changed the same way however many workers there are. Mixup and cutmix
are the exception: an image is mixed with its neighbour in the worker's share. RandAugment and
TrivialAugment are torchvision's; they draw one change a call and not one an image, so they are
called image by image.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional

from raysft.job.recipe import Augment

Key = tuple[int, int, int]

# Keeps these draws apart from each other and from the order of the epoch, which has the same seed.
_STREAM, _COLOR, _AUTO, _ERASE, _MIX = 7, 8, 9, 10, 11
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
_ERASED_SHARE = (0.02, 1 / 3)  # of the area of an image
_ERASED_LOG_RATIO = (np.log(0.3), np.log(1 / 0.3))  # in logs, so that 1:3 is as likely as 3:1


def augment(images: torch.Tensor, recipe: Augment, key: Key, first: int, size: int) -> torch.Tensor:
    """Change a worker's share of a batch of pixels.

    images: (n, height, width, 3) uint8; key: (seed, epoch, batch number); the share starts at row
    `first` of the `size` rows of the global batch. Returns images of the same shape and type. The
    crop is the classic one of He et al. 2015 (arXiv 1512.03385): pad with zeros, cut the size back
    out at a random place.
    """
    rng = np.random.default_rng([*key, _STREAM])
    mine = slice(first, first + len(images))
    if recipe.crop_padding:
        offsets = rng.integers(0, 2 * recipe.crop_padding + 1, (2, size))[:, mine]
        images = _crop(images, recipe.crop_padding, torch.from_numpy(offsets).to(images.device))
    if recipe.flip:
        flipped = torch.from_numpy(rng.random(size)[mine] < 0.5).to(images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(2), images)
    # Later kinds of change draw from streams of their own, so that asking for one of them leaves
    # the crops and flips of a seed as they were.
    if recipe.auto != "none":
        seeds = np.random.default_rng([*key, _AUTO]).integers(0, 2**31, size)[mine]
        images = _by_policy(images, recipe.auto, seeds.tolist())
    if recipe.color_jitter:
        draws = np.random.default_rng([*key, _COLOR]).uniform(-1, 1, (3, size))[:, mine]
        factors = draws * recipe.color_jitter + 1
        images = _jitter(images, torch.from_numpy(factors).to(images.device, torch.float32))
    return images


def _crop(images: torch.Tensor, padding: int, offsets: torch.Tensor) -> torch.Tensor:
    n, height, width, _ = images.shape
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    # All places at once, (n, 2p+1, 2p+1, 3, height, width): a view, which takes no memory.
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)
    rows = torch.arange(n, device=images.device)
    cropped = windows[rows, offsets[0], offsets[1]]
    return cropped.permute(0, 2, 3, 1)


def _by_policy(images: torch.Tensor, name: str, seeds: list[int]) -> torch.Tensor:
    """RandAugment (arXiv 1909.13719) or TrivialAugment (arXiv 2103.10158), with their defaults."""
    from torchvision.transforms import v2

    policy = v2.RandAugment() if name == "randaugment" else v2.TrivialAugmentWide()
    changed = []
    # torchvision draws from torch's global generator, which belongs to the training (dropout).
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images.permute(0, 3, 1, 2), seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(policy(image.contiguous()))
    return torch.stack(changed).permute(0, 2, 3, 1)


def _jitter(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast and saturation of each image times its three factors, in this order."""
    brightness, contrast, saturation = factors[:, :, None, None, None]
    grey = torch.tensor(_GREY, device=images.device)
    pixels: torch.Tensor = (images.float() * brightness).clamp_(0, 255)
    # Contrast moves values away from the mean grey of the image, saturation from the grey of the
    # pixel.
    mean = (pixels @ grey).mean((1, 2))[:, None, None, None]
    pixels = (mean + (pixels - mean) * contrast).clamp_(0, 255)
    luma = (pixels @ grey)[..., None]
    pixels = (luma + (pixels - luma) * saturation).clamp_(0, 255)
    return pixels.round_().to(torch.uint8)


def erase(
    images: torch.Tensor, probability: float, key: Key, first: int, size: int
) -> torch.Tensor:
    """Set a rectangle of some images to the mean, in place.

    images: (n, 3, height, width), normalised. Random erasing after Zhong et al. 2017 (arXiv
    1708.04896): 2 to 33 % of the area, sides of 0.3 to 3.3 to one.
    """
    if not probability:
        return images
    height, width = images.shape[2:]
    rng = np.random.default_rng([*key, _ERASE])
    bounds = _rectangles(rng, probability, height, width, size)[:, first : first + len(images)]
    top, bottom, left, right, chosen = torch.from_numpy(bounds).to(images.device)[:, :, None]
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    # One mask for the whole batch: a loop over images would launch some kernels for each.
    rows = (y >= top) & (y < bottom) & (chosen > 0)
    columns = (x >= left) & (x < right)
    erased = rows[:, :, None] & columns[:, None, :]
    return images.masked_fill_(erased[:, None], 0)  # 0 is the mean of normalised images


def _rectangles(
    rng: np.random.Generator, probability: float, height: int, width: int, size: int
) -> np.ndarray:
    """(5, size): top, bottom, left, right of a rectangle in each image, and whether it is used."""
    area = rng.uniform(*_ERASED_SHARE, size) * height * width
    ratio = np.exp(rng.uniform(*_ERASED_LOG_RATIO, size))
    tall = np.clip(np.sqrt(area * ratio).round(), 1, height)
    wide = np.clip(np.sqrt(area / ratio).round(), 1, width)
    top = np.floor(rng.random(size) * (height - tall + 1))
    left = np.floor(rng.random(size) * (width - wide + 1))
    chosen = rng.random(size) < probability
    return np.stack([top, top + tall, left, left + wide, chosen])


def mix(
    images: torch.Tensor, labels: torch.Tensor, recipe: Augment, classes: int, key: Key
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each image with its neighbour by mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899).

    images: (n, 3, height, width); labels: (n,) int64. Returns images of the same shape and labels
    (n, classes) float32, or both as they are where the recipe has neither. Both are torchvision's.
    """
    if not recipe.mixup and not recipe.cutmix:
        return images, labels
    from torchvision.transforms import v2

    seed, chance = np.random.default_rng([*key, _MIX]).integers(0, 2**31, 2)
    # Of a recipe with both, each batch gets one of them.
    use_mixup = bool(recipe.mixup) and (not recipe.cutmix or chance % 2 == 0)
    if use_mixup:
        transform = v2.MixUp(alpha=recipe.mixup, num_classes=classes)
    else:
        transform = v2.CutMix(alpha=recipe.cutmix, num_classes=classes)
    # Of the CPU alone: dropout draws on the GPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        mixed, targets = transform(images, labels)
    return mixed, targets
