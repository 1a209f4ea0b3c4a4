"""Images, data sets and workers that the runs of a test module share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysft.run.slot_pool import SlotPool
from tests.run.runs import Runner, SharedImages


@pytest.fixture(scope="package")
def shared_images(tmp_path_factory: pytest.TempPathFactory) -> SharedImages:
    return SharedImages.make(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def images(shared_images: SharedImages, tmp_path: Path) -> Path:
    """A copy of the folder that a test may change; its times are those of the original."""
    return Path(shutil.copytree(shared_images.folder / "images", tmp_path / "images"))


@pytest.fixture(scope="package")
def slot_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlotPool]:
    """Workers that are kept from one run to the next, where it has the same shape."""
    with SlotPool(tmp_path_factory.mktemp("slots")) as pool:
        yield pool


@pytest.fixture(scope="module")
def no_pool(slot_pool: SlotPool) -> None:
    """Before the session's Ray ends."""
    slot_pool.close()


@pytest.fixture
def go(ray_local, shared_images: SharedImages, slot_pool: SlotPool, tmp_path: Path) -> Runner:
    return Runner(tmp_path, shared_images.dataset(), shared_images.cache, slot_pool)
