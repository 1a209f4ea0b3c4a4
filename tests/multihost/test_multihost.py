"""A real cluster on three hosts of our own: `ray up cluster/onprem.yaml`, a job through SSH, a host
that dies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from raysft.records.reading import read_trials
from raysft.storage import storage_path
from tests.multihost.hosts import NETWORK, Network, missing

WHY_NOT = missing()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PORT = 8465
# A host that is silent is given up after seconds, and a slot that cannot start again as well,
# instead of minutes.
IMPATIENT = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}
ADDRESS = f"http://127.0.0.1:{PORT}"
TOKEN = "b" * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("multihost")


@pytest.fixture(scope="module")
def network(module_without_ray, folder):
    made = Network(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def hosts(network):
    return [network.add() for _ in range(3)]


@pytest.fixture(scope="module")
def environment(folder) -> dict[str, str]:
    """That of a person outside the cluster, with a home folder and a token."""
    home = folder / "person"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text(TOKEN)
    return os.environ | {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "COLUMNS": "120",
    }


@pytest.fixture(scope="module")
def s3(network):
    """An S3 server on this machine that the hosts reach, as environment variables."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=f"{NETWORK}.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{NETWORK}.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(Bucket="bucket")
        yield variables
    server.stop()


@pytest.fixture(scope="module")
def cluster_file(folder, network, hosts, s3) -> Path:
    """cluster/onprem.yaml with the hosts' addresses, and start and set-up commands for hosts
    without internet.
    """
    tree = yaml.safe_load((REPOSITORY / "cluster/onprem.yaml").read_text())
    head, *workers = hosts
    tree["provider"] |= {"head_ip": head.address, "worker_ips": [w.address for w in workers]}
    tree["auth"] = {"ssh_user": "root", "ssh_private_key": str(network.key)}
    tree["min_workers"] = tree["max_workers"] = len(workers)
    tree["setup_commands"] = tree["setup_commands"][
        :1
    ]  # the hosts share this machine's Python environment
    for key, cpus in (("head_start_ray_commands", 0), ("worker_start_ray_commands", 2)):
        commands = [
            c.replace("~/raysft-env", str(BIN.parent)).replace("$HOME/raysft-env", str(BIN.parent))
            for c in tree[key]
        ]
        limits = (
            f"--num-cpus={cpus} --object-store-memory=500000000"  # three hosts share one machine
        )
        exports = " ".join(f"{name}={value}" for name, value in {**s3, **IMPATIENT}.items())
        tree[key] = [*commands[:-1], f"export {exports}; {commands[-1]} {limits}"]
    path = folder / "onprem.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def cluster(folder, hosts, cluster_file, environment):
    """The cluster, up, with a tunnel to its dashboard."""
    done = subprocess.run(
        [BIN / "ray", "up", "--yes", "--no-config-cache", str(cluster_file)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    connect = subprocess.Popen(
        [BIN / "raysft", "connect", str(cluster_file), "--port", str(PORT)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
    )
    try:
        assert connect.stdout is not None
        assert connect.stdout.readline().startswith(f"connected: {ADDRESS}")
        deadline = time.monotonic() + 240
        while living_nodes() < 3 and time.monotonic() < deadline:
            time.sleep(0.5)
        yield ADDRESS
    finally:
        connect.terminate()
        connect.wait(20)
        shutil.rmtree("/tmp/ray/cluster-raysft.state", ignore_errors=True)


def raysft(folder: Path, environment: dict[str, str], *words: object, timeout: float = 400):
    return subprocess.run(
        [BIN / "raysft", *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def living_nodes() -> int:
    """As the dashboard's state API tells; to ask with raysft would cost the start of a job there."""
    question = urllib.request.Request(
        f"{ADDRESS}/api/v0/nodes", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(question, timeout=30) as answer:
        nodes = json.load(answer)["data"]["result"]["result"]
    return sum(node["state"] == "ALIVE" for node in nodes)


def test_cluster_file_brings_up_all_hosts_behind_a_token(cluster, folder, environment):
    assert living_nodes() == 3
    assert raysft(folder, environment, "list", "--address", cluster).returncode == 0
    (folder / "stranger").mkdir()
    done = raysft(
        folder, environment | {"HOME": str(folder / "stranger")}, "list", "--address", cluster
    )
    assert done.returncode == 2
    assert "refuses this client" in done.stderr


@pytest.mark.long
def test_the_doctor_sees_every_host_its_storage_and_the_network(cluster, folder, environment):
    done = raysft(
        folder, environment, "doctor", "--address", cluster, "--storage", folder / "runs", "--json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {f["state"] for f in found} == {"ok"}
    assert [
        len([f for f in found if f["check"] == check]) for check in ("node", "storage", "versions")
    ] == [3, 3, 3]
    (network,) = [f for f in found if f["check"] == "network"]
    assert "all-reduce of 16 MB over 3 nodes" in network["text"]


@pytest.mark.long
def test_a_storage_that_one_host_alone_sees_is_refused(cluster, folder, environment):
    done = raysft(
        folder,
        environment,
        "submit",
        REPOSITORY / "jobs/quickstart.yaml",
        "--address",
        cluster,
        "--set",
        "storage=/tmp/ray/alone",
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cannot be used from node 10.77.0.12 (and 1 more" in line


@pytest.mark.long
def test_behind_the_rule_of_gpu_yaml_a_stranger_finds_ssh_alone(cluster, network, hosts):
    head, *workers = hosts
    stranger = network.add(sshd=False)
    listening = ports_of(head)
    assert {22, 6379} <= listening
    assert open_ports(stranger, head.address, listening) >= {
        22,
        6379,
    }  # without the rule there is more to find
    inside = ", ".join(h.address for h in hosts)
    head.execute(
        "nft",
        f"""
        add table inet raysft
        add chain inet raysft input {{ type filter hook input priority 0; policy drop; }}
        add rule inet raysft input iif lo accept
        add rule inet raysft input ct state established,related accept
        add rule inet raysft input ip saddr {{ {inside} }} accept
        add rule inet raysft input tcp dport 22 accept""",
    )
    assert open_ports(stranger, head.address, listening | set(range(1, 1025))) == {22}
    assert 6379 in open_ports(workers[0], head.address, {6379})


def ports_of(host) -> set[int]:
    lines = host.execute("ss", "-Hltn").splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}


def open_ports(host, address: str, ports: set[int]) -> set[int]:
    """The ports of `address` that answer when they are tried from `host`."""
    code = (
        "import asyncio, sys\n"
        "async def one(p):\n"
        "    try:\n"
        "        _, w = await asyncio.wait_for(asyncio.open_connection(sys.argv[1], p), 2)\n"
        "        w.close()\n"
        "        return p\n"
        "    except (OSError, asyncio.TimeoutError):\n"
        "        return None\n"
        "async def main():\n"
        "    print(*filter(None, await asyncio.gather(*map(one, map(int, sys.argv[2:])))))\n"
        "asyncio.run(main())\n"
    )
    return set(map(int, host.execute(sys.executable, "-c", code, address, *sorted(ports)).split()))


@pytest.mark.long
def test_a_run_on_s3_trains_on_both_workers_and_outlives_the_death_of_one(
    cluster, folder, environment, hosts, s3
):
    name, storage = "dies", "s3://bucket/runs"
    process = subprocess.Popen(
        [
            BIN / "raysft",
            "submit",
            str(REPOSITORY / "jobs/quickstart.yaml"),
            "--address",
            cluster,
            "--name",
            name,
            "--set",
            f"storage={storage}",
            "--set",
            "train.epochs=8",
            "--set",
            "search.scheduler=none",
            "--set",
            "search.trials=4",
        ],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and begun(f"{storage}/{name}") < 2:
        time.sleep(0.5)
    assert begun(f"{storage}/{name}") == 2
    hosts[2].kill()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert "1 team of 2 workers; 1 team of 2 workers" in out
    assert "its trials go to the other slots" in out
    results = json.loads(
        raysft(folder, environment | s3, "results", f"{storage}/{name}", "--json").stdout
    )
    assert [t["status"] for t in results["trials"]] == ["finished"] * 4
    assert [t["epochs"] for t in results["trials"]] == [8] * 4
    assert results["best"]["test_accuracy"] > 0.9


def begun(run: str) -> int:
    """How many trials are in training with an epoch behind them; each host has room for one."""
    return sum(t["status"] == "running" and t["epochs"] > 0 for t in read_trials(storage_path(run)))
