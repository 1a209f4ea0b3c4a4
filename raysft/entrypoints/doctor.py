"""What a cluster is like and what is wrong with it: nodes, versions, storage, network, weights;
each check a row.

On a cluster it runs as a Ray job (`python -m raysft.entrypoints.doctor STORAGE`) that tells its
findings as one event.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from raysft.ray_shortcuts import describe_shortcuts

REDUCED_BYTES, ROUNDS = 16_000_000, 5
MEETING_SECONDS = 60


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, how it is, and in which words."""

    check: str
    where: str
    state: Literal["ok", "wrong"]
    text: str


def examine(storage: str) -> list[Finding]:
    """All findings about the cluster this process is connected to."""
    from raysft.cluster.nodes import hosts, on_every, storage_problems

    nodes = hosts()
    about = on_every(nodes, describe_node)
    found = [_node(host, answer) for host, answer in zip(nodes, about, strict=True)]
    found += _versions(nodes, about)
    # A missing shortcut costs time and nothing else, so it is nothing wrong.
    found.append(Finding("Ray shortcuts", nodes[0].address, "ok", describe_shortcuts()))
    found += [
        Finding(
            "storage",
            host.address,
            "wrong" if problem else "ok",
            problem or f"{storage}: reads and writes",
        )
        for host, problem in zip(nodes, storage_problems(storage, nodes), strict=True)
    ]
    if len(nodes) > 1:
        found += _network(nodes)
    if not any(host.node.cpus for host in nodes):
        found.append(Finding("resources", "cluster", "wrong", "no node has a CPU for workers"))
    return found


def describe_node() -> dict[str, Any]:
    """On a node: versions, and the weights that are in torch's cache."""
    from raysft.records.run import PACKAGES, versions

    # raysft itself is sent along with every run.
    found = {name: "missing" for name in PACKAGES} | versions()
    found.pop("raysft")
    return {"versions": found, "weights": cached_weights()}


def cached_weights() -> list[str]:
    """Names of the weights that this machine has in the caches of torch and, for timm, of Hugging
    Face.
    """
    files = (torch_hub() / "checkpoints").glob("*")
    found = [file.name for file in files if file.suffix in (".pth", ".safetensors")]
    if find_spec("huggingface_hub") is not None:
        from huggingface_hub.constants import HF_HUB_CACHE

        found += [
            folder.name.removeprefix("models--").replace("--", "/")
            for folder in Path(HF_HUB_CACHE).glob("models--timm--*")
        ]
    return sorted(found)


def torch_hub() -> Path:
    """What torch.hub.get_dir says, which takes seconds to import."""
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(os.path.expanduser(os.environ.get("TORCH_HOME", usual)), "hub")


def _node(host: Any, answer: Any) -> Finding:
    if isinstance(answer, Exception):
        return Finding("node", host.address, "wrong", f"runs nothing ({type(answer).__name__})")
    cached = (
        f", weights cached: {', '.join(answer['weights'])}"
        if answer["weights"]
        else ", no weights cached"
    )
    return Finding(
        "node",
        host.address,
        "ok",
        f"{'head, ' if host.head else ''}{host.node.cpus:g} CPUs, {host.node.gpus:g} GPUs, "
        "object store "
        f"{host.store_bytes / 1e9:.1f} GB{cached}",
    )


def _versions(nodes: Sequence[Any], about: Sequence[Any]) -> list[Finding]:
    known = [
        (host, answer["versions"])
        for host, answer in zip(nodes, about, strict=True)
        if not isinstance(answer, Exception)
    ]
    if not known:
        return []
    first = known[0][1]
    text = ", ".join(f"{name} {version}" for name, version in first.items())
    missing = [name for name, version in first.items() if version == "missing"]
    found = [Finding("versions", known[0][0].address, "wrong" if missing else "ok", text)]
    for host, versions in known[1:]:
        other = [
            f"{name} {version} instead of {first[name]}"
            for name, version in versions.items()
            if version != first[name]
        ]
        found.append(
            Finding(
                "versions", host.address, "wrong" if other else "ok", ", ".join(other) or "the same"
            )
        )
    return found


def _network(nodes: Sequence[Any]) -> list[Finding]:
    """An all-reduce over one process a node, over the interface that training would use."""
    from raysft.cluster.nodes import call_on

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    calls = [
        call_on(host, all_reduce, rank, len(nodes), nodes[0].address, port, host.address)
        for rank, host in enumerate(nodes)
    ]
    speeds = []
    for host, answer in zip(nodes, [call() for call in calls], strict=True):
        if isinstance(answer, Exception):
            reason = (
                str(answer).strip().splitlines()[-1]
                if str(answer).strip()
                else type(answer).__name__
            )
            return [
                Finding(
                    "network",
                    host.address,
                    "wrong",
                    f"an all-reduce over all nodes failed: {reason}",
                )
            ]
        speeds.append(answer)
    text = (
        f"all-reduce of {REDUCED_BYTES / 1e6:g} MB over {len(nodes)} nodes: "
        f"{min(speeds) / 1e6:,.0f} MB/s"
    )
    return [Finding("network", "all nodes", "ok", text)]


def all_reduce(rank: int, nodes: int, head: str, port: int, own: str) -> float:
    """On a node: bytes a second that an all-reduce moves through each node.

    That is 2 (n - 1) / n of the buffer in the time of a round, the measure of nccl-tests for a
    ring.
    """
    import datetime

    import torch
    import torch.distributed as dist

    from raysft.train.network_interface import use_interface_of

    use_interface_of(own)
    limit = datetime.timedelta(seconds=MEETING_SECONDS)
    store = dist.TCPStore(head, port, nodes, is_master=rank == 0, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=nodes, timeout=limit)
    try:
        values = torch.ones(REDUCED_BYTES // 4)
        dist.all_reduce(values)
        began = time.perf_counter()
        for _ in range(ROUNDS):
            dist.all_reduce(values)
        return 2 * (nodes - 1) / nodes * REDUCED_BYTES * ROUNDS / (time.perf_counter() - began)
    finally:
        dist.destroy_process_group()


def main(storage: str) -> int:
    """Examine the cluster as one of its jobs."""
    import ray

    from raysft.cluster.messages import Reporter
    from raysft.cluster.nodes import hosts
    from raysft.entrypoints.train import shared_storage, to_stream
    from raysft.errors import UserError

    ray.init(address="auto", log_to_driver=False)
    reporter = Reporter(to_stream(sys.stdout))
    try:
        found = examine(shared_storage(storage, len(hosts())))
    except UserError as error:
        reporter.error(error)
        return error.exit_code
    reporter.tell("doctor", findings=[asdict(finding) for finding in found])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
