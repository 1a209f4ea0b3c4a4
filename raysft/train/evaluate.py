"""Metrics and predictions of a split, in float32 as the delivered model will be used."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # as all of PyTorch's own examples
from torch import nn

from raysft.data.epochs import SplitReader
from raysft.data.ingest import Rows
from raysft.data.pixels import Preparer, scoring_batch_size
from raysft.data.staging import stage
from raysft.train.metrics import MetricSums, SplitMetrics
from raysft.train.team import Team


def evaluate(
    net: nn.Module, split: SplitReader, team: Team, prepare: Preparer, classes: int
) -> SplitMetrics:
    """Metrics of a split; on features where `net` is a head alone."""
    sums = MetricSums(classes, team.device)
    for rows, outputs in _outputs(net, split, team, prepare):
        sums.add(outputs, rows.labels)
    team.sum(sums.values)
    return sums.metrics()


def score(
    net: nn.Module, split: SplitReader, team: Team, prepare: Preparer, classes: int
) -> tuple[SplitMetrics, torch.Tensor]:
    """Metrics as `evaluate`, and the prediction for each image.

    The second are (images, 5) float64 on every member, sorted by the first column: row id, label,
    predicted label, its probability, probability of the label.
    """
    sums = MetricSums(classes, team.device)
    # a member may have no image at all, and must still take part in the collectives below
    predictions = [torch.empty(0, 5, dtype=torch.float64, device=team.device)]
    for rows, outputs in _outputs(net, split, team, prepare):
        sums.add(outputs, rows.labels)
        predictions.append(_predictions(rows, outputs))
    team.sum(sums.values)
    gathered = team.gather_rows(torch.cat(predictions))
    by_id = gathered[:, 0].argsort()
    return sums.metrics(), gathered[by_id].cpu()


def _predictions(rows: Rows, outputs: torch.Tensor) -> torch.Tensor:
    probabilities = F.softmax(outputs.float(), dim=1)
    best, predicted = probabilities.max(1)
    of_label = probabilities.gather(1, rows.labels[:, None])[:, 0]
    ids = torch.from_numpy(rows.ids).to(outputs.device)
    # float64 holds row ids up to 2**53 exactly, so that one tensor takes all columns
    columns = (ids, rows.labels, predicted, best, of_label)
    return torch.stack([column.double() for column in columns], dim=1)


@torch.inference_mode()
def _outputs(
    net: nn.Module, split: SplitReader, team: Team, prepare: Preparer
) -> Iterator[tuple[Rows, torch.Tensor]]:
    """This member's part of a split, batch by batch, with the outputs (n, classes) for it."""
    net.eval()
    size = scoring_batch_size(math.isqrt(split.pixels), prepare.how.image_size or 0)
    batches = split.in_order(size, team.rank, team.workers)
    for rows in stage(split, batches, team.device):
        is_images = rows.images.dtype == torch.uint8  # features are float32
        inputs = prepare(rows.images) if is_images else rows.images
        yield rows, net(inputs)
