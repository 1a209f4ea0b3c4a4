"""The nodes of the cluster this process is connected to: what each has, and that each reaches the
storage.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysft.errors import UserError, describe_error
from raysft.job.plan import Node
from raysft.ray_shortcuts import head_resource
from raysft.storage import RemotePath, StoragePath, remove_folder, storage_path, write_text

T = TypeVar("T")
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Host:
    """One living node."""

    id: str
    address: str
    node: Node
    store_bytes: float
    head: bool


class _NodeInfo(TypedDict):
    """What `ray.nodes` says of a node, as far as it is used here."""

    Alive: bool
    NodeID: str
    NodeManagerAddress: str
    Resources: dict[str, float]


def hosts() -> list[Host]:
    """All living nodes, the head first."""
    infos: list[_NodeInfo] = ray.nodes()  # type: ignore[no-untyped-call]
    found = [_host(info) for info in infos if info["Alive"]]
    return sorted(found, key=lambda host: (not host.head, host.address))


def _host(info: _NodeInfo) -> Host:
    has = info["Resources"]
    return Host(
        id=info["NodeID"],
        address=info["NodeManagerAddress"],
        node=Node(has.get("CPU", 0), has.get("GPU", 0)),
        store_bytes=has.get("object_store_memory", 0),
        head=_is_head(info),
    )


def _is_head(info: _NodeInfo) -> bool:
    resource = head_resource()
    if resource is not None:
        return resource in info["Resources"]
    # Ray's address is that of its control store, which the head runs.
    address = str(ray.get_runtime_context().gcs_address)
    return address.rpartition(":")[0] == info["NodeManagerAddress"]


def run_on_all(
    all_hosts: Sequence[Host], function: Callable[..., T], *arguments: object
) -> list[T | Exception]:
    """The result of a function on each node, or why there is none."""
    # All are started before the first is waited for, so that nodes work at the same time.
    calls = [start_on(host, function, *arguments) for host in all_hosts]
    return [call() for call in calls]


def start_on(
    host: Host, function: Callable[..., T], *arguments: object
) -> Callable[[], T | Exception]:
    """Start a function on a node; what is returned waits for its result, or tells why there is
    none.
    """
    # Nothing is reserved: a check has to answer while all CPUs train.
    where = NodeAffinitySchedulingStrategy(host.id, soft=False)
    task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
    reference = task.remote(*arguments)

    def wait() -> T | Exception:
        try:
            answer: T = ray.get(reference, timeout=ANSWER_SECONDS)
            return answer
        except Exception as error:  # a task may raise anything; what it was is told
            return error

    return wait


def check_storage(storage: str, all_hosts: Sequence[Host]) -> None:
    """Raise UserError unless every node can read what this one wrote there, and this one what every
    node wrote.
    """
    problems = [
        (host, problem)
        for host, problem in zip(all_hosts, storage_problems(storage, all_hosts), strict=True)
        if problem is not None
    ]
    if problems:
        host, problem = problems[0]
        more = f" (and {len(problems) - 1} more nodes)" if len(problems) > 1 else ""
        raise UserError(
            f"storage: {storage}",
            f"cannot be used from node {host.address}{more}: {problem}",
            "give a folder that all nodes share, or s3://… or gs://… with access for all nodes",
        )


def storage_problems(storage: str, all_hosts: Sequence[Host]) -> list[str | None]:
    """For each node, what is wrong with the storage there."""
    # A name of its own: two checks of one storage may run at once.
    folder = storage_path(storage) / f".raysft-check-{uuid.uuid4().hex[:8]}"
    try:
        _write(folder / "driver", "driver")
    except Exception as error:
        return [describe_error(error, -1)] * len(all_hosts)
    try:
        names = [f"node-{number}" for number in range(len(all_hosts))]
        calls = [
            start_on(host, _touch, str(folder), name)
            for host, name in zip(all_hosts, names, strict=True)
        ]
        answers = [call() for call in calls]
        return [
            describe_error(answer, -1)
            if isinstance(answer, Exception)
            else answer or _unseen(folder / name, name)
            for answer, name in zip(answers, names, strict=True)
        ]
    finally:
        remove_folder(folder)


def _touch(folder: str, name: str) -> str | None:
    """On a node: read what the driver wrote, write something of one's own."""
    try:
        if (storage_path(folder) / "driver").read_text() != "driver":
            return "it reads something else than was written"
        write_text(storage_path(folder) / name, name)
    except FileNotFoundError:
        return "what the head wrote is not there"
    except Exception as error:
        return describe_error(error, -1)
    return None


def _unseen(file: StoragePath, name: str) -> str | None:
    try:
        return (
            None if file.read_text() == name else "the head reads something else than was written"
        )
    except (OSError, UserError):
        return "what it wrote is not seen by the head"


def _write(file: StoragePath, text: str) -> None:
    if not isinstance(file, RemotePath):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
