"""A plan: one fact a line, or one document."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from raysft.data.names import first_names
from raysft.job import Job
from raysft.job.plan import Outline, RunPlan, Slot
from raysft.job.spec import Search
from raysft.train.architecture import foreign_module
from raysft.wording import count_text


class SlotDocument(TypedDict):
    """A slot in the document of a plan."""

    teams: int
    workers: int
    """Of each team."""
    least_workers: NotRequired[int]
    """That a team can go on with, where that is fewer."""


class PlanDocument(TypedDict):
    """What `raysft plan --json` prints."""

    job: str
    rows: dict[str, int]
    """Of train, val and test."""
    classes: int
    class_names: list[str]
    notes: list[str]
    trials: int
    trials_at_a_time: int
    slots: list[SlotDocument]
    steps_per_epoch: int
    epochs: int
    epochs_of_all_trials: int
    batch_per_worker: int
    results: str
    nodes: NotRequired[list[str]]
    """Of a cluster."""
    measured: NotRequired[dict[str, float | None]]
    """With --measure."""


def plan_lines(job: Job, outline: Outline, plan: RunPlan, where: str, results: str) -> list[str]:
    """The plan of a job, one fact a line."""
    train, resources = job.train, job.resources
    gpus = f", {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else ""
    images = (
        f"{plan.train_rows:,} train, {plan.val_rows:,} val, {plan.test_rows:,} test images in "
        f"{plan.classes} classes"
    )
    model = f"{job.model.name}{_foreign_code(job)}"
    epochs = count_text(train.epochs, "epoch")
    steps = count_text(plan.steps_per_epoch, "step")
    slots = "; ".join(_slot_text(slot) for slot in plan.slots)
    # One fact a line with its word in front, so that a person and grep both find it.
    return [
        f"job      {job.name} on {where}",
        f"data     {job.data.source} ({outline.where}): {images}",
        *(f"         {note}" for note in outline.notes),
        f"classes  {first_names(outline.classes)}",
        f"model    {model}, weights {job.model.weights}, new head of {plan.classes} classes",
        f"train    {epochs} of {steps}, batch {train.batch_size} (at most "
        f"{plan.batch_per_worker} a worker)",
        f"search   {count_text(plan.trials, 'trial')}, {plan.teams} at a time"
        f"{_search_text(job, plan)}",
        f"workers  {slots}; {resources.cpus_per_worker} CPU{gpus} a worker",
        f"results  {results}",
    ]


def _search_text(job: Job, plan: RunPlan) -> str:
    """How trials are proposed, compared and ended early; nothing for a job of one trial."""
    search = job.search
    if search is None:
        return ""
    # Random search is what everybody expects.
    proposed = "" if search.algorithm.name == "random" else f" proposed by {search.algorithm.name}"
    confirmed = ""
    if search.confirm:
        confirmed = f"; the best is trained with {count_text(search.confirm, 'other seed')} too"
    early = _early_text(search, plan, plan.trials * job.train.epochs)
    return f"{proposed}, by {search.metric}{early}{confirmed}"


def _early_text(search: Search, plan: RunPlan, epochs: int) -> str:
    scheduler = search.scheduler.name
    if scheduler == "halving":
        # What it leaves: the epochs of all trials would be three times too many.
        return f", halving trains {plan.total_epochs:,} of {count_text(epochs, 'epoch')}"
    if search.scheduler.changes_trials:
        return f", {scheduler} passes the weights of the best on"
    if scheduler != "none":
        return f", {scheduler} may end them early"  # how early depends on what the trials show
    return ""


def _foreign_code(job: Job) -> str:
    """What a job file runs that a person has written."""
    # Said before it runs: a job file may have been sent by somebody else.
    module = foreign_module(job.model.name)
    return "" if module is None else f" (runs the code of the module {module})"


def _slot_text(slot: Slot) -> str:
    teams = count_text(slot.teams, "team")
    workers = count_text(slot.workers, "worker")
    # A team that may shrink has a range; a number alone would promise what it may not keep.
    least = f"{slot.least} to " if slot.least else ""
    return f"{teams} of {least}{workers}"


def plan_json(job: Job, outline: Outline, plan: RunPlan, results: str) -> PlanDocument:
    """The plan as a document."""
    return {
        "job": job.name,
        "rows": {"train": plan.train_rows, "val": plan.val_rows, "test": plan.test_rows},
        "classes": plan.classes,
        "class_names": list(outline.classes),
        "notes": list(outline.notes),
        "trials": plan.trials,
        "trials_at_a_time": plan.teams,
        "slots": [_slot_document(slot) for slot in plan.slots],
        "steps_per_epoch": plan.steps_per_epoch,
        "epochs": job.train.epochs,
        "epochs_of_all_trials": plan.total_epochs,
        "batch_per_worker": plan.batch_per_worker,
        "results": results,
    }


def _slot_document(slot: Slot) -> SlotDocument:
    document: SlotDocument = {"teams": slot.teams, "workers": slot.workers}
    if slot.least:
        document["least_workers"] = slot.least
    return document
