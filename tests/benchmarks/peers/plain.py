"""Fine-tuning as it is commonly written: ImageFolder, PIL transforms, a DataLoader, one process,
one model.
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.models import resnet18

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def train_loader(data: str, batch: int) -> DataLoader:
    change = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(datasets.ImageFolder(f"{data}/train", change), batch_size=batch, shuffle=True)


def test_loader(data: str) -> DataLoader:
    plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return DataLoader(datasets.ImageFolder(f"{data}/test", plain), batch_size=256)


def train_epoch(
    net: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    criterion = nn.CrossEntropyLoss()
    net.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def accuracy(net: nn.Module, loader: DataLoader) -> float:
    net.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += (net(images).argmax(1) == labels).sum().item()
    return correct / len(loader.dataset)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loader, judge = train_loader(options.data, options.batch), test_loader(options.data)
    net = resnet18(num_classes=len(loader.dataset.classes))
    optimizer: torch.optim.Optimizer
    if options.optimizer == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr=options.lr, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(loader))
    for epoch in range(options.epochs):
        began = time.perf_counter()
        train_epoch(net, loader, optimizer, scheduler)
        seconds = time.perf_counter() - began
        print(
            json.dumps(
                {
                    "epoch": epoch,
                    "accuracy": accuracy(net, judge),
                    "images_per_s": len(loader.dataset) / seconds,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
