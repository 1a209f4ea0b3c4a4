"""A run that asks an autoscaler for the nodes it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysft.cluster.messages import decode, messages, summarize
from tests.test_cluster import environment, make_job

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.long
def test_run_waits_for_autoscaled_nodes(no_ray, tmp_path, monkeypatch):
    """Two raylets on this machine; the second, with the CPUs, comes when the run has asked for
    it.
    """
    from ray.cluster_utils import Cluster

    for name, value in environment(HOME=str(tmp_path), RAY_AUTH_MODE="disabled").items():
        monkeypatch.setenv(name, value)
    (
        tmp_path / "ray_bootstrap_config.yaml"
    ).touch()  # what `ray up` leaves on a head with an autoscaler
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        run = subprocess.Popen(
            [sys.executable, "-m", "raysft.entrypoints.train", str(make_job(tmp_path)), "zero"],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"RAY_ADDRESS": machines.address, "PYTHONPATH": str(REPOSITORY)},
        )
        assert run.stdout is not None
        first = decode(run.stdout.readline())
        assert first is not None
        assert first.payload["text"] == (
            "a trial of 2 workers needs 2 CPUs, the cluster has 0 CPUs and 0 GPUs; "
            "waiting up to 15 minutes for more nodes"
        )
        machines.add_node(num_cpus=2)
        rest, _ = run.communicate(timeout=180)
    finally:
        machines.shutdown()
    seen = summarize(messages(rest))
    assert (seen.status, seen.errors) == ("done", [])
    assert seen.results is not None
