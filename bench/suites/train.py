r"""Training a backbone: fmcefast's whole loop against the bare step of plain PyTorch, and how long it waits for images.

    fmcefast bench train                                       # two cores: about 6 minutes
    fmcefast bench train --jpegs my/photos                     # and from JPEGs
    fmcefast bench train --backbone resnet50 --image-size 224 --batch 256 --mnist ~/data --epochs 1 --compiled  # a GPU

Steps are forward, cross-entropy, backward and Adam, written out in PyTorch on one random batch that is there already:
NCHW in float32, and channels-last with and without AMP, on a GPU also in a CUDA graph; with `--compiled`, under
torch.compile as well, and so is fmcefast. The bare step is the one in fmcefast's own layout and precision, on a GPU in
a graph. `fmcefast` is `fmcefast train` on the bundled digits, or MNIST, resident, with losses.csv, the weights of every
epoch and the state to resume from; only the measurement of top-1 is left out, and a first epoch, in which a graph is
captured. First an epoch of fmcefast's is compared with the bare step on the same batches. The contestants take turns,
round by round, in one process where freed memory is kept, as `fmcefast` does, which helps everybody. Peak memory is
that of the GPU, or of the process, with all contestants in it; waiting for images is time of the host, on a GPU more
than the GPU waits. Leaves train-*.json.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional

from fmcefast.bench.suites.decode import some_files
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.results import publish, row
from fmcefast.data.image_set import Source
from fmcefast.data.sources import load_source
from fmcefast.errors import InputError
from fmcefast.models.backbones import make_backbone
from fmcefast.pipeline.change import open_run
from fmcefast.progress import Progress
from fmcefast.run.config import Config, resolve
from fmcefast.run.epochs import read_epochs
from fmcefast.run.history import HistoryEntry
from fmcefast.runtime import device as runtime
from fmcefast.runtime.adam import set_learning_rate
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.device import amp_type, autocast, pick_device, precision_name
from fmcefast.stages.train import train
from fmcefast.training import trainer
from fmcefast.training.objectives import Classification

CLASSES = 10


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("train", __doc__)
    parser.add_argument("--backbone", default="shufflenet_v2_x1_0")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--mnist", type=Path, help="torchvision's MNIST, to have more images than the digits")
    parser.add_argument("--subset", type=int, default=25600, help="images of MNIST")
    parser.add_argument("--epochs", type=int, default=2, help="of fmcefast in each round; of steps alone, and eager, 1")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well; on a CPU it takes minutes")
    parser.add_argument("--no-eager", dest="eager", action="store_false", help="on a GPU, only steps in CUDA graphs")
    parser.add_argument("--jpegs", type=Path, help="folder of JPEGs, at any depth, to train on for an epoch at 224 px")
    parser.add_argument("--images", type=int, default=2560, help="of --jpegs; files come again when there are fewer")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    Classification.measure = lambda *_: {"top1": 0.0}
    device = pick_device()
    if device.type == "cpu" and not arguments.eager:
        raise InputError("--no-eager leaves nothing to measure on a CPU: its steps are all eager. Leave it out.")
    shared = {"backbone": arguments.backbone, "image_size": arguments.image_size, "batch_size": arguments.batch}
    mnist = {"data": "mnist", "data_root": str(arguments.mnist), "subset": arguments.subset}
    source = mnist if arguments.mnist else {"data": "digits"}
    config = resolve({**shared, **source, "epochs": arguments.epochs, "until_converged": False})
    check(config, device)
    torch.backends.cudnn.benchmark, runtime.STEPS_FOR_TRIALS = True, 0  # as in a long training
    way = "CUDA graph" if device.type == "cuda" else "eager"
    bare = f"{way}, channels-last, {precision_of(shipped_precision(config, device), device)}"
    rows = step_rows(config, device, bare, arguments.rounds, arguments.eager, arguments.compiled)
    if arguments.jpegs is not None:
        rows.append(wait_row(arguments.jpegs, {**shared, "image_size": 224, "epochs": 1}, arguments.images))
    peers = ("nvidia-dali-cuda130",)
    publish(arguments, "train", rows, of=arguments.backbone, peers=peers, **shared, bare_step=bare)


class BareStep:
    """A network and its optimizer in plain PyTorch."""

    def __init__(self, config: Config, device: torch.device, layout: torch.memory_format, dtype: torch.dtype | None):
        torch.manual_seed(config.seed)
        self.network = make_backbone(config.backbone, CLASSES).to(device, memory_format=layout).train()
        self.forward: Callable = self.network
        lr = torch.tensor(config.lr, device=device) if device.type == "cuda" else config.lr
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        self.device, self.dtype = device, dtype

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.dtype):
            logits = self.forward(images)
        loss = functional.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def captured(step: BareStep, images: torch.Tensor, labels: torch.Tensor) -> Callable:
    """The step on this batch as a CUDA graph, as PyTorch's documentation does it."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            step(images, labels)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    step.optimizer.param_groups[0]["capturable"] = True
    with torch.cuda.graph(graph):
        step(images, labels)
    return lambda *batch: graph.replay()


