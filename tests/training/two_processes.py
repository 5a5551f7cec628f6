"""One epoch of training by as many processes as there are, in float64 and with fixed batch statistics.

Two then compute what one computes. Run by test_training.py, under torchrun or alone, with the file to write.
"""

import sys

import torch
from safetensors.torch import save_file

from fmcefast.data.sources import load_source
from fmcefast.progress import Progress
from fmcefast.run.config import resolve
from fmcefast.runtime.ranks import current_ranks
from fmcefast.training.trainer import Trainer


class InFloat64:
    def __init__(self, loader):
        self._loader = loader
        self.images, self.start, self.ranks, self.device = loader.images, loader.start, loader.ranks, loader.device

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        return ((images.double(), labels) for images, labels in self._loader)


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    config = resolve({"subset": 61, "image_size": 32, "batch_size": 20, "epochs": 2, "amp": "off"})
    trainer = Trainer(config, load_source("digits", subset=61), torch.device("cpu"), current_ranks())
    trainer.train_loader, trainer.test_loader = InFloat64(trainer.train_loader), InFloat64(trainer.test_loader)
    trainer.backbone.eval()
    trainer.backbone.train = lambda mode=True: trainer.backbone
    with Progress(quiet=True).task("train", total=1, unit="images") as task:
        row = trainer.run_epoch(1, task)
    if trainer.ranks.rank == 0:
        facts = {"loss": torch.tensor(row.loss), "top1": torch.tensor(row.top1)}
        weights = {name: tensor.contiguous() for name, tensor in trainer.backbone.state_dict().items()}
        save_file(weights | facts, sys.argv[1])


if __name__ == "__main__":
    main()
