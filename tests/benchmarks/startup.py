"""From the command to the first training step, one worker: `raysft submit` beside torchrun with a script of its own.

Both train ResNet-18 from scratch on random images of 32×32 pixels that are there already (shards; a tensor).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import images
from tests.benchmarks.children import BIN, PEERS, QUIET, RAYSFT, job
from tests.benchmarks.compare import Timing, document

BASELINE = "torchrun"
TARGETS = {"raysft submit": 2.5}
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
        path = job(scratch / "j.yaml", data={"source": "shards", "path": str(scratch / "D")},
                   model={"name": "first_step:network", "weights": "none"}, train={"epochs": 50}, storage="runs")
        ways: dict[str, Sequence[object]] = {
            BASELINE: (BIN / "torchrun", "--nproc-per-node", 1, PEERS / "ddp.py", "--epochs", 50, "--touch", touched),
            "raysft submit": (RAYSFT, "submit", path)}
        timings = [Timing(name, [], []) for name in ways]
        for number in range(rounds + 1):  # the first one warms the disk's cache
            for timing in timings if number % 2 == 0 else reversed(timings):
                seconds = _until_touched(ways[timing.name], touched, scratch)
                if number:
                    timing.wall.append(seconds)
                    timing.cpu.append(0.0)
                shutil.rmtree(scratch / "runs", ignore_errors=True)
        return document("from the command to the first step", timings, BASELINE, TARGETS)


def _until_touched(words: Sequence[object], touched: Path, cwd: Path) -> float:
    touched.unlink(missing_ok=True)
    began = time.time()
    process = subprocess.Popen([str(w) for w in words], cwd=cwd, env=os.environ | QUIET, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    while not touched.exists() and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is not None:
        raise RuntimeError(f"{words[0]} ended before its first step")
    seconds = touched.stat().st_mtime - began
    process.terminate()
    process.wait(60)
    return seconds
