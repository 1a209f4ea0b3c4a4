"""Requests a second of a small network, 16 clients on the same cores: `raysft serve` beside Serve's
documented way.
"""

from __future__ import annotations

import http.client
import io
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from raysft.results.model import ModelCard, deliver
from raysft.train.smallnet import small_cnn
from tests.benchmarks import images
from tests.benchmarks.children import PEERS, RAYSFT
from tests.benchmarks.compare import Figure, document, take_turns

CLIENTS, REQUESTS, WARM_UP = 16, 3_000, 500


def measure(rounds: int = 3) -> dict[str, Any]:
    """The comparison; needs four minutes."""
    latencies: dict[str, list[float]] = {}

    def way(name: str, program: Callable[[Path, int], Any], path: str) -> float:
        with program(model, port := _free_port()):
            _load(port, path, files, WARM_UP)
            seconds, found = _load(port, path, files, REQUESTS)
        latencies.setdefault(name, []).extend(found)
        return REQUESTS / seconds

    with tempfile.TemporaryDirectory() as folder:
        model, files = small_model(Path(folder)), [_png(i) for i in range(64)]
        timings = take_turns(
            {
                "Ray Serve, documented": partial(way, "Ray Serve, documented", _peer, "/"),
                "raysft serve": partial(way, "raysft serve", _raysft, "/predict"),
            },
            rounds,
            warm_up=False,
        )
    rates = {t.name: t.value for t in timings}
    figures = [
        Figure(
            "requests a second, raysft to Ray Serve's documented way",
            rates["raysft serve"] / rates["Ray Serve, documented"],
            1.0,
            at_least=True,
        )
    ]
    for name, found in latencies.items():
        cuts = statistics.quantiles(found, n=100)
        figures += [
            Figure(f"{name}: p50 ms", 1000 * cuts[49]),
            Figure(f"{name}: p99 ms", 1000 * cuts[98]),
        ]
    return document(
        f"{REQUESTS:,} images of 32×32 pixels, one a request, {CLIENTS} clients",
        timings,
        figures,
        "requests/s",
    )


def small_model(root: Path) -> Path:
    """A delivered model that nobody has trained."""
    (root / "checkpoint").mkdir()
    torch.manual_seed(0)
    save_file(small_cnn(images.CLASSES).state_dict(), root / "checkpoint/model.safetensors")
    deliver(
        root / "model",
        root / "checkpoint",
        ModelCard(
            "raysft.train.smallnet:small_cnn",
            tuple("abcdefghij"),
            images.SIDE,
            images.SIDE,
            (0.5,) * 3,
            (0.25,) * 3,
            {},
            {},
        ),
    )
    return root / "model"


def _png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (images.SIDE, images.SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _load(port: int, path: str, files: Sequence[bytes], requests: int) -> tuple[float, list[float]]:
    """Seconds of the whole, and of each request."""
    numbers, latencies = iter(range(requests)), []

    def client() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            for number in numbers:
                began = time.perf_counter()
                connection.request(
                    "POST", path, files[number % len(files)], {"content-type": "image/png"}
                )
                response = connection.getresponse()
                if b"a" not in response.read() or response.status != 200:
                    raise RuntimeError(f"status {response.status}")
                latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(client) for _ in range(CLIENTS)]:
            done.result()
    return time.perf_counter() - began, latencies


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def _raysft(model: Path, port: int) -> Iterator[None]:
    with _program(RAYSFT, "serve", model, "--port", port, says="curl") as process:
        yield
        process.send_signal(signal.SIGTERM)


@contextmanager
def _peer(model: Path, port: int) -> Iterator[None]:
    with _program(sys.executable, PEERS / "ray_serve.py", model, port, says="ready"):
        yield


@contextmanager
def _program(*words: object, says: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [str(w) for w in words],
        env=os.environ,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    if not any(says in line for line in process.stdout):
        raise RuntimeError(f"{words[0]} ended before it answered")
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(90)
