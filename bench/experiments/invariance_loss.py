r"""Does invariance serve as a loss? Plain training and training with invariance as auxiliary loss, paired seeds.

    fmcefast bench invariance-loss digits                            # two cores: half an hour
    fmcefast bench invariance-loss mnist -- --data mnist --data-root ~/data/mnist --subset 2000 --image-size 64

The auxiliary term is what `probe` measures, made differentiable: one minus the mean cosine of the centred pooled maps
of an image and of the same image shifted or brighter, by turns. Like the papers' term it has the weight 1 - RAF, and
all cells train as many epochs as plain training takes to converge. `plus-plus` measures the papers' term. Finished
cells are kept in --folder. Leaves invariance-loss-NAME.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from fmcefast import files
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.commands import fmcefast, working_folder
from fmcefast.bench.tools.measuring import shown
from fmcefast.bench.tools.results import publish, row
from fmcefast.finetuning.table import by_raf, compare_rafs
from fmcefast.maturity.image_changes import CHANGES, DEFAULT_CHANGES
from fmcefast.models.backbones import Backbone
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder, read_run
from fmcefast.run.images import open_source
from fmcefast.runtime.device import pick_device
from fmcefast.stages.markers import markers
from fmcefast.training.objectives import Classification
from fmcefast.training.trainer import Trainer


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("invariance-loss", __doc__)
    parser.add_argument("name")
    parser.add_argument("--rafs", default="0.95,0.8")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the run and the cells are kept")
    parser.add_argument("flags", nargs="*", help="flags of `fmcefast run`")
    arguments = parser.parse_args(argv)
    rafs = sorted({1.0, *map(float, arguments.rafs.split(","))}, reverse=True)
    with working_folder(arguments.folder) as folder:
        for verb in ("train", "markers"):
            fmcefast(verb, arguments.name, *(arguments.flags if verb == "train" else ()), cwd=folder)
        run = read_run(folder / arguments.name)
        epochs = markers.epochs(run)[-1]
        cells = {(raf, seed): train_cell(run, raf, seed) for seed in range(arguments.seeds) for raf in rafs}
    rows = []
    for each in compare_rafs(by_raf((raf, seed, cell["top1"]) for (raf, seed), cell in cells.items())):
        seconds = sum(cell["seconds"] for (raf, _), cell in cells.items() if raf == each.raf)
        facts = {name: getattr(each, name) for name in ("std", "difference", "low", "high")}
        entry = row(f"top-1 with invariance at RAF {each.raf:g}", [each.mean], "fraction", seconds=seconds, **facts)
        rows.append({**entry, "n": each.seeds})
    for entry in rows:
        print(f"{entry['name']:40}{entry['value']:10.4f} {entry['unit']}")
    flags = shown(arguments.flags)
    publish(arguments, "invariance-loss", rows, of=arguments.name, peers=("scipy",), flags=flags, epochs=epochs)


def train_cell(run: RunFolder, raf: float, seed: int) -> dict:
    """Top-1 of the last epoch of one training, and its seconds; a finished one is read."""
    path = run.path / f"invariance-raf-{raf:g}-seed-{seed}.json"
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    epochs, progress = markers.epochs(run)[-1], Progress()
    objective = Classification() if raf == 1 else InvarianceAuxiliary(raf)
    trainer = Trainer(run.with_seed(seed).config, open_source(run), pick_device(), objective=objective)
    with progress.task(f"RAF {raf:g}, seed {seed}", total=epochs * trainer.images_of_epoch, unit="images") as task:
        rows = [trainer.run_epoch(epoch, task) for epoch in range(1, epochs + 1)]
    result = {"top1": rows[-1].top1, "seconds": sum(each.seconds for each in rows)}
    files.write_json(path, result)
    return result


class InvarianceAuxiliary(Classification):
    """raf * cross-entropy + (1 - raf) * (1 - invariance)."""

    def __init__(self, raf: float):
        self.raf = raf

    def network(self, backbone: Backbone) -> nn.Module:
        return _WithChange(backbone)

    def loss(self, outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        logits, plain, changed = outputs
        return self.raf * super().loss(logits, labels) + (1 - self.raf) * (1 - invariance(plain, changed))


def invariance(plain: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    """The mean cosine of pooled maps (N, C) of images and of changed images, both less the mean map of the images."""
    centre = plain.float().mean(0)
    return functional.cosine_similarity(plain.float() - centre, changed.float() - centre).mean()


class _WithChange(nn.Module):
    """Logits of images, and the pooled maps of both images and changed images; the changes take turns."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self._batches = backbone, 0

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        change = CHANGES[DEFAULT_CHANGES[self._batches % len(DEFAULT_CHANGES)]]
        self._batches += 1
        maps = self.backbone.features(images)
        changed = self.backbone.features(change(images))
        return self.backbone.head(maps), maps.mean((2, 3)), changed.mean((2, 3))


if __name__ == "__main__":
    main()
