"""Fine-tuning with Hugging Face accelerate: the plain script with its model, optimizer and loader prepared by it."""

import argparse
import json
import time

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.models import resnet18

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    change = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
                                 transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    train_set = datasets.ImageFolder(f"{options.data}/train", change)
    loader = DataLoader(train_set, batch_size=128, shuffle=True)
    net = resnet18(num_classes=len(train_set.classes))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(options.epochs):
        net.train()
        began = time.perf_counter()
        for images, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(criterion(net(images), labels))
            optimizer.step()
        seconds = time.perf_counter() - began
        print(json.dumps({"epoch": epoch, "images_per_s": len(train_set) / seconds}), flush=True)


if __name__ == "__main__":
    main()