def images_of(config: Config) -> Source:
    return load_source(config.data, config.data_root, config.subset)


def precision_of(dtype: torch.dtype | None, device: torch.device) -> str:
    return "fp32 (TF32)" if dtype is None and device.type == "cuda" else precision_name(dtype)


def shipped_precision(config: Config, device: torch.device) -> torch.dtype | None:
    return amp_type("auto", device, make_backbone(config.backbone, CLASSES))


def check(config: Config, device: torch.device) -> None:
    """The mean loss of an epoch, as fmcefast trains it, is that of bare steps on the same batches."""
    config = replace(config, data="digits", subset=None)  # few batches: trainings drift apart on a GPU
    ours = trainer.Trainer(config, images_of(config), device)
    step = BareStep(config, device, torch.channels_last, ours.dtype)
    step.network.load_state_dict(ours.backbone.state_dict())
    torch.manual_seed(trainer.epoch_seed(config.seed, 1))
    total, batches = 0.0, len(ours.train_loader)
    for batch, (images, labels) in enumerate(ours.train_loader):
        set_learning_rate(step.optimizer, ours.set_learning_rate(batch))
        total += float(step(images, labels)) / batches
    with Progress(quiet=True).task("train", total=1, unit="images") as task:
        loss = ours.run_epoch(1, task).loss
    assert abs(loss - total) < (1e-9 if device.type == "cpu" else 0.02) * total, f"{loss} is not {total}"


