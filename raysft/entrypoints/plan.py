"""What a job would run on a cluster, as a Ray job: `python -m raysft.entrypoints.plan job.yaml
[--measure]`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from raysft.cluster.messages import Reporter
from raysft.entrypoints.ray_job import DATASETS, answer_question, shared_storage

if TYPE_CHECKING:
    from raysft.cluster.nodes import Host
    from raysft.job import Job
    from raysft.job.plan import RunPlan
    from raysft.run.measure import Estimate


def main(job_file: str, measured: bool) -> int:
    """Tell the plan of a job on the nodes that are there, as one event; `measured` trains a few
    steps of it first.
    """
    return answer_question(lambda reporter: _plan(job_file, measured, reporter))


def _plan(job_file: str, measured: bool, reporter: Reporter) -> None:
    from raysft.cluster.nodes import hosts
    from raysft.display.plan import plan_json, plan_lines
    from raysft.job import load_job
    from raysft.job.plan import make_plan
    from raysft.run.preflight import outline_of

    job = load_job(job_file)
    nodes = hosts()
    storage = shared_storage(job.storage, len(nodes))
    results = f"{storage}/{job.name}-TIME"
    outline = outline_of(job)
    plan = make_plan(job, outline, [host.node for host in nodes])
    described = [
        f"{host.address}: {host.node.cpus:g} CPUs, {host.node.gpus:g} GPUs" for host in nodes
    ]
    document = plan_json(job, outline, plan, results)
    document["nodes"] = described
    lines = plan_lines(job, outline, plan, "; ".join(described), results)
    if measured:
        estimate = _measure(job, plan, nodes, storage)
        document["measured"] = asdict(estimate)
        lines.append(estimate.line())
    reporter.tell("planned", document=document, lines=lines)


def _measure(job: Job, plan: RunPlan, nodes: Sequence[Host], storage: str) -> Estimate:
    from raysft.cluster.nodes import check_storage
    from raysft.run.driver import Workspace
    from raysft.run.measure import measure
    from raysft.storage import storage_path

    # Before it is written to by all: a folder of one node alone would end in a missing data set.
    check_storage(storage, nodes)
    root = storage_path(storage)
    # Threads of Ray may still write there when it is removed.
    with tempfile.TemporaryDirectory(prefix="raysft-", ignore_cleanup_errors=True) as scratch:
        workspace = Workspace(Path(scratch), root / DATASETS)
        return measure(job, plan, [host.node for host in nodes], root, workspace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--measure" in sys.argv[2:]))
