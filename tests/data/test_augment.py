"""Augmentation: what it may do to an image, and that workers do not change it."""

import numpy as np
import torch

from raysft.data.augment import augment, normalise, scale_and_shift
from raysft.job.spec import Augment

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (12, 6, 6, 3), dtype=np.uint8))


def test_without_augmentation_images_stay_as_they_are():
    assert augment(IMAGES, Augment(flip=False, crop_padding=0), (0, 0, 0), 0, 12) is IMAGES


def test_a_flip_mirrors_some_images_left_to_right():
    out = augment(IMAGES, Augment(flip=True, crop_padding=0), (0, 0, 0), 0, 12)
    same = [torch.equal(a, b) for a, b in zip(out, IMAGES, strict=True)]
    mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(out, IMAGES, strict=True)]
    assert 0 < sum(mirrored) < 12
    assert all(s != m for s, m in zip(same, mirrored, strict=True))


def test_a_crop_is_a_window_of_the_padded_image():
    out = augment(IMAGES, Augment(flip=False, crop_padding=2), (0, 1, 2), 0, 12)
    for image, cropped in zip(IMAGES, out, strict=True):
        padded = torch.zeros(10, 10, 3, dtype=torch.uint8)
        padded[2:8, 2:8] = image
        windows = [padded[y:y + 6, x:x + 6] for y in range(5) for x in range(5)]
        assert any(torch.equal(cropped, w) for w in windows)
    assert len({tuple(o.flatten().tolist()) for o in out}) == 12
    assert (out == 0).any()


def test_a_share_of_a_batch_is_changed_as_in_the_whole_batch():
    whole = augment(IMAGES, Augment(), (3, 1, 4), 0, 12)
    parts = [augment(IMAGES[s], Augment(), (3, 1, 4), s.start, 12) for s in (slice(0, 5), slice(5, 12))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augment(IMAGES, Augment(), (3, 1, 5), 0, 12), whole)


def test_normalising_gives_the_textbook_values():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    out = normalise(IMAGES, *scale_and_shift(mean, std))
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    expected = (IMAGES.permute(0, 3, 1, 2) / 255 - m) / s
    assert torch.allclose(out, expected, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
