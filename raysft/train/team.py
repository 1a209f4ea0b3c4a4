"""The workers that train one trial together: a process group of their own, sums and agreement."""

from __future__ import annotations

import datetime
import gc
from collections.abc import Callable

import torch
import torch.distributed as dist

# DDP imports this module when first used; its default arguments would then hold the first process
# group, and with it its connections, for ever: the others of a team would wait for a member that
# gave up until the collective's limit.
import torch.distributed.nn.functional
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, and not in __all__

from raysft.train.network_interface import use_interface_of

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=5)
MEETING_TIMEOUT = datetime.timedelta(seconds=60)


class Team:
    """One worker's view of its team."""

    def __init__(
        self,
        rank: int,
        workers: int,
        device: torch.device,
        patience: datetime.timedelta = COLLECTIVE_TIMEOUT,
    ) -> None:
        self.rank = rank
        self.workers = workers
        self.device = device
        self.patience = patience

    def connect(self, host: str, meet: Callable[[str | None], str]) -> None:
        """Form the process group. `meet` hands the address of rank 0 to all: it takes it there,
        returns it here.
        """
        if self.workers == 1:
            return
        use_interface_of(host)
        if self.rank == 0:
            # Port 0: the system chooses a free one, where a fixed one may be taken by another team.
            store = TCPStore(
                host,
                0,
                self.workers,
                is_master=True,
                timeout=MEETING_TIMEOUT,
                wait_for_workers=False,
            )
            meet(f"{host}:{store.port}")
        else:
            address, _, port = meet(None).rpartition(":")
            store = TCPStore(
                address, int(port), self.workers, is_master=False, timeout=MEETING_TIMEOUT
            )
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.workers, timeout=self.patience
        )

    def disconnect(self) -> None:
        """Leave the process group; members that still wait in it get an error instead of waiting
        on.
        """
        if dist.is_initialized():
            # networks wrapped for a trial sit in cycles and hold the group's connections open
            gc.collect()
            dist.destroy_process_group()
            gc.collect()

    def to_device(self, net: nn.Module, channels_last: bool = True) -> nn.Module:
        """`net` on this worker's device, laid out for images whose channels are last in memory.

        On CPUs that takes the images alone: weights in that layout gain nothing, and every step
        copies them twice.
        """
        net = net.to(self.device)
        if channels_last and self.device.type == "cuda":
            net = net.to(memory_format=torch.channels_last)
        return net

    def wrap_parallel(self, net: nn.Module) -> nn.Module:
        """`net` with gradients averaged over the team."""
        if self.workers == 1 or not any(p.requires_grad for p in net.parameters()):
            return net
        on = [self.device.index] if self.device.type == "cuda" else None
        # Batch statistics are given to all once an epoch, by `share_buffers`: in training nobody
        # reads them.
        return nn.parallel.DistributedDataParallel(
            net, device_ids=on, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def share_buffers(self, net: nn.Module) -> None:
        """Give all members the buffers of rank 0: batch statistics differ by the images each has
        seen.
        """
        if self.workers > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, src=0)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values`, floating-point of any shape, summed over the team in place."""
        if self.workers > 1:
            dist.all_reduce(values)
        return values

    def gather_rows(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of all members, rank after rank; each gives (n, k), with an n of its own."""
        if self.workers == 1:
            return values
        counts = torch.zeros(self.workers, dtype=torch.float64, device=self.device)
        counts[self.rank] = len(values)
        lengths = [int(n) for n in self.sum(counts).tolist()]
        # all_gather takes tensors of one shape; what is padded is cut off again below
        padded = values.new_zeros(max(lengths), values.shape[1])
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])

    def broadcast(self, numbers: list[int]) -> list[int]:
        """The whole numbers of rank 0."""
        if self.workers == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.broadcast(values, src=0)
        return [int(value) for value in values.tolist()]

    def agree(self, go_on: bool) -> bool:
        """What rank 0 says."""
        return bool(self.broadcast([go_on])[0])
