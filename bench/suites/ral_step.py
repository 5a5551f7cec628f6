r"""What the FMCE-Net adds to a training step: the fused loss and the network's own layers against plain training.

    fmcefast bench ral-step                                    # two cores: about 5 minutes
    fmcefast bench ral-step --backbone resnet50 --batch 256    # on a GPU

A step is forward, loss, backward and Adam on one random batch that is there already, as `fmcefast train` and `fmcefast
finetune` compute it: on a GPU in a CUDA graph. First the loss and the gradient of all weights with the fused loss are
compared with those of the plain layers. The contestants take turns, round by round, and their ratios are taken within a
round. Leaves ral-step-*.json.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from fmcefast import FMCENet, FMCSLoss
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.results import publish, row
from fmcefast.data.sources import load_source
from fmcefast.run.config import Config, resolve
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.device import pick_device
from fmcefast.training.objectives import RepresentationAuxiliary
from fmcefast.training.trainer import Trainer

RAF = 0.8
PLAIN = "plain training"


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("ral-step", __doc__)
    parser.add_argument("--backbone", default="shufflenet_v2_x1_0")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--amp", nargs="+", default=["bf16", "off"], choices=("bf16", "fp16", "off"))
    parser.add_argument("--steps", type=int, default=2, help="in each round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="eager steps on a GPU")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    device = pick_device()
    shared = {"backbone": arguments.backbone, "image_size": arguments.image_size, "batch_size": arguments.batch}
    rows = []
    for amp in arguments.amp:
        rows += step_rows(
            resolve({**shared, "amp": amp, "graphs": arguments.graphs}), device, arguments.steps, arguments.rounds
        )
    publish(arguments, "ral-step", rows, of=arguments.backbone, raf=RAF, **shared)


def step_rows(config: Config, device: torch.device, steps: int, rounds: int) -> list[dict]:
    trainers = make_trainers(config, device)
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    images = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (config.batch_size,), device=device)
    torch.backends.cudnn.benchmark = True  # as in a long training
    difference = check(trainers, images, labels)
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    for round_ in range(-1, rounds):
        for name, trainer in trainers.items():
            # The first round warms up, and captures the graphs.
            seconds = seconds_of_steps(trainer, images, labels, steps if round_ >= 0 else max(steps, 5))
            if round_ >= 0:
                taken[name].append(seconds / steps)
    rows = []
    for name, values in taken.items():
        times_plain = median(value / plain for value, plain in zip(values, taken[PLAIN], strict=True))
        facts = {"times_plain_training": times_plain, "gradient_difference": difference}
        if device.type == "cuda":
            facts["steps"] = trainers[name].graph.how
        rows.append(row(f"step, amp {config.amp}: {name}", [1e3 * value for value in values], "ms", **facts))
        print(f"{rows[-1]['name']:44}{rows[-1]['value']:10,.1f} ms  {times_plain:.3f}x", flush=True)
    return rows


def make_trainers(config: Config, device: torch.device) -> dict[str, Trainer]:
    """Trainers of the same weights."""
    source = load_source("digits")
    trainers: dict[str, Trainer] = {PLAIN: Trainer(config, source, device)}
    channels, height, width = trainers[PLAIN].backbone.feature_shape(config.image_size)
    torch.manual_seed(0)
    net = FMCENet(channels, (height, width))
    fused, own_layers = (RepresentationAuxiliary(net, RAF, config, device) for _ in range(2))
    own_layers.criterion.fmcs = FMCSLoss(net).to(device, memory_format=torch.channels_last)
    trainers["RAL, fused"] = Trainer(config, source, device, objective=fused)
    trainers["RAL, FMCE-Net's own layers"] = Trainer(config, source, device, objective=own_layers)
    for trainer in trainers.values():
        trainer.backbone.train()
    return trainers


def check(trainers: dict[str, Trainer], images: torch.Tensor, labels: torch.Tensor) -> float:
    """The relative difference of the fused and the plain gradient of the backbone; raises when one is wrong."""
    results = []
    for name in ("RAL, fused", "RAL, FMCE-Net's own layers"):
        trainer = trainers[name]
        before = {key: value.clone() for key, value in trainer.backbone.state_dict().items()}
        loss = trainer.loss(images, labels)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in trainer.backbone.parameters()]).double()
        results.append((loss.item(), gradient))
        trainer.optimizer.zero_grad()
        trainer.backbone.load_state_dict(before)
    (loss, gradient), (plain_loss, plain_gradient) = results
    difference = ((gradient - plain_gradient).norm() / plain_gradient.norm()).item()
    exact = trainers[PLAIN].dtype is None
    assert abs(loss - plain_loss) < (1e-5 if exact else 5e-3) * plain_loss, f"{loss} is not {plain_loss}"
    assert difference < (0.02 if exact else 0.2), f"the gradients differ by {difference:.1%}"
    return difference


def seconds_of_steps(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    wait: Callable[[], None] = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        trainer.step(images, labels)
    wait()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
