"""What a job needs that can be looked at before anything starts: its data and its weights."""

from __future__ import annotations

from raysft.job import Job
from raysft.job.plan import Outline


def outline_of(job: Job) -> Outline:
    """What is known of a job's data before it is read; raises UserError for what is not there, or cannot be."""
    from raysft.data.imports import cache_folder
    from raysft.data.sources import outline
    from raysft.search.space import check_configurations
    from raysft.train.setup import weights_file

    check_configurations(job)
    weights_file(job.model)
    return outline(job.data, cache_folder())
