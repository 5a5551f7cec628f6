"""A process that trains a few steps and says on standard output, as JSON, what it spent its first seconds on.

Started by `fmcefast bench start`, with the time at which that was and its settings. Imports nothing early: that is what
it measures.
"""

import json
import sys
import time

STEPS = 6


def main() -> None:
    began, settings = float(sys.argv[1]), json.loads(sys.argv[2])
    seconds, before = {}, began

    def mark(name: str) -> None:
        nonlocal before
        now = time.monotonic()
        seconds[name], before = now - before, now

    mark("Python")
    import torch

    mark("import torch")
    from fmcefast.data.sources import load_source
    from fmcefast.models.backbones import make_backbone
    from fmcefast.models.fmce_net import FMCENet
    from fmcefast.run.config import resolve
    from fmcefast.runtime.device import pick_device
    from fmcefast.training.objectives import RepresentationAuxiliary
    from fmcefast.training.trainer import Trainer

    mark("import fmcefast")
    device = pick_device()
    torch.ones(1, device=device).add_(1).cpu()
    mark("CUDA" if device.type == "cuda" else "a first operation")
    config, source, objective = resolve(settings["config"]), load_source("digits"), None
    if settings["ral"]:
        channels, height, width = make_backbone(config.backbone, 10).feature_shape(config.image_size)
        objective = RepresentationAuxiliary(FMCENet(channels, (height, width)), 0.8, config, device)
    trainer = Trainer(config, source, device, objective=objective)
    trainer.backbone.train()
    torch.backends.cudnn.benchmark = settings["trials"] is not None
    torch.backends.cudnn.benchmark_limit = settings["trials"] or 0  # 0: all
    images, labels = next(iter(trainer.train_loader))
    mark("network, images")
    for step in range(1, STEPS + 1):
        trainer.step(images, labels).item()
        mark(f"step {step}")
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
