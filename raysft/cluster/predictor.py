"""A prediction on a cluster, as a Ray job: `python -m raysft.cluster.predictor predict.json`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path


def main(request_file: str) -> int:
    """Predict what `raysft.remote.predict_on` asks for; tells progress, and what it came to, as
    events.
    """
    import ray

    from raysft.cluster.entry import to_stream
    from raysft.cluster.wire import Reporter
    from raysft.deploy.bulk import predict_all
    from raysft.deploy.images import source_of
    from raysft.errors import RaysftError
    from raysft.storage import place

    request = json.loads(Path(request_file).read_text())
    ray.init(address="auto", log_to_driver=False)
    reporter = Reporter(to_stream(sys.stdout))
    try:
        source = source_of(place(request["source"]), request["split"])
        predicted = predict_all(
            place(request["model"]),
            source,
            place(request["out"]),
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