def step_rows(config: Config, device: torch.device, bare: str, rounds: int, eager: bool, compiled: bool) -> list[dict]:
    steps = len(images_of(config).train) // config.batch_size
    one_epoch = replace(config, epochs=1, graphs=False)
    amp = amp_type("auto", device) or torch.bfloat16
    batch = torch.rand(config.batch_size, 3, config.image_size, config.image_size, device=device)
    labels = torch.randint(0, CLASSES, (config.batch_size,), device=device)
    contestants: dict[str, Callable[[], float]] = {}
    layouts = [("NCHW", None), ("channels-last", None), ("channels-last", amp)]
    ways = [("eager", *layout) for layout in layouts] if eager else []
    shipped, on_gpu = shipped_precision(config, device), device.type == "cuda"
    graphs = [False, True] if on_gpu else [False]
    ways += [("torch.compile", "channels-last", shipped)] if compiled else []
    ways += [("CUDA graph", "channels-last", shipped)] if on_gpu else []
    ways += [("torch.compile, CUDA graph", "channels-last", shipped)] if compiled and on_gpu else []
    for how, layout, precision in ways:
        memory_format = torch.channels_last if layout == "channels-last" else torch.contiguous_format
        step = BareStep(config, device, memory_format, precision)
        if "torch.compile" in how:
            step.forward = torch.compile(step.network)
        laid_out = batch.contiguous(memory_format=memory_format)
        run = captured(step, laid_out, labels) if "CUDA graph" in how else step
        contestants[f"{how}, {layout}, {precision_of(precision, device)}"] = lambda run=run, laid_out=laid_out: (
            seconds_of_steps(run, laid_out, labels, steps)
        )
    for graph in graphs if compiled else []:
        ours = trainer.Trainer(replace(config, compile=True, graphs=graph), images_of(config), device)
        name = f"fmcefast --compile{' --no-graphs' if on_gpu and not graph else ''}, without files"
        contestants[name] = lambda ours=ours: seconds_of_epochs(ours, config.epochs)
    waits: list[float] = []
    if on_gpu and eager:
        contestants["fmcefast --no-graphs"] = lambda: seconds_of_training(one_epoch, [])
    contestants["fmcefast"] = lambda: seconds_of_training(config, waits)

    taken: dict[str, list[float]] = {name: [] for name in contestants}  # seconds an epoch
    memory: dict[str, int] = {}
    for contestant in contestants.values():
        contestant()
    waits.clear()
    for _ in range(rounds):
        for name, contestant in contestants.items():
            forget_peak()
            taken[name].append(contestant())
            memory[name] = peak_memory()
    rows = []
    for name, values in taken.items():
        # Of each round: the machine's speed changes slowly.
        of_bare = median(bare / value for bare, value in zip(taken[bare], values, strict=True))
        facts = {"part_of_bare_step": of_bare, "peak_memory": memory[name]}
        if name == "fmcefast":
            facts["data_wait"] = median(waits)
        rates = [steps * config.batch_size / value for value in values]
        rows.append(row(f"train: {name}", rates, "images/s", **facts))
        print(f"{rows[-1]['name']:44}{rows[-1]['value']:10,.0f} images/s", facts, flush=True)
    return rows


def seconds_of_steps(step: Callable, images: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step(images, labels)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def seconds_of_epochs(ours: trainer.Trainer, epochs: int) -> float:
    """An epoch, of a trainer that is there already: a new one would compile anew."""
    began = time.perf_counter()
    with Progress(quiet=True).task("train", total=1, unit="images") as task:
        for epoch in range(1, epochs + 1):
            ours.run_epoch(epoch, task)
    return (time.perf_counter() - began) / epochs


def seconds_of_training(config: Config, waits: list[float]) -> float:
    """An epoch, of the loop of `fmcefast train` until everything is written; building the network and a first epoch
    are left out."""
    entry, first = trained(replace(config, epochs=config.epochs + 1))
    waits.append(entry.data_wait)
    return (entry.seconds - first) / config.epochs


def trained(config: Config) -> tuple[HistoryEntry, float]:
    """What the run's history says of a training in a folder of its own, and the seconds of its first epoch."""
    with tempfile.TemporaryDirectory(dir=".", prefix="train-bench-") as folder:
        settings = {name: value for name, value in config.as_dict().items() if value is not None}
        run = open_run(Path(folder) / "run", settings, create=True)
        train(run, Progress(quiet=True))
        return run.history.entries()[-1], read_epochs(run.losses_csv)[0].seconds


def wait_row(jpegs: Path, settings: dict, images: int) -> dict:
    """The part of an epoch in which the network waits for JPEGs."""
    with tempfile.TemporaryDirectory() as folder:
        entry, _ = trained(resolve({**settings, "data": linked(jpegs, images, Path(folder))}))
    loader = {"dali": "DALI"}.get(entry.loader, entry.loader)
    name = f"train: fmcefast, JPEGs of {settings['image_size']} px through {loader}"
    result = row(name, [entry.rate], "images/s", data_wait=entry.data_wait)
    print(f"{result['name']:44}{result['value']:10,.0f} images/s", entry.data_wait)
    return result


def linked(jpegs: Path, images: int, folder: Path) -> str:
    """Data of JPEGs that are linked into `folder`; their classes are made up."""
    for number, path in enumerate(some_files(jpegs, images).paths):
        link = folder / str(number % CLASSES) / f"{number}.jpg"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path.resolve())
    return f"folder:{folder}"


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes, since the peak was forgotten."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
