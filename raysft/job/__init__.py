"""What a job file asks for, and what that means on a cluster; imports neither ray nor torch."""

from raysft.job.describe import json_schema, markdown
from raysft.job.load import dump_job, load_job, load_text
from raysft.job.spec import Job

__all__ = ["Job", "dump_job", "json_schema", "load_job", "load_text", "markdown"]
