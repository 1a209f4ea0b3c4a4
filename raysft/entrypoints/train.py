"""The driver of a run on a cluster: what `raysft submit --address` starts there, as a Ray job on
the head.

    python -m raysft.entrypoints.train job.yaml NAME [--resume] [--set KEY=VALUE …]
    python -m raysft.entrypoints.train FOLDER NAME --resume [--workers N|[N,M]] [--set KEY=VALUE …]

The second form resumes a run of which this cluster knows nothing but its folder.

It checks versions, nodes, storage and resources before it writes anything, runs the job, and tells
all that happens as events.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from raysft import interrupts
from raysft.cluster.messages import Reporter
from raysft.cluster.versions import check_versions
from raysft.display.plan import plan_lines
from raysft.entrypoints.ray_job import DATASETS, connect, shared_storage, to_stream
from raysft.errors import RaysftError, ResourceError, RunError, UserError
from raysft.job import Job, dump_job, load_job
from raysft.job.plan import Node, Outline, RunPlan, make_plan
from raysft.records.relocation import parse_places
from raysft.run.preflight import outline_of
from raysft.storage import storage_path
from raysft.wording import count_text


def main(
    job_file: str,
    name: str,
    resume: bool,
    places: Mapping[str, str],
    workers: int | list[int] | None,
) -> int:
    """Run the job; returns the exit status."""
    reporter = Reporter(to_stream(sys.stdout))
    # An error that nobody has foreseen counts as a failure, too.
    status, code = "failed", 1
    try:
        check_versions()
        job = _job_of(job_file, workers) if resume else load_job(job_file)
        _run(job, name, resume, places, reporter)
        status, code = "done", 0
    except KeyboardInterrupt:
        status, code = "stopped", 130
    except RaysftError as error:
        reporter.error(error)
        code = error.exit_code
    except Exception as error:
        # Told as well as raised: the traceback is in the log, which few people read.
        reporter.error(RunError("run", f"{type(error).__name__}: {error}", "see `raysft logs`"))
        raise
    finally:
        reporter.tell("end", status=status, exit_code=code)
    return code


def _job_of(job_file: str, workers: int | list[int] | None) -> Job:
    """The job of a run that is resumed, from the file that was sent or from the run's folder."""
    from raysft.records.documents import INFO
    from raysft.records.reading import read_job, read_run_document
    from raysft.records.run import with_workers

    folder = storage_path(job_file)
    if not (folder / INFO).is_file():
        return load_job(job_file)
    job = read_job(folder, read_run_document(folder)).model_copy(
        update={"storage": str(folder.parent)}
    )
    return with_workers(job, workers)


def _run(job: Job, name: str, resume: bool, places: Mapping[str, str], reporter: Reporter) -> None:
    from raysft.cluster.nodes import check_storage, hosts
    from raysft.data.importer import download_source
    from raysft.records.run import Run
    from raysft.run.driver import Workspace, execute

    connect()
    interrupts.listen()  # ray.init has put handlers of its own there
    job = job.model_copy(update={"storage": shared_storage(job.storage, len(hosts()))})
    run: Run | None = None
    if resume:
        run = Run.reopen(storage_path(job.storage) / name, job.resources.workers, places)
        run.job = job = run.job.model_copy(update={"storage": job.storage})
        for note in run.notes:
            reporter.note(note)
    # All that can be wrong is looked at before the run's folder is made.
    known = outline_of(job)
    _refuse_store_of_this_job(job)
    plan, nodes = _wait_for_room(job, known, reporter)
    check_storage(job.storage, hosts())
    run = run or Run.create(job, name)
    addresses = ", ".join(h.address for h in hosts())
    where = f"{count_text(len(nodes), 'node')} ({addresses})"
    with (
        run.recorded(),
        tempfile.TemporaryDirectory(prefix="raysft-", ignore_cleanup_errors=True) as scratch,
    ):
        reporter.tell(
            "plan",
            lines=plan_lines(job, known, plan, where, str(run.folder)),
            folder=str(run.folder),
            metric=run.metric,
            job=dump_job(run.job),
        )
        download_source(job.data.source, job.data.path, reporter.progress)
        results = execute(
            run,
            nodes,
            reporter,
            Workspace(Path(scratch), storage_path(job.storage) / DATASETS),
            wait_for_end=False,
        )
        run.save(status="done")
    reporter.tell("results", results=results)


def _refuse_store_of_this_job(job: Job) -> None:
    """Raise UserError where MLflow's database would lie in the folder of this Ray job, which goes
    with it.
    """
    address = job.tracking.mlflow or ""
    if address.startswith("sqlite:///") and not address.startswith("sqlite:////"):
        raise UserError(
            f"tracking.mlflow: {address}",
            "is a file in the current folder, which a cluster's job has not",
            "give http://HOST:5000, or sqlite:////ABSOLUTE/PATH on a folder of the head",
        )


def _wait_for_room(job: Job, known: Outline, reporter: Reporter) -> tuple[RunPlan, list[Node]]:
    """The plan on the nodes there are; where they are too few and an autoscaler is there, it is
    asked for more.

    Raises ResourceError when nothing fits and no more nodes come within `cluster.scale_up_minutes`.
    """
    from raysft.cluster.nodes import hosts

    deadline: float | None = None
    while True:
        nodes = [host.node for host in hosts()]
        try:
            return make_plan(job, known, nodes), nodes
        except ResourceError as short:
            if deadline is None:
                if not _ask_for_nodes(job):
                    raise
                deadline = time.monotonic() + 60 * job.cluster.scale_up_minutes
                reporter.note(
                    f"{short.what}; waiting up to {job.cluster.scale_up_minutes:g} minutes for "
                    "more nodes"
                )
            if time.monotonic() > deadline:
                raise
            # A node takes minutes to start.
            time.sleep(5)


def _ask_for_nodes(job: Job) -> bool:
    """Ask the autoscaler for the workers of one trial; returns whether there is one that could
    start nodes.
    """
    from ray.autoscaler.sdk import request_resources

    if (
        # What `ray up` and KubeRay leave on a head that has an autoscaler.
        not Path(os.path.expanduser("~/ray_bootstrap_config.yaml")).is_file()
        and "RAY_CLUSTER_NAME" not in os.environ
    ):
        return False
    each = {"CPU": float(job.resources.cpus_per_worker)}
    if job.resources.gpus_per_worker:
        each["GPU"] = job.resources.gpus_per_worker
    # One trial's workers: a search goes on with few slots, and more nodes cost money.
    request_resources(bundles=[each] * job.resources.least_workers)
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("job_file")
    parser.add_argument("name")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=json.loads)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    sys.exit(
        main(given.job_file, given.name, given.resume, parse_places(given.overrides), given.workers)
    )
