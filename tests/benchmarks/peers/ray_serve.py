"""A model on Ray Serve as its documentation has it: HTTP by Serve's proxy, @serve.batch in the
deployment.

python ray_serve.py MODEL PORT      answers at / until its standard input ends
"""

import sys
from pathlib import Path

import numpy as np
import ray
import torch
from ray import serve
from starlette.requests import Request

from raysft.data.images import fit, open_rgb
from raysft.results.predict import Classifier


@serve.deployment(ray_actor_options={"num_cpus": 2}, max_ongoing_requests=64)
class Model:
    def __init__(self, path: str) -> None:
        torch.set_num_threads(2)
        self.classifier = Classifier(Path(path))

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def predict(self, files: list[bytes]) -> list[dict[str, float]]:
        card = self.classifier.card
        images = np.stack([fit(open_rgb(file), card.height, card.width) for file in files])
        return [dict(ranking) for ranking in self.classifier.rank(images)]

    async def __call__(self, request: Request) -> dict[str, float]:
        return await self.predict(await request.body())


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(
        http_options={"port": int(sys.argv[2])}, logging_config={"enable_access_log": False}
    )
    serve.run(Model.bind(sys.argv[1]), name="peer")
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()
