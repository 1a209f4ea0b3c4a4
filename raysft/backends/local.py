"""What the commands that work on this machine do: load, plan, show the plan, then act."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from raysft.cluster.local import local_ray, this_node
from raysft.console import Output, Watcher
from raysft.display.plan import plan_json, plan_lines
from raysft.display.results import show_outcome
from raysft.errors import RunError, UserError
from raysft.gc_pause import gc_paused
from raysft.job import Job, load_job
from raysft.job.plan import Node, Outline, RunPlan, make_plan
from raysft.job.spec import parse_colour
from raysft.records.owner import Owner, heard_ago
from raysft.records.relocation import absolute, places_of, refuse_storage
from raysft.records.run import (
    GOING_ON,
    INFO,
    LOG,
    Run,
    find_run,
    is_alive,
    is_going_on,
    read_json,
    standing,
    status_of,
)
from raysft.run.preflight import outline_of
from raysft.storage import StoragePath, storage_path

WHERE = "this machine"
STOP_SECONDS = 60.0
REFRESH_SECONDS = 1.0
REMOTE_REFRESH_SECONDS = 10.0  # a run on an object store writes its progress every 10 s


@dataclass(frozen=True)
class Ahead:
    """A job and what follows from it before anything has started."""

    job: Job
    outline: Outline
    plan: RunPlan
    node: Node


def look_ahead(job_file: Path, overrides: Sequence[str]) -> Ahead:
    """Load a job and plan it on this machine; raises UserError for whatever can be known to be
    wrong by now.
    """
    job = load_job(job_file, overrides)
    known = outline_of(job)
    node = this_node()
    return Ahead(job, known, make_plan(job, known, [node]), node)


def plan_here(
    job_file: Path, overrides: Sequence[str], timed: bool, output: Output
) -> tuple[dict[str, Any], list[str]]:
    """What a job would run on this machine, as a document and as lines; `timed` trains a few steps
    of it first.
    """
    ahead = look_ahead(job_file, overrides)
    results = f"{ahead.job.storage}/{ahead.job.name}-TIME"
    document = plan_json(ahead.job, ahead.outline, ahead.plan, results)
    lines = plan_lines(ahead.job, ahead.outline, ahead.plan, WHERE, results)
    if not timed:
        return document, lines
    with tempfile.NamedTemporaryFile(prefix="raysft-", suffix=".log") as log:
        output.send_others_to(Path(log.name))
    with local_ray(ahead.node) as scratch:
        from raysft.run.driver import Workspace
        from raysft.run.measure import measure, measured_json

        estimate = measure(
            ahead.job, ahead.plan, [ahead.node], storage_path(ahead.job.storage), Workspace(scratch)
        )
    return document | measured_json(estimate), [*lines, estimate.line()]


def submit_here(job_file: Path, overrides: Sequence[str], name: str | None, output: Output) -> None:
    """Run a job on a Ray of this machine, from plan to leaderboard."""
    ahead = look_ahead(job_file, overrides)
    _run_to_the_end(ahead, Run.create(ahead.job, name), output)


def resume_here(
    name: str, workers: int | list[int] | None, overrides: Sequence[str], output: Output
) -> None:
    """Resume a run of this machine that was stopped or died: finished trials stay, others go on
    from checkpoints.

    overrides: where its data and its weights are by now.
    """
    places = places_of(overrides)
    refuse_storage(places)
    run = Run.reopen(find_run(name), workers, absolute(places))
    for note in run.notes:
        output.line(note)
    node = this_node()
    known = outline_of(run.job)
    _run_to_the_end(Ahead(run.job, known, make_plan(run.job, known, [node]), node), run, output)


def stop_here(name: str, output: Output) -> None:
    """Stop a run of this machine from another terminal; it can be resumed."""
    folder = find_run(name)
    info = read_json(folder / INFO)
    if not is_alive(folder, info):
        if is_going_on(info) and standing(folder, info) != "lost":
            raise UserError(
                name,
                f"runs on {info.get('host')} as far as is known: its run.json is of an older "
                "raysft",
                "call `raysft stop` on that machine",
            )
        output.line(f"{name} is not running: {standing(folder, info)}")
        return
    owner = Owner.of(info)
    if owner is None:
        raise UserError(
            name,
            f"is perhaps process {info['pid']} of this machine: its run.json is of an older "
            "raysft, "
            "which did not tell enough to be sure",
            "look at that process, and end it yourself",
        )
    if not owner.is_here:
        raise UserError(
            name,
            f"runs elsewhere, as {owner}, or did until {heard_ago(folder, INFO) or 0:.0f} s ago",
            "call `raysft stop` on that machine, in that container",
        )
    owner.signal(signal.SIGTERM)  # started in the background, it may ignore Ctrl-C
    deadline = time.monotonic() + STOP_SECONDS
    while is_alive(folder, read_json(folder / INFO)):
        if time.monotonic() > deadline:
            raise RunError(
                name, f"does not end within {STOP_SECONDS:g} seconds", f"end {owner} yourself"
            )
        time.sleep(0.1)
    output.line(f"stopped {name}: `raysft resume {name}` takes it up again")


def logs_here(name: str, following: bool, output: Output) -> None:
    """What Ray and the libraries printed during a run; `following` goes on until the run has
    ended.
    """
    folder = find_run(name)
    log = folder / LOG
    if not isinstance(log, Path) or not log.is_file():
        raise UserError(
            str(folder), "has no log here", "it lies on the machine where the run was started"
        )
    with log.open(encoding="utf-8", errors="replace") as file:
        while True:
            running = is_alive(folder, read_json(folder / INFO))
            for line in file:
                output.line(line.rstrip("\n"))
            if not following or not running:
                return
            time.sleep(0.5)


def examine_here(storage: str, output: Output) -> list[dict[str, Any]]:
    """What the doctor finds on a Ray of this machine."""
    with tempfile.NamedTemporaryFile(prefix="raysft-", suffix=".log") as log:
        output.send_others_to(Path(log.name))
    with local_ray(this_node()):
        from raysft.entrypoints.doctor import examine

        return [asdict(finding) for finding in examine(str(storage_path(storage)))]


def _run_to_the_end(ahead: Ahead, run: Run, output: Output) -> None:
    folder = _short(run.folder)
    try:
        with run.recorded():
            output.line(
                "no cluster given: Ray starts on this machine "
                f"({ahead.node.cpus:g} CPUs, {ahead.node.gpus:g} GPUs)"
            )
            for line in plan_lines(ahead.job, ahead.outline, ahead.plan, WHERE, folder):
                output.line(line)
            results = _run(ahead, run, output)
    except KeyboardInterrupt:
        output.warning(f"stopped: `raysft resume {folder}` takes it up again")
        raise
    show_outcome(results, folder, output)


def _run(ahead: Ahead, run: Run, output: Output) -> dict[str, Any]:
    output.send_others_to(run.log)
    with Watcher(output, run.metric) as watcher:
        from raysft.data.importer import download_source

        download_source(ahead.job.data.source, ahead.job.data.path, watcher.progress)
        watcher.starting()
        with local_ray(ahead.node) as scratch:
            with gc_paused():
                from raysft.run.driver import Workspace, execute

            results = execute(run, [ahead.node], watcher, Workspace(scratch), wait_for_end=False)
            run.save(status="done")
            return results


def import_here(
    kind: str,
    path: str | None,
    out: str,
    test: str | None,
    on_bad_image: str,
    background: str,
    as_json: bool,
    output: Output,
) -> None:
    """Import images on a Ray of this machine."""
    kinds, policies = ("imagefolder", "cifar10", "digits"), ("fail", "skip")
    if kind not in kinds:
        raise UserError(kind, "is not a kind of data", f"give {' | '.join(kinds)}")
    if on_bad_image not in policies:
        raise UserError(
            f"--on-bad-image {on_bad_image}", "is not a policy", f"give {' | '.join(policies)}"
        )
    policy: Literal["fail", "skip"] = "skip" if on_bad_image == "skip" else "fail"
    from raysft.data.importer import download_and_list, import_listing, refuse_existing

    try:
        behind = parse_colour(background)
    except ValueError as error:
        raise UserError(f"--background {background}", str(error)) from None
    target = storage_path(out)
    refuse_existing(target)
    with Watcher(output, "", shown=not as_json) as watcher:
        listing = download_and_list(
            kind, path, test, watcher.progress, behind
        )  # what is wrong is known before Ray starts
        with tempfile.NamedTemporaryFile(prefix="raysft-", suffix=".log") as log:
            output.send_others_to(Path(log.name))
        with local_ray(this_node()):
            import_listing(listing, target, policy, watcher.progress)
    from raysft.display.dataset import show_dataset

    show_dataset(out, as_json, output)


def predict_here(
    model: str,
    source: str,
    out: str,
    split: str | None,
    shares: bool,
    trust_code: bool,
    shown: bool,
    output: Output,
) -> Any:
    """Predict a whole folder or data set on a Ray of this machine; returns a `Predicted`."""
    from raysft.deploy.bulk import check_out, predict_all
    from raysft.deploy.image_sources import source_of
    from raysft.results.model import check_trust, read_card

    target = storage_path(out)
    check_out(target)  # what is wrong is known before Ray starts
    check_trust(storage_path(model), read_card(storage_path(model)), trust_code)
    images = source_of(storage_path(source), split)
    with tempfile.NamedTemporaryFile(prefix="raysft-", suffix=".log") as log:
        output.send_others_to(Path(log.name))
    try:
        with Watcher(output, "", shown=shown) as watcher, local_ray(this_node()):
            return predict_all(
                storage_path(model), images, target, shares, watcher.progress, trust_code
            )
    except KeyboardInterrupt:
        output.warning("stopped: the same command goes on where it was")
        raise


def _short(path: StoragePath) -> str:
    """A path relative to the current folder where it lies below it."""
    below = isinstance(path, Path) and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if isinstance(path, Path) and below else str(path)


def watch_here(name: str) -> Iterator[dict[str, Any]]:
    """What the directory of a run holds, again and again until it has ended; raises UserError where
    there is none.
    """
    folder = find_run(name)
    pause = REFRESH_SECONDS if isinstance(folder, Path) else REMOTE_REFRESH_SECONDS
    ended: dict[str, dict[str, Any]] = {}  # what these hold does not change any more
    while True:
        document = status_of(str(folder), ended)
        ended |= {
            trial["trial"]: trial for trial in document["trials"] if trial["status"] not in GOING_ON
        }
        yield document
        if not is_going_on(document):
            return
        _pause_until_news(folder, document["status"], pause)


def _pause_until_news(folder: Any, status: str, seconds: float) -> None:
    """Wait; on a disk no longer than until the run has ended."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(0.2, left))
        if isinstance(folder, Path) and read_json(folder / INFO)["status"] != status:
            return
