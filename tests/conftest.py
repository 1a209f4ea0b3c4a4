"""One local Ray for the whole test session."""

import os

import pytest

os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")


@pytest.fixture(scope="session")
def ray_local():
    import ray

    ray.init(num_cpus=2, log_to_driver=False, configure_logging=False, include_dashboard=True)
    yield
    ray.shutdown()
