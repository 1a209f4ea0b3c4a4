"""What a job would run on a cluster, without running it: `python -m raysft.cluster.planner job.yaml`, as a Ray job."""

from __future__ import annotations

import sys


def main(job_file: str) -> int:
    """Tell the plan of a job on the nodes that are there, as one event."""
    import ray

    from raysft.cluster.entry import outline_of, shared_storage, to_stream
    from raysft.cluster.nodes import hosts
    from raysft.cluster.wire import Reporter
    from raysft.console import plan_json, plan_lines
    from raysft.errors import RaysftError
    from raysft.job import load_job
    from raysft.job.plan import make_plan

    ray.init(address="auto", log_to_driver=False)
    reporter = Reporter(to_stream(sys.stdout))
    try:
        job = load_job(job_file)
        nodes = hosts()
        results = f"{shared_storage(job.storage, len(nodes))}/{job.name}-TIME"
        known = outline_of(job)
        plan = make_plan(job, known, [host.node for host in nodes])
    except RaysftError as error:
        reporter.error(error)
        return error.exit_code
    each = [f"{host.address}: {host.node.cpus:g} CPUs, {host.node.gpus:g} GPUs" for host in nodes]
    document = plan_json(job, plan, results) | {"nodes": each}
    reporter.tell("planned", document=document, lines=plan_lines(job, known, plan, "; ".join(each), results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
