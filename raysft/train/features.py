"""What a frozen backbone makes of the images of a split, computed once for all epochs and
trials.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from raysft.data.epochs import KeptSplit, rank_slice
from raysft.data.ingest import Rows
from raysft.data.pixels import Preparer
from raysft.data.staging import stage
from raysft.train.team import Team

BATCH = 128


def compute_features(
    split: KeptSplit, net: nn.Module, head: str, prepare: Preparer, team: Team, limit: float
) -> KeptSplit | None:
    """The inputs of the layer `head` in place of the images, each worker of the team computing a
    part of them.

    None where they would need more than `limit` bytes, or where `head` alone on them is not what
    the whole network
    does: something comes after it.
    """
    net.eval()
    labels = split.rows.labels
    mine = rank_slice(len(split), team.rank, team.workers)
    first = split.rows.take(np.arange(min(2, len(split)))).images
    probe, outputs = _features(net, head, prepare(torch.as_tensor(first).to(team.device)))
    # Some networks do more after the head, as a softmax: the head alone would not be trained to it.
    with torch.inference_mode():
        again = net.get_submodule(head)(probe)
        if again.shape != outputs.shape or not torch.allclose(again, outputs, rtol=1e-3, atol=1e-5):
            return None
    shape = (len(split), *probe.shape[1:])
    if 4 * np.prod(shape) > limit:
        return None
    # Each worker fills its own rows, so that the sum over the team is all of them.
    found = torch.zeros(shape, dtype=torch.float32, device=team.device)
    start = mine.start
    for rows in stage(split, split.in_order(BATCH, team.rank, team.workers), team.device):
        part, _ = _features(net, head, prepare(rows.images))
        found[start : start + len(rows)] = part
        start += len(rows)
    return KeptSplit(Rows(split.rows.ids, team.sum(found).cpu().numpy(), labels))


@torch.inference_mode()
def _features(net: nn.Module, head: str, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(input of the layer `head`, output of the network) for a batch."""
    seen: list[torch.Tensor] = []

    def remember(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        # a copy: a layer that works in place would change what is kept
        seen.append(given[0].detach().clone())

    handle = net.get_submodule(head).register_forward_pre_hook(remember)
    try:
        outputs = net(inputs)
    finally:
        handle.remove()
    return seen[0], outputs
