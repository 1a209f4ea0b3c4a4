"""Augmentation: what it may do to an image, and that workers do not change it."""

import numpy as np
import pytest
import torch

from raysft.data.augment import augment, erase, mix
from raysft.data.pixels import normalise, resize, scale_and_shift
from raysft.job.recipe import Augment

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (12, 6, 6, 3), dtype=np.uint8))


def test_without_augmentation_images_stay_as_they_are():
    assert augment(IMAGES, Augment(flip=False, crop_padding=0), (0, 0, 0), 0, 12) is IMAGES


def test_a_flip_mirrors_some_images_left_to_right():
    out = augment(IMAGES, Augment(flip=True, crop_padding=0), (0, 0, 0), 0, 12)
    same = [torch.equal(a, b) for a, b in zip(out, IMAGES, strict=True)]
    mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(out, IMAGES, strict=True)]
    assert 0 < sum(mirrored) < 12
    assert all(s != m for s, m in zip(same, mirrored, strict=True))


def test_crop_is_a_window_of_padded_image():
    out = augment(IMAGES, Augment(flip=False, crop_padding=2), (0, 1, 2), 0, 12)
    for image, cropped in zip(IMAGES, out, strict=True):
        padded = torch.zeros(10, 10, 3, dtype=torch.uint8)
        padded[2:8, 2:8] = image
        windows = [padded[y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
        assert any(torch.equal(cropped, w) for w in windows)
    assert len({tuple(o.flatten().tolist()) for o in out}) == 12
    assert (out == 0).any()


def test_shares_are_augmented_as_in_whole_batch():
    whole = augment(IMAGES, Augment(), (3, 1, 4), 0, 12)
    parts = [
        augment(IMAGES[s], Augment(), (3, 1, 4), s.start, 12) for s in (slice(0, 5), slice(5, 12))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augment(IMAGES, Augment(), (3, 1, 5), 0, 12), whole)


def test_normalising_gives_the_textbook_values():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    out = normalise(IMAGES, *scale_and_shift(mean, std))
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    expected = (IMAGES.permute(0, 3, 1, 2) / 255 - m) / s
    assert torch.allclose(out, expected, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_jitter_changes_each_image_by_its_own_factors():
    grey = torch.full((12, 6, 6, 3), 100, dtype=torch.uint8)
    out = augment(
        grey, Augment(flip=False, crop_padding=0, color_jitter=0.5), (0, 0, 0), 0, 12
    ).float()
    levels = out.mean((1, 2, 3))
    assert (
        out.amax((1, 2, 3)) - out.amin((1, 2, 3)) <= 1
    ).all()  # of one grey only the brightness can change
    assert len(levels.unique()) > 6
    assert ((levels >= 50) & (levels <= 150)).all()
    coloured = augment(
        IMAGES, Augment(flip=False, crop_padding=0, color_jitter=0.5), (0, 0, 0), 0, 12
    )
    assert coloured.dtype == torch.uint8
    assert not any(torch.equal(a, b) for a, b in zip(coloured, IMAGES, strict=True))


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_a_policy_draws_for_each_image(policy):
    same = IMAGES[:1].repeat(12, 1, 1, 1)
    out = augment(same, Augment(flip=False, crop_padding=0, auto=policy), (0, 0, 0), 0, 12)
    assert out.shape == same.shape
    assert out.dtype == torch.uint8
    assert len({tuple(image.flatten().tolist()) for image in out}) > 4  # some draw to do nothing


@pytest.mark.parametrize(
    "recipe", [Augment(color_jitter=0.4), Augment(auto="trivialaugment")], ids=str
)
def test_colours_and_policies_are_independent_of_share(recipe):
    whole = augment(IMAGES, recipe, (3, 1, 4), 0, 12)
    parts = [
        augment(IMAGES[s], recipe, (3, 1, 4), s.start, 12) for s in (slice(0, 5), slice(5, 12))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_drawing_leaves_the_networks_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    augment(IMAGES, Augment(auto="randaugment"), (0, 0, 0), 0, 12)
    mix(torch.ones(4, 3, 6, 6), torch.arange(4), Augment(mixup=0.5), 4, (0, 0, 0))
    assert torch.equal(torch.rand(3), expected)


def test_erasing_sets_one_rectangle_to_the_mean():
    ones = torch.ones(200, 3, 20, 20)
    out = erase(ones.clone(), 0.5, (0, 0, 0), 0, 200)
    erased = (out == 0).all(1)
    touched = erased.flatten(1).any(1)
    assert 70 < touched.sum() < 130
    for mask in erased[touched]:
        ys, xs = mask.nonzero().T
        assert mask.sum() == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
        assert 0.01 < mask.float().mean() < 0.45
    parts = [
        erase(ones[:120].clone(), 0.5, (0, 0, 0), 0, 200),
        erase(ones[120:].clone(), 0.5, (0, 0, 0), 120, 200),
    ]
    assert torch.equal(torch.cat(parts), out)
    assert torch.equal(erase(ones.clone(), 0.0, (0, 0, 0), 0, 200), ones)


def test_mixup_mixes_images_and_labels_alike():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 6, 6).contiguous()
    mixed, labels = mix(images, torch.arange(4), Augment(mixup=1.0), 4, (0, 0, 0))
    assert labels.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert ((labels > 0).sum(1) == 2).all()
    assert torch.allclose(mixed[:, 0, 0, 0], labels @ torch.arange(4.0), atol=1e-5)


def test_cutmix_pastes_a_share_that_the_labels_tell():
    images = torch.arange(1.0, 5.0)[:, None, None, None].expand(4, 3, 20, 20).contiguous()
    for batch in range(5):
        mixed, labels = mix(images, torch.arange(4), Augment(cutmix=1.0), 4, (0, 0, batch))
        own = torch.stack([(mixed[i, 0] == i + 1).float().mean() for i in range(4)])
        assert torch.allclose(labels[torch.arange(4), torch.arange(4)], own, atol=1e-5)


def test_with_both_each_batch_takes_one_by_chance():
    images = torch.arange(1.0, 5.0)[:, None, None, None].expand(4, 3, 20, 20).contiguous()
    whole = [
        torch.equal(m, m.round())
        for m in (
            mix(images, torch.arange(4), Augment(mixup=1.0, cutmix=1.0), 4, (0, 0, batch))[0]
            for batch in range(30)
        )
    ]
    assert 5 < sum(whole) < 25


def test_without_mixing_labels_stay_numbers():
    images, labels = torch.ones(4, 3, 6, 6), torch.arange(4)
    assert mix(images, labels, Augment(), 4, (0, 0, 0)) == (images, labels)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_batch_is_resized_as_torchvision_does(interpolation):
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize as of_torchvision

    images = torch.rand(2, 3, 8, 8)
    for size in (4, 12):
        expected = of_torchvision(
            images, [size, size], InterpolationMode(interpolation), antialias=True
        )
        assert torch.allclose(resize(images, size, interpolation), expected, atol=1e-5)
    assert resize(images, 8, interpolation) is images
    assert resize(images, None, interpolation) is images


def test_every_change_is_random_even_added_later():
    class Later(Augment):
        rotation: float = 0.0
        policy: str = "none"
        blur: bool = True

    off = dict.fromkeys(Augment.model_fields, 0) | {"flip": False, "auto": "none"}
    assert not Augment.model_validate(off).is_random
    on = {
        name: "randaugment" if name == "auto" else True if name == "flip" else 1
        for name in Augment.model_fields
    }
    for name, value in on.items():
        assert Augment.model_validate(off | {name: value}).is_random, name
    assert Later.model_validate(off).active == {"blur": True}
    assert not Later.model_validate(off | {"blur": False}).is_random
    assert Later.model_validate(off | {"blur": False, "rotation": 15.0}).is_random
    assert Later.model_validate(off | {"blur": False, "policy": "new"}).is_random
