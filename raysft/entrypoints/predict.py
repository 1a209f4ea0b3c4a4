"""A prediction on a cluster, as a Ray job: `python -m raysft.entrypoints.predict predict.json`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path


def main(request_file: str) -> int:
    """Predict what `ClusterBackend.predict` asks for; sends progress and results."""
    import ray

    from raysft.cluster.messages import Reporter
    from raysft.deploy.bulk import predict_all
    from raysft.deploy.image_sources import source_of
    from raysft.entrypoints.train import to_stream
    from raysft.errors import RaysftError
    from raysft.storage import storage_path

    request = json.loads(Path(request_file).read_text())
    ray.init(address="auto", log_to_driver=False)
    reporter = Reporter(to_stream(sys.stdout))
    try:
        source = source_of(storage_path(request["source"]), request["split"])
        predicted = predict_all(
            storage_path(request["model"]),
            source,
            storage_path(request["out"]),
            request["probabilities"],
            reporter.progress,
            request["trust_code"],
        )
    except RaysftError as error:
        reporter.error(error)
        return error.exit_code
    reporter.tell("predicted", **asdict(predicted))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
