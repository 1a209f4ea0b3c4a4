"""Data-parallel training as torchrun users write it: DistributedDataParallel and a
DistributedSampler over tensors.

    torchrun --nproc-per-node 2 ddp.py --rows 2000 --epochs 3

The same recipe as raysft's default: flip and crop of whole batches, channels last, SGD with
momentum, cosine.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchvision.models import resnet18

MEAN, STD = 0.5, 0.25


def change(batch: torch.Tensor) -> torch.Tensor:
    batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
    top, left = torch.randint(0, 9, (2, len(batch)))
    windows = F.pad(batch, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
    batch = windows[torch.arange(len(batch)), :, top, left]
    return ((batch.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--touch", help="a file to make after the first step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (options.rows, 3, 32, 32), dtype=torch.uint8, generator=generator
    )
    data = TensorDataset(images, torch.arange(options.rows) % 10)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=options.batch // world, sampler=sampler)
    net = torch.nn.parallel.DistributedDataParallel(
        resnet18(num_classes=10).to(memory_format=torch.channels_last), gradient_as_bucket_view=True
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(loader))
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        net.train()
        dist.barrier()
        began = time.perf_counter()
        for pixels, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(change(pixels)), labels).backward()
            optimizer.step()
            scheduler.step()
            if options.touch and rank == 0:
                Path(options.touch).touch()
        dist.barrier()
        rate = options.rows / (time.perf_counter() - began)
        if rank == 0:
            print(json.dumps({"epoch": epoch, "images_per_s": rate}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
