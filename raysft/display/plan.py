"""A plan: one fact a line, or one document."""

from __future__ import annotations

from typing import Any

from raysft.data.names import first_names
from raysft.job import Job
from raysft.job.plan import Outline, RunPlan, Slot
from raysft.train.architecture import foreign_module
from raysft.wording import count_text


def plan_lines(job: Job, outline: Outline, plan: RunPlan, where: str, results: str) -> list[str]:
    """The plan of a job, one fact a line."""
    epochs = count_text(job.train.epochs, "epoch")
    slots = "; ".join(count_text(s.teams, "team") + f" of {_workers_text(s)}" for s in plan.slots)
    gpus = f", {job.resources.gpus_per_worker:g} GPU" if job.resources.gpus_per_worker else ""
    searched = ""
    if job.search is not None:
        stop, whole = job.search.scheduler.name, plan.trials * job.train.epochs
        how = f" proposed by {job.search.algorithm}" if job.search.algorithm != "random" else ""
        early = {
            "asha": f", asha trains {plan.total_epochs:,} of {count_text(whole, 'epoch')}",
            "median": ", median may end them early",
        }.get(stop, "")
        again = (
            f"; the best again with {count_text(job.search.confirm, 'other seed')}"
            if job.search.confirm
            else ""
        )
        searched = f"{how}, by {job.search.metric}{early}{again}"
    return [
        f"job      {job.name} on {where}",
        f"data     {job.data.source} ({outline.where}): {plan.train_rows:,} train, "
        f"{plan.val_rows:,} val, "
        f"{plan.test_rows:,} test images in {plan.classes} classes",
        *(f"         {note}" for note in outline.notes),
        f"classes  {first_names(outline.classes)}",
        f"model    {job.model.name}{_code(job)}, weights {job.model.weights}, new head of "
        f"{plan.classes} classes",
        f"train    {epochs} of {count_text(plan.steps_per_epoch, 'step')}, batch "
        f"{job.train.batch_size} "
        f"(at most {plan.batch_per_worker} a worker)",
        f"search   {count_text(plan.trials, 'trial')}, {plan.teams} at a time{searched}",
        f"workers  {slots}; {job.resources.cpus_per_worker} CPU{gpus} a worker",
        f"results  {results}",
    ]


def plan_json(job: Job, outline: Outline, plan: RunPlan, results: str) -> dict[str, Any]:
    """The plan as a document."""
    return {
        "job": job.name,
        "rows": {"train": plan.train_rows, "val": plan.val_rows, "test": plan.test_rows},
        "classes": plan.classes,
        "class_names": list(outline.classes),
        "notes": list(outline.notes),
        "trials": plan.trials,
        "trials_at_a_time": plan.teams,
        "slots": [
            {"teams": s.teams, "workers": s.workers}
            | ({"least_workers": s.least} if s.least else {})
            for s in plan.slots
        ],
        "steps_per_epoch": plan.steps_per_epoch,
        "epochs": job.train.epochs,
        "epochs_of_all_trials": plan.total_epochs,
        "batch_per_worker": plan.batch_per_worker,
        "results": results,
    }


def _code(job: Job) -> str:
    """What a job file runs that a person has written, which holds for one that was sent to them
    too.
    """
    module = foreign_module(job.model.name)
    return "" if module is None else f" (runs the code of the module {module})"


def _workers_text(slot: Slot) -> str:
    return (f"{slot.least} to " if slot.least else "") + count_text(slot.workers, "worker")
