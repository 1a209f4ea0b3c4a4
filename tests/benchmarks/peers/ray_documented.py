"""The search as Ray documents it: a TorchTrainer inside a Tune function, Ray Data streaming by
default.
"""

import argparse
import os

import ray
import ray.data
import ray.train.torch
import torch
from ray import train, tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from torch import nn
from torchvision import transforms
from torchvision.models import resnet18

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CHANGE = transforms.Compose(
    [
        transforms.ToPILImage(),
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
PLAIN = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def change(row: dict) -> dict:
    return {"image": CHANGE(row["image"]).numpy(), "label": row["label"]}


def plain(row: dict) -> dict:
    return {"image": PLAIN(row["image"]).numpy(), "label": row["label"]}


def train_loop(config: dict) -> None:
    torch.set_num_threads(1)
    net = ray.train.torch.prepare_model(resnet18(num_classes=10))
    criterion = nn.CrossEntropyLoss()
    optimizer: torch.optim.Optimizer
    if config["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr=config["lr"], momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), lr=config["lr"])
    shards = train.get_dataset_shard("train"), train.get_dataset_shard("test")
    for epoch in range(config["epochs"]):
        net.train()
        for batch in shards[0].iter_torch_batches(batch_size=128, local_shuffle_buffer_size=512):
            optimizer.zero_grad()
            criterion(net(batch["image"]), batch["label"]).backward()
            optimizer.step()
        net.eval()
        correct = count = 0
        with torch.no_grad():
            for batch in shards[1].iter_torch_batches(batch_size=256):
                correct += (net(batch["image"]).argmax(1) == batch["label"]).sum().item()
                count += len(batch["label"])
        train.report({"val_accuracy": correct / count, "epoch": epoch})


def drive(config: dict, data: str) -> None:
    """One trial of Tune: a trainer of its own, which reports through it."""
    labels = {name: i for i, name in enumerate(sorted(os.listdir(f"{data}/train")))}

    def labelled(row: dict) -> dict:
        return {
            "image": row["image"],
            "label": labels[os.path.basename(os.path.dirname(row["path"]))],
        }

    sets = {
        name: ray.data.read_images(f"{data}/{name}", include_paths=True, mode="RGB")
        .map(labelled)
        .map(how)
        for name, how in (("train", change), ("test", plain))
    }
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=config,
        datasets=sets,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    # With the two CPUs there are, Ray Data is left with half a CPU a trainer, less than a task of
    # it asks for, and waits for ever: twice as many are declared, as people do who meet that.
    ray.init(num_cpus=4)
    space = {
        "lr": tune.grid_search([0.01, 0.003]),
        "optimizer": tune.grid_search(["sgd", "adamw"]),
        "epochs": options.epochs,
        "storage": options.storage,
    }
    trainable = tune.with_resources(tune.with_parameters(drive, data=options.data), {"CPU": 0.01})
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(metric="val_accuracy", mode="max", max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=options.storage),
    )
    results = tuner.fit()
    assert not results.errors, results.errors
    print(results.get_best_result().metrics["val_accuracy"])
    ray.shutdown()


if __name__ == "__main__":
    main()
