"""From the command to the first training step, one worker: `raysft submit` beside torchrun with a
script of its own.

Both train ResNet-18 from scratch on random images of 32×32 pixels that are there already (shards; a
tensor).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import images
from tests.benchmarks.children import BIN, ENVIRONMENT, PEERS, RAYSFT, job
from tests.benchmarks.compare import Figure, document, take_turns

NETWORK = """
from pathlib import Path
from torchvision.models import resnet18

def network(num_classes):
    net = resnet18(num_classes=num_classes)
    net.register_full_backward_hook(lambda *_: Path({touched!r}).touch())
    return net
"""


def measure(rounds: int = 5) -> dict[str, Any]:
    """The comparison; needs three minutes."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        images.shards(scratch / "D", 2_000, 500)
        touched = scratch / "touched"
        (scratch / "first_step.py").write_text(NETWORK.format(touched=str(touched)))
        path = job(
            scratch / "j.yaml",
            data={"source": "shards", "path": str(scratch / "D")},
            model={"name": "first_step:network", "weights": "none"},
            train={"epochs": 50},
        )
        torchrun = (
            BIN / "torchrun",
            "--nproc-per-node",
            1,
            PEERS / "ddp.py",
            "--epochs",
            50,
            "--touch",
            touched,
        )
        timings = take_turns(
            {
                "torchrun": partial(_until_touched, torchrun, touched, scratch),
                "raysft submit": partial(
                    _until_touched, (RAYSFT, "submit", path), touched, scratch
                ),
            },
            rounds,
        )
    seconds = {t.name: t.value for t in timings}
    return document(
        "from the command to the first step",
        timings,
        [
            Figure(
                "seconds, raysft submit to torchrun",
                seconds["raysft submit"] / seconds["torchrun"],
                2.5,
            )
        ],
        "s to the first step",
    )


def _until_touched(words: Sequence[object], touched: Path, cwd: Path) -> float:
    began = time.time()
    process = subprocess.Popen(
        [str(w) for w in words],
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not touched.exists() and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is not None:
        raise RuntimeError(f"{words[0]} ended before its first step")
    seconds = touched.stat().st_mtime - began
    process.terminate()
    process.wait(60)
    touched.unlink()
    shutil.rmtree(cwd / "runs", ignore_errors=True)
    return seconds
