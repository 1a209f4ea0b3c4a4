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
from typing import TYPE_CHECKING, Literal, TypedDict

from raysft.ray_shortcuts import describe_shortcuts

if TYPE_CHECKING:
    from raysft.cluster.messages import Reporter
    from raysft.cluster.nodes import Host

REDUCED_BYTES, ROUNDS = 16_000_000, 5
MEETING_SECONDS = 60


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, how it is, and in which words."""

    check: str
    where: str
    state: Literal["ok", "wrong"]
    text: str


class NodeAnswer(TypedDict):
    """What a node says of itself."""

    versions: dict[str, str]
    weights: list[str]


Answer = NodeAnswer | Exception  # the latter where the node could not say it


def examine(storage: str) -> list[Finding]:
    """All findings about the cluster this process is connected to."""
    from raysft.cluster.nodes import hosts, run_on_all, storage_problems

    nodes = hosts()
    answers = run_on_all(nodes, describe_node)
    found = [_node(host, answer) for host, answer in zip(nodes, answers, strict=True)]
    found += _versions(nodes, answers)
    found += _ray(nodes[0])
    for host, problem in zip(nodes, storage_problems(storage, nodes), strict=True):
        text = problem or f"{storage}: reads and writes"
        found.append(Finding("storage", host.address, "wrong" if problem else "ok", text))
    # One node has no network to train over.
    if len(nodes) > 1:
        found.append(_network(nodes))
    if not any(host.node.cpus for host in nodes):
        found.append(Finding("resources", "cluster", "wrong", "no node has a CPU for workers"))
    return found


def describe_node() -> NodeAnswer:
    """On a node: versions, and the weights that are in torch's cache."""
    from raysft.records.run import PACKAGES, versions

    found = {name: "missing" for name in PACKAGES} | versions()
    # raysft itself is sent along with every run.
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
    """Where torch keeps what it downloads."""
    # As torch.hub.get_dir says it, which takes seconds to import.
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(os.path.expanduser(os.environ.get("TORCH_HOME", usual)), "hub")


def _node(host: Host, answer: Answer) -> Finding:
    if isinstance(answer, Exception):
        problem = f"cannot run a task ({type(answer).__name__})"
        return Finding("node", host.address, "wrong", problem)
    parts = ["head"] if host.head else []
    parts += [f"{host.node.cpus:g} CPUs", f"{host.node.gpus:g} GPUs"]
    parts.append(f"object store {host.store_bytes / 1e9:.1f} GB")
    cached = ", ".join(answer["weights"])
    parts.append(f"weights cached: {cached}" if cached else "no weights cached")
    return Finding("node", host.address, "ok", ", ".join(parts))


def _versions(nodes: Sequence[Host], answers: Sequence[Answer]) -> list[Finding]:
    found: list[Finding] = []
    first: dict[str, str] = {}
    for host, answer in zip(nodes, answers, strict=True):
        if isinstance(answer, Exception):
            continue
        versions = answer["versions"]
        if not first:
            # The head comes first: the others have to have what it has.
            first = versions
            text = ", ".join(f"{name} {version}" for name, version in versions.items())
            wrong = "missing" in versions.values()
        else:
            other = _differences(versions, first)
            text = ", ".join(other) or "the same"
            wrong = bool(other)
        found.append(Finding("versions", host.address, "wrong" if wrong else "ok", text))
    return found


def _differences(versions: dict[str, str], first: dict[str, str]) -> list[str]:
    return [
        f"{name} {version} instead of {first[name]}"
        for name, version in versions.items()
        if version != first[name]
    ]


def _ray(head: Host) -> list[Finding]:
    """Whether this Ray's series fits, and which of its shortcuts it has."""
    import ray

    from raysft.cluster.versions import series_problem

    # A missing shortcut costs time and nothing else, so it is nothing wrong.
    found = [Finding("Ray shortcuts", head.address, "ok", describe_shortcuts())]
    problem = series_problem(ray.__version__)
    if problem is not None:
        found.insert(0, Finding("Ray", head.address, "wrong", "; ".join(problem)))
    return found


def _network(nodes: Sequence[Host]) -> Finding:
    """An all-reduce over one process a node, over the interface that training would use."""
    from raysft.cluster.nodes import start_on

    with socket.socket() as probe:
        # Any port that is free here, on the head, where rank 0 will listen.
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    calls = [
        start_on(host, all_reduce, rank, len(nodes), nodes[0].address, port, host.address)
        for rank, host in enumerate(nodes)
    ]
    # All have to have begun before the first is waited for: they meet.
    speeds: list[float] = []
    for host, call in zip(nodes, calls, strict=True):
        answer = call()
        if isinstance(answer, Exception):
            problem = f"an all-reduce over all nodes failed: {_last_line(answer)}"
            return Finding("network", host.address, "wrong", problem)
        speeds.append(answer)
    text = (
        f"all-reduce of {REDUCED_BYTES / 1e6:g} MB over {len(nodes)} nodes: "
        f"{min(speeds) / 1e6:,.0f} MB/s"
    )
    return Finding("network", "all nodes", "ok", text)


def _last_line(error: Exception) -> str:
    # Ray carries an error over with its traceback before it.
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def all_reduce(rank: int, nodes: int, head: str, port: int, own: str) -> float:
    """On a node: bytes a second that an all-reduce moves through each node."""
    import datetime

    import torch
    import torch.distributed as dist

    from raysft.train.network_interface import use_interface_of

    # By itself gloo takes what the host's name resolves to, and may never meet the others.
    use_interface_of(own)
    limit = datetime.timedelta(seconds=MEETING_SECONDS)
    # torch says by a pattern what it exports, which mypy cannot read
    store = dist.TCPStore(head, port, nodes, is_master=rank == 0, timeout=limit)  # type: ignore[attr-defined]
    # gloo, as every node has it; NCCL would need a GPU on each.
    dist.init_process_group("gloo", store=store, rank=rank, world_size=nodes, timeout=limit)
    try:
        values = torch.ones(REDUCED_BYTES // 4)
        # Once without the clock: the first makes the connections.
        dist.all_reduce(values)
        began = time.perf_counter()
        for _ in range(ROUNDS):
            dist.all_reduce(values)
        # As nccl-tests measure a ring: each node moves 2 (n - 1) / n of the buffer.
        return 2 * (nodes - 1) / nodes * REDUCED_BYTES * ROUNDS / (time.perf_counter() - began)
    finally:
        dist.destroy_process_group()


def main(storage: str) -> int:
    """Examine the cluster as one of its jobs."""
    from raysft.entrypoints.ray_job import answer_question

    return answer_question(lambda reporter: _report(storage, reporter), check=False)


def _report(storage: str, reporter: Reporter) -> None:
    from raysft.cluster.nodes import hosts
    from raysft.entrypoints.ray_job import shared_storage

    found = examine(shared_storage(storage, len(hosts())))
    reporter.tell("doctor", findings=[asdict(finding) for finding in found])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
