"""Fine-tuning as it is commonly written: ImageFolder, PIL transforms, a DataLoader, one process, one model."""

import argparse
import json
import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.models import resnet18

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


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

    train_transform = transforms.Compose([
        transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD)])
    plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    train_set = datasets.ImageFolder(f"{options.data}/train", train_transform)
    test_set = datasets.ImageFolder(f"{options.data}/test", plain)
    train_loader = DataLoader(train_set, batch_size=options.batch, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=256)

    net = resnet18(num_classes=len(train_set.classes))
    criterion = nn.CrossEntropyLoss()
    if options.optimizer == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr=options.lr, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(train_loader))

    train_seconds = 0.0
    for epoch in range(options.epochs):
        net.train()
        began = time.perf_counter()
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
        train_seconds = time.perf_counter() - began
        net.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in test_loader:
                correct += (net(images).argmax(1) == labels).sum().item()
        print(json.dumps({"epoch": epoch, "accuracy": correct / len(test_set),
                          "images_per_s": len(train_set) / train_seconds}), flush=True)


if __name__ == "__main__":
    main()
