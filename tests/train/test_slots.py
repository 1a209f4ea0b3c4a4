"""What a slot starts besides its workers."""

import pytest

from raysft.job.plan import Slot
from raysft.job.spec import Resources
from raysft.train.slots import SlotThread


@pytest.mark.usefixtures("ray_local")
def test_slot_starts_no_unneeded_callbacks(tmp_path):
    trainer = SlotThread(0, Slot(teams=1, workers=1), Resources(), str(tmp_path), 0, {})._trainer()
    started = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert not started & {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert started & {"BackendSetupCallback", "AcceleratorSetupCallback"}
