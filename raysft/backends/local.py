"""This machine: load a job, plan it, show the plan, then run it on a Ray that ends with the run."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raysft.backends.backend import PlannedJob, RunRow, Workers
from raysft.backends.local_session import silent_ray
from raysft.cluster.local import local_ray, this_node
from raysft.console import Output, Watcher
from raysft.deploy.prediction import Predicted, PredictionRequest
from raysft.display.plan import plan_json, plan_lines
from raysft.display.results import show_outcome
from raysft.entrypoints.doctor import Finding
from raysft.errors import RunError, UserError
from raysft.gc_pause import gc_paused
from raysft.job import Job, load_job
from raysft.job.plan import Node, Outline, RunPlan, make_plan
from raysft.records.documents import (
    INFO,
    ResultsDocument,
    RunDocument,
    StatusDocument,
    TrialDocument,
)
from raysft.records.liveness import is_alive, is_going_on, run_status
from raysft.records.owner import Owner, seconds_since_sign
from raysft.records.reading import find_run, list_runs, read_results, read_run_document, read_status
from raysft.records.relocation import absolute_places, parse_places, refuse_storage
from raysft.records.run import LOG, Run
from raysft.records.trial import GOING_ON
from raysft.run.preflight import outline_of
from raysft.storage import StoragePath, storage_path

WHERE = "this machine"
STOP_SECONDS = 60.0
REFRESH_SECONDS = 1.0
REMOTE_REFRESH_SECONDS = 10.0  # a run on an object store writes its progress every 10 s
LOG_SECONDS = 0.5  # between two looks at a log that is followed


@dataclass(frozen=True)
class _LocalPlan:
    """A job and what follows from it on this machine, before anything has started."""

    job: Job
    outline: Outline
    plan: RunPlan
    node: Node

    @classmethod
    def make(cls, job: Job) -> _LocalPlan:
        """Raises UserError for whatever can be known to be wrong by now."""
        outline = outline_of(job)
        # Asked without Ray, which takes seconds to start and may not be needed.
        node = this_node()
        return cls(job, outline, make_plan(job, outline, [node]), node)

    def lines(self, results: str) -> list[str]:
        return plan_lines(self.job, self.outline, self.plan, WHERE, results)


class LocalBackend:
    """Runs jobs on this machine; its runs are what their directories say."""

    run_columns: tuple[str, ...] = ("run", "status", "started", "ended", "trials")

    def __init__(self, output: Output) -> None:
        self._output = output

    # --- running --------------------------------------------------------------------------------

    def plan(self, job_file: Path, overrides: Sequence[str], measure: bool) -> PlannedJob:
        """Plan a job on this machine; `measure` trains a few steps of it first."""
        planned = _LocalPlan.make(load_job(job_file, overrides))
        job = planned.job
        results = f"{job.storage}/{job.name}-TIME"
        document = plan_json(job, planned.outline, planned.plan, results)
        lines = planned.lines(results)
        if not measure:
            return PlannedJob(document, lines)
        with silent_ray(planned.node, self._output) as scratch:
            from raysft.run.driver import Workspace
            from raysft.run.measure import measure as measure_steps

            estimate = measure_steps(
                job, planned.plan, [planned.node], storage_path(job.storage), Workspace(scratch)
            )
        document["measured"] = asdict(estimate)
        return PlannedJob(document, [*lines, estimate.line()])

    def submit(
        self, job_file: Path, overrides: Sequence[str], name: str | None, detach: bool
    ) -> None:
        """Run a job on a Ray of this machine, from plan to leaderboard."""
        _refuse_detach(detach)
        planned = _LocalPlan.make(load_job(job_file, overrides))
        # Planned first: a job that cannot run leaves no folder.
        self._run_to_the_end(planned, Run.create(planned.job, name))

    def resume(
        self, run: str, workers: Workers | None, overrides: Sequence[str], detach: bool
    ) -> None:
        """Resume a run of this machine: finished trials stay, others continue from checkpoints."""
        _refuse_detach(detach)
        places = parse_places(overrides)
        refuse_storage(places)
        reopened = Run.reopen(find_run(run), workers, absolute_places(places))
        for note in reopened.notes:
            self._output.line(note)
        self._run_to_the_end(_LocalPlan.make(reopened.job), reopened)

    def _run_to_the_end(self, planned: _LocalPlan, run: Run) -> None:
        folder = _short(run.folder)
        node = planned.node
        try:
            # From here on run.json says how the run ended, whatever ends it.
            with run.recorded():
                self._output.line(
                    "no cluster given: starting Ray on this machine "
                    f"({node.cpus:g} CPUs, {node.gpus:g} GPUs)"
                )
                for line in planned.lines(folder):
                    self._output.line(line)
                results = self._execute(planned, run)
        except KeyboardInterrupt:
            self._output.warning(f"stopped; `raysft resume {folder}` resumes it")
            raise
        show_outcome(results, folder, self._output)

    def _execute(self, planned: _LocalPlan, run: Run) -> ResultsDocument:
        self._output.redirect_other_output(run.log)
        with Watcher(self._output, run.metric) as watcher:
            from raysft.data.importer import download_source

            # Before Ray starts: a download that fails is said at once.
            download_source(planned.job.data.source, planned.job.data.path, watcher.progress)
            watcher.starting()
            with local_ray(planned.node) as scratch:
                # The collector would walk over torch's objects: a fifth of a start.
                with gc_paused():
                    from raysft.run.driver import Workspace, execute

                results = execute(
                    run, [planned.node], watcher, Workspace(scratch), wait_for_end=False
                )
                # Before Ray is ended: a kill in its last second would make a done run a lost one.
                run.save(status="done")
                return results

    # --- looking --------------------------------------------------------------------------------

    def runs(self, storage: str) -> list[RunRow]:
        """The runs whose directories are in `storage`, oldest first."""
        return [
            {
                "run": info["run"],
                "status": info["status"],
                "started": info["started"],
                "ended": info.get("ended"),
                "trials": info.get("trials"),
            }
            for info in list_runs(storage)
        ]

    def status(self, run: str) -> StatusDocument:
        """How far a run is, by its directory."""
        return read_status(run)

    def watch(self, run: str) -> Iterator[StatusDocument]:
        """What the directory of a run holds, again and again until it has ended."""
        folder = find_run(run)
        pause = REFRESH_SECONDS if isinstance(folder, Path) else REMOTE_REFRESH_SECONDS
        # Trials that have ended are not read again: a search may have hundreds of them.
        ended: dict[str, TrialDocument] = {}
        while True:
            document = read_status(str(folder), ended)
            for trial in document["trials"]:
                if trial["status"] not in GOING_ON:
                    ended[trial["trial"]] = trial
            yield document
            if not is_going_on(document):
                return
            _wait_for_news(folder, document["status"], pause)

    def results(self, run: str) -> ResultsDocument:
        """The results.json of a run."""
        return read_results(run)

    def logs(self, run: str, follow: bool) -> None:
        """What Ray and the libraries printed during a run; `follow` goes on until it has ended."""
        folder = find_run(run)
        log = folder / LOG
        if not isinstance(log, Path) or not log.is_file():
            raise UserError(
                str(folder),
                "has no log on this machine",
                "look on the machine where the run was started",
            )
        with log.open(encoding="utf-8", errors="replace") as file:
            while True:
                # Asked before reading: what a run writes last is still read.
                running = is_alive(folder, read_run_document(folder))
                for line in file:
                    self._output.line(line.rstrip("\n"))
                if not follow or not running:
                    return
                time.sleep(LOG_SECONDS)

    # --- stopping -------------------------------------------------------------------------------

    def stop(self, run: str) -> None:
        """Stop a run of this machine from another terminal; it can be resumed."""
        folder = find_run(run)
        info = read_run_document(folder)
        if not is_alive(folder, info):
            # An older raysft touched no file by which another machine knows that a run lives.
            status = run_status(folder, info)
            if is_going_on(info) and status != "lost":
                raise UserError(
                    run,
                    f"seems to be running on {info.get('host')}; its run.json was written by an "
                    "older raysft and does not say more",
                    "call `raysft stop` on that machine",
                )
            self._output.line(f"{run} is not running: {status}")
            return
        owner = _owner_on_this_machine(run, folder, info)
        # Not SIGINT, which a run ignores that a shell has started in the background.
        owner.signal(signal.SIGTERM)
        # So that who calls it may resume the run at once.
        _wait_for_end(run, folder, owner)
        self._output.line(f"stopped {run}; `raysft resume {run}` resumes it")

    # --- the rest -------------------------------------------------------------------------------

    def predict(self, request: PredictionRequest, show_progress: bool) -> Predicted:
        """Predict a whole folder or data set on a Ray of this machine."""
        from raysft.deploy.bulk import check_out, predict_all
        from raysft.deploy.image_sources import list_source
        from raysft.results.model import check_trust, read_card

        # What is wrong is known before Ray starts.
        model, out = storage_path(request.model), storage_path(request.out)
        check_out(out)
        check_trust(model, read_card(model), request.trust_code)
        images = list_source(storage_path(request.source), request.split)
        try:
            with (
                Watcher(self._output, "", shown=show_progress) as watcher,
                silent_ray(this_node(), self._output),
            ):
                return predict_all(
                    model,
                    images,
                    out,
                    request.probabilities,
                    watcher.progress,
                    request.trust_code,
                )
        except KeyboardInterrupt:
            self._output.warning("stopped; run the same command again to continue")
            raise

    def doctor(self, storage: str) -> list[Finding]:
        """Examine a Ray of this machine."""
        with silent_ray(this_node(), self._output):
            from raysft.entrypoints.doctor import examine

            return examine(str(storage_path(storage)))


def _refuse_detach(detach: bool) -> None:
    if detach:
        raise UserError(
            "--detach", "needs a cluster", "give --address, or start the command in the background"
        )


def _owner_on_this_machine(run: str, folder: StoragePath, info: RunDocument) -> Owner:
    """The process of a run that is going on; raises UserError where it cannot be signalled."""
    owner = Owner.from_document(info)
    if owner is None:
        raise UserError(
            run,
            f"may be process {info['pid']} of this machine; its run.json was written by an older "
            "raysft and does not say enough to be sure",
            "look at that process, and end it yourself",
        )
    if not owner.is_here:
        silent = seconds_since_sign(folder, INFO) or 0
        raise UserError(
            run,
            f"runs elsewhere, as {owner}, last heard from {silent:.0f} s ago",
            "call `raysft stop` on that machine, in that container",
        )
    return owner


def _wait_for_end(run: str, folder: StoragePath, owner: Owner) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while is_alive(folder, read_run_document(folder)):
        if time.monotonic() > deadline:
            raise RunError(
                run, f"has not ended within {STOP_SECONDS:g} seconds", f"end {owner} yourself"
            )
        time.sleep(0.1)


def _wait_for_news(folder: StoragePath, status: str, seconds: float) -> None:
    """Wait; on a disk no longer than until the status has changed."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(0.2, left))
        # On an object store every look costs a request.
        if isinstance(folder, Path) and read_run_document(folder)["status"] != status:
            return


def _short(path: StoragePath) -> str:
    """A path relative to the current folder where it lies below it."""
    if isinstance(path, Path) and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)
