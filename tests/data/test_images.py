"""Image files to arrays."""

import numpy as np
from PIL import Image, ImageOps

from raysft.data.images import fit


def test_images_are_scaled_to_cover_and_cropped_around_their_centre():
    rng = np.random.default_rng(0)
    for _ in range(60):
        wide, tall, width, height = (int(side) for side in rng.choice((1, 7, 8, 31, 64, 100, 225), 4))
        image = Image.fromarray(rng.integers(0, 256, (tall, wide, 3), np.uint8))
        found = fit(image, height, width)
        assert (found.shape, found.dtype) == ((height, width, 3), np.uint8)
        # Pillow's versions differ in the order of rows and columns, which are rounded in between.
        expected = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_rows_are_resized_before_columns():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 47, 3), np.uint8))
    by_hand = image.resize((32, 300), Image.Resampling.BILINEAR).resize(
        (32, 32), Image.Resampling.BILINEAR, (0, 126.5, 32, 173.5))
    assert np.array_equal(fit(image, 32, 32), by_hand)
