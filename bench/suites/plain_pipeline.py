"""Feature Map Convergence Evaluation as a researcher would write it, with PyTorch and torchvision alone.

    python plain_pipeline.py --data-root ~/data/mnist --epochs 23        # in an empty folder

The peer of `bench pipeline`, and no part of fmcefast: MNIST through a DataLoader with a worker for each core, float32,
`torch.save` for weights and feature maps, FMCE-Net as `nn.Sequential` in a loop. Prints the seconds of each stage and
both accuracies as JSON.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import models, transforms
from torchvision.datasets import MNIST
from torchvision.models.feature_extraction import create_feature_extractor

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--subset", type=int, default=2000)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--backbone", default="shufflenet_v2_x0_5", help="a ShuffleNetV2")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--schedule", type=int, required=True, help="epochs after which the learning rate would be 0")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--phases", type=int, default=10)
    parser.add_argument("--fmce-epochs", type=int, default=10)
    parser.add_argument("--fmce-batch-size", type=int, default=128)
    parser.add_argument("--fmce-lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    times = [time.perf_counter()]
    top1 = train(arguments)
    times.append(time.perf_counter())
    extract(arguments)
    times.append(time.perf_counter())
    accuracy = fit(arguments)
    times.append(time.perf_counter())
    seconds = {name: times[i + 1] - times[i] for i, name in enumerate(("train", "extract", "fit"))}
    print(json.dumps({**seconds, "top1": top1, "accuracy": accuracy}))


def train(arguments: argparse.Namespace) -> float:
    """Save the weights of every epoch as epoch-N.pt, and return the last top-1 on test images."""
    training, test = (images_of(arguments, part, augment=part == "train") for part in ("train", "test"))
    loader = batches(training, arguments.batch_size, shuffle=True, drop_last=True)
    test_loader = batches(test, arguments.batch_size)
    network = models.get_model(arguments.backbone, num_classes=CLASSES)
    optimizer = torch.optim.Adam(network.parameters(), lr=arguments.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.schedule * len(loader))
    top1 = 0.0
    for epoch in range(1, arguments.epochs + 1):
        network.train()
        total = 0.0
        for images, labels in loader:
            loss = cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        top1 = accuracy_of(network, test_loader)
        torch.save(network.state_dict(), f"epoch-{epoch}.pt")
        with open("losses.csv", "a") as file:  # noqa: PTH123
            file.write(f"{epoch},{total / len(loader)},{top1}\n")
    return top1


def extract(arguments: argparse.Namespace) -> None:
    """Save the feature maps of the training images at `phases` epochs as maps-N.pt: float32, (images, C, H, W)."""
    loader = batches(images_of(arguments, "train", augment=False), arguments.batch_size)
    network = models.get_model(arguments.backbone, num_classes=CLASSES)
    features = create_feature_extractor(network, {"conv5": "maps"})
    for phase, epoch in enumerate(torch.linspace(1, arguments.epochs, arguments.phases).long().tolist()):
        network.load_state_dict(torch.load(f"epoch-{epoch}.pt"))
        features.eval()
        with torch.no_grad():
            torch.save(torch.cat([features(images)["maps"] for images, _ in loader]), f"maps-{phase}.pt")


def fit(arguments: argparse.Namespace) -> float:
    """Train FMCE-Net on three quarters of the images' maps, and return its accuracy on the others."""
    phases = [torch.load(f"maps-{phase}.pt") for phase in range(arguments.phases)]
    order = torch.randperm(len(phases[0]))
    cut = len(order) * 3 // 4
    training, test = (scored([maps[rows] for maps in phases]) for rows in (order[:cut], order[cut:]))
    loader = DataLoader(training, arguments.fmce_batch_size, shuffle=True)
    net = fmce_net(*phases[0].shape[1:], phases=len(phases))
    optimizer = torch.optim.Adam(net.parameters(), lr=arguments.fmce_lr)
    for _ in range(arguments.fmce_epochs):
        for maps, scores in loader:
            loss = cross_entropy(net(maps), scores)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(net.state_dict(), "fmce_net.pt")
    return accuracy_of(net, DataLoader(test, arguments.fmce_batch_size))


def images_of(arguments: argparse.Namespace, part: str, *, augment: bool) -> Dataset:
    """MNIST's first images: `subset` of the training part, or the same fraction of the test part."""
    size = arguments.image_size
    transform = transforms.Compose([
        transforms.Grayscale(3),
        transforms.Resize(size),
        *([transforms.RandomCrop(size, padding=round(0.1 * size))] if augment else []),
        transforms.ToTensor(),
        transforms.Normalize((0.1307,), (0.3081,)),
    ])  # fmt: skip
    dataset = MNIST(arguments.data_root, train=part == "train", transform=transform)
    return Subset(dataset, range(round(len(dataset) * arguments.subset / 60000)))


def batches(images: Dataset, batch_size: int, **options: bool) -> DataLoader:
    return DataLoader(images, batch_size, num_workers=len(os.sched_getaffinity(0)), **options)


def scored(phases: list[torch.Tensor]) -> TensorDataset:
    """The maps of all phases, each with the number of its phase."""
    scores = torch.arange(len(phases)).repeat_interleave(len(phases[0]))
    return TensorDataset(torch.cat(phases), scores)


def fmce_net(channels: int, height: int, width: int, phases: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Conv2d(channels, channels // 2, 3, padding=1)]
        channels //= 2
        if min(height, width) > 1:
            layers += [nn.MaxPool2d(2)]
            height, width = height // 2, width // 2
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, phases))


@torch.no_grad()
def accuracy_of(network: nn.Module, loader: Iterable) -> float:
    network.eval()
    right = [network(inputs).argmax(1) == labels for inputs, labels in loader]
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    main()
