"""The files in cluster/: what Ray's launcher and a cloud make of them."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
REGION = "us-west-2"


def load(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / "cluster" / name).read_text())


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_rays_schema_accepts_the_file(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_nodes_need_token_and_dashboard_is_local(name):
    tree = load(name)
    assert "~/.ray/auth_token" in tree["file_mounts"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in tree[key][-1]
    assert "--dashboard-host=127.0.0.1" in tree["head_start_ray_commands"][-1]


def test_autoscaler_accepts_kuberay_yaml():
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )
    from ray.autoscaler._private.util import validate_config

    (cluster,) = [
        d
        for d in yaml.safe_load_all((REPOSITORY / "cluster/kuberay.yaml").read_text())
        if d and d["kind"] == "RayCluster"
    ]
    cluster["metadata"].setdefault("namespace", "default")
    derived = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(derived)
    gpus = [t["resources"].get("GPU", 0) for t in derived["available_node_types"].values()]
    assert sorted(gpus) == [0, 1]


def test_kuberay_has_token_autoscaler_and_gpu_group():
    (cluster,) = [
        d
        for d in yaml.safe_load_all((REPOSITORY / "cluster/kuberay.yaml").read_text())
        if d and d["kind"] == "RayCluster"
    ]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] == 0
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"]


@pytest.fixture
def aws(monkeypatch):
    """EC2 and IAM of a local server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    for profile in ("raysft-head", "raysft-worker"):
        boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
    yield boto3.client("ec2", region_name=REGION)
    server.stop()


@pytest.mark.slow
def test_ray_up_requests_what_gpu_yaml_says(aws, tmp_path):
    tree = load("gpu.yaml")
    vpc = aws.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = aws.create_security_group(GroupName="raysft", Description="raysft", VpcId=vpc)[
        "GroupId"
    ]
    image = aws.describe_images()["Images"][0]["ImageId"]
    text = (REPOSITORY / "cluster/gpu.yaml").read_text()
    edited = {
        "ami-EDIT": image,
        "sg-EDIT": group,
        "arn:aws:iam::ACCOUNT:": "arn:aws:iam::123456789012:",
    }
    for before, after in edited.items():
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "gpu.yaml").write_text(text)
    (tmp_path / "home/.ray").mkdir(parents=True)
    (tmp_path / "home/.ray/auth_token").write_text("c" * 64)
    env = os.environ | {"HOME": str(tmp_path / "home")}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [RAY, "up", "--yes", "--no-config-cache", str(tmp_path / "gpu.yaml")],
            cwd=REPOSITORY,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        head = _first_instance(aws, process, tmp_path / "log")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # it would now wait for an SSH that is not there
        process.wait(20)
    wanted = tree["available_node_types"]["head"]["node_config"]
    assert head["InstanceType"] == wanted["InstanceType"]
    assert head["ImageId"] == image
    assert [g["GroupId"] for g in head["SecurityGroups"]] == [group]
    assert (
        head["IamInstanceProfile"]["Arn"]
        == "arn:aws:iam::123456789012:instance-profile/raysft-head"
    )
    assert head.get("InstanceLifecycle") != "spot"
    tags = {t["Key"]: t["Value"] for t in head["Tags"]}
    assert tags["ray-cluster-name"] == "raysft-gpu"
    assert tags["ray-node-type"] == "head"
    ingress = aws.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    assert ingress == []  # the launcher opened nothing


def _first_instance(aws, process: subprocess.Popen, log: Path) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = [i for r in aws.describe_instances()["Reservations"] for i in r["Instances"]]
        if found and "IamInstanceProfile" in found[0]:  # which it is given after it has begun
            return found[0]
        time.sleep(0.5)
    pytest.fail(log.read_text()[-2000:])


def test_spot_workers_come_before_on_demand_ones():
    types = load("gpu.yaml")["available_node_types"]
    spot, ondemand = types["gpu.spot"], types["gpu.ondemand"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in ondemand["node_config"]
    assert spot["min_workers"] == ondemand["min_workers"] == 0
    assert spot["priority"] > ondemand["priority"]
