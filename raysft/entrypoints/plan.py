"""What a job would run on a cluster, as a Ray job: `python -m raysft.entrypoints.plan job.yaml
[--measure]`.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path


def main(job_file: str, timed: bool) -> int:
    """Tell the plan of a job on the nodes that are there, as one event; `timed` trains a few steps
    of it first.
    """
    import ray

    from raysft.cluster.messages import Reporter
    from raysft.cluster.nodes import check_storage, hosts
    from raysft.display.plan import plan_json, plan_lines
    from raysft.entrypoints.train import DATASETS, shared_storage, to_stream
    from raysft.errors import RaysftError
    from raysft.job import load_job
    from raysft.job.plan import make_plan
    from raysft.run.driver import Workspace
    from raysft.run.measure import measure
    from raysft.run.preflight import outline_of
    from raysft.storage import storage_path

    ray.init(address="auto", log_to_driver=False)
    reporter = Reporter(to_stream(sys.stdout))
    try:
        job = load_job(job_file)
        nodes = hosts()
        storage = shared_storage(job.storage, len(nodes))
        results = f"{storage}/{job.name}-TIME"
        known = outline_of(job)
        each = [host.node for host in nodes]
        plan = make_plan(job, known, each)
        estimate = None
        if timed:
            check_storage(storage, nodes)
            with tempfile.TemporaryDirectory(
                prefix="raysft-", ignore_cleanup_errors=True
            ) as scratch:
                estimate = measure(
                    job,
                    plan,
                    each,
                    storage_path(storage),
                    Workspace(Path(scratch), storage_path(storage) / DATASETS),
                )
    except RaysftError as error:
        reporter.error(error)
        return error.exit_code
    told = [f"{host.address}: {host.node.cpus:g} CPUs, {host.node.gpus:g} GPUs" for host in nodes]
    document = plan_json(job, known, plan, results)
    document["nodes"] = told
    lines = plan_lines(job, known, plan, "; ".join(told), results)
    if estimate is not None:
        document["measured"] = asdict(estimate)
        lines.append(estimate.line())
    reporter.tell("planned", document=document, lines=lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--measure" in sys.argv[2:]))
