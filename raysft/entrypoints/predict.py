"""A prediction on a cluster, as a Ray job: `python -m raysft.entrypoints.predict predict.json`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from raysft.cluster.messages import Reporter
from raysft.entrypoints.ray_job import answer_question


def main(request_file: str) -> int:
    """Predict what `ClusterBackend.predict` asks for; sends progress and results."""
    return answer_question(lambda reporter: _predict(request_file, reporter))


def _predict(request_file: str, reporter: Reporter) -> None:
    # They import torch, which the cluster's Python may not have: that is told before.
    from raysft.deploy.bulk import predict_all
    from raysft.deploy.image_sources import list_source
    from raysft.storage import storage_path

    request = json.loads(Path(request_file).read_text())
    predicted = predict_all(
        storage_path(request["model"]),
        list_source(storage_path(request["source"]), request["split"]),
        storage_path(request["out"]),
        request["probabilities"],
        reporter.progress,
        request["trust_code"],
    )
    reporter.tell("predicted", **asdict(predicted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
