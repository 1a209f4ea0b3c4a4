"""Slots that the runs of a test module share."""

from collections.abc import Iterator

import pytest

from raysft.run.slot_pool import SlotPool


@pytest.fixture(scope="module")
def slot_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlotPool]:
    """Workers that are kept from one run to the next, where it has the same shape."""
    with SlotPool(tmp_path_factory.mktemp("slots")) as pool:
        yield pool
