"""The Original Task: train a backbone, keep the loss and the weights of every epoch ([FMCE] IV-A and V-A)."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

from fmcefast.convergence.cqi import cqi
from fmcefast.convergence.cqi import has_converged as loss_has_converged
from fmcefast.data.image_set import Source
from fmcefast.data.sources import load_source
from fmcefast.data.split import read_split
from fmcefast.errors import FmcefastError
from fmcefast.models.backbones import make_backbone
from fmcefast.progress import Progress, format_seconds
from fmcefast.run.config import RECORDED, Config
from fmcefast.run.epochs import Epoch, Row, read_epochs, write_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import loader_of, open_source
from fmcefast.run.resume import TrainingState, load_state, state_facts
from fmcefast.runtime.device import describe, pick_device
from fmcefast.runtime.ranks import current_ranks
from fmcefast.training.background import Background
from fmcefast.training.trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
    """epochs, seconds: in all; loss, top1: of the last epoch, top1 a fraction of held-out images; left_out: files that
    cannot be decoded."""

    epochs: int
    loss: float
    top1: float
    converged: bool
    seconds: float
    left_out: int

    def explain(self) -> str:
        left_out = f"; {self.left_out:,} image files left out, named in split.json" if self.left_out else ""
        return f"train: {self.epochs} epochs, loss {self.loss:.4g}, top-1 {self.top1:.4f} on held-out images{left_out}"


def train(run: RunFolder, progress: Progress) -> TrainResult:
    """Train from fresh weights, or go on after the last epoch that a training state was saved for; under torchrun each
    process computes its share of every batch, with batch statistics of its own.

    Leaves losses.csv, one safetensors file of weights an epoch and resume.safetensors, all written beside the training.
    On a CPU the result depends on configuration, loader, thread and process count alone, bit for bit, interrupted or
    not; `--loader auto` stays with the loader that it began with.

    Raises FmcefastError when the loss is not finite, naming epoch and batch.
    """
    config, ranks = run.config, current_ranks()
    ranks.barrier()  # a file that rank 0 replaces later is read by all now
    epochs = committed_epochs(run)
    if is_trained(config, epochs):
        return _result(run, epochs)
    with ranks.first():
        source = open_source(run, progress, keep=True)
    device = pick_device()
    choice = loader_of(run, source.train, device)
    trainer = Trainer(replace(config, loader=choice.loader), source, device, ranks)
    if epochs:
        load_state(run.resume, trainer.backbone, trainer.optimizer, trainer.scaler)
    ranks.barrier()

    progress.line(_what_is_trained(config, source, trainer, epochs))
    progress.line(f"train: --loader {choice.loader}, {choice.why}")
    train_epochs(
        run,
        trainer,
        epochs,
        progress,
        last=config.epochs,
        is_done=lambda done: is_trained(config, done),
        note=lambda done: _loss_and_cqi(config, done),
    )
    ranks.barrier()
    return _result(run, epochs)


def check_train(run: RunFolder) -> None:
    """Raise InputError when a training anew would find no images, or no feature maps in the backbone."""
    config = run.config
    load_source(config.data, config.data_root, config.subset, skip_bad=config.on_bad_image == "skip")
    make_backbone(config.backbone, 2).feature_shape(config.image_size)


def train_epochs(
    run: RunFolder,
    trainer: Trainer,
    epochs: list[Epoch],
    progress: Progress,
    *,
    last: int,
    is_done: Callable[[list[Epoch]], bool],
    note: Callable[[list[Epoch]], str],
    stage: str = "train",
    keep: Callable[[int], bool] = lambda epoch: True,
) -> None:
    """Train after `epochs`, which grow, until `is_done` says so of them, at the latest after epoch `last`.

    note: what to say of the last epoch; keep: whether to keep an epoch's weights. The files of an epoch are written
    beside the next one, and all when this returns, well or not.
    """
    ranks = trainer.ranks
    images = trainer.images_of_epoch * (last - len(epochs))
    with (
        run.recording(stage) if ranks.rank == 0 else nullcontext({}) as facts,
        Background() as background,
        progress.task(stage, total=images, unit="images") as task,
    ):
        facts["hardware"], facts["processes"] = describe(trainer.device, trainer.dtype), ranks.size
        facts["loader"] = trainer.config.loader
        while not is_done(epochs):
            said = f"epoch {len(epochs) + 1} of {last}  {note(epochs) if epochs else ''}"
            epochs.append(trainer.run_epoch(len(epochs) + 1, task, note=said))
            if ranks.rank == 0:
                background.submit(_commit(run, list(epochs), trainer, keep(epochs[-1].epoch)))
            facts["images_per_second"] = round(task.rate, 1)
            facts["data_wait"] = round(trainer.data_wait, 4)
            limit = "at most " if run.config.until_converged and stage == "train" else ""
            progress.line(
                f"epoch {len(epochs):>3} of {last}  {note(epochs)}  top-1 {epochs[-1].top1:.4f}  "
                f"{task.rate:,.0f} images/s  {limit}{format_seconds(task.seconds_left)} left"
            )


def _commit(run: RunFolder, epochs: list[Epoch], trainer: Trainer, keep_weights: bool) -> Callable[[], None]:
    """A job that makes the last epoch durable, as it is now."""
    state = TrainingState.capture(
        epochs[-1].epoch, trainer.backbone, trainer.optimizer, trainer.scaler, loader=trainer.config.loader
    )

    def write() -> None:
        in_memory = state.on_cpu()
        if keep_weights:
            run.weights.mkdir(exist_ok=True)
            trainer.backbone.save(run.weights_of(epochs[-1].epoch), in_memory.model)
        write_epochs(run.losses_csv, epochs)
        in_memory.write(run.resume)  # the commit: an epoch without it is trained again

    return write


def is_trained(config: Config, epochs: list[Epoch]) -> bool:
    """Whether training has reached its last epoch, or convergence if it was asked to stop there; a recorded one always
    has, once it has begun."""
    if config.data == RECORDED:
        return bool(epochs)
    return len(epochs) >= config.epochs or (config.until_converged and has_converged(config, epochs))


def committed_epochs(run: RunFolder, kind: type[Row] = Epoch) -> list[Row]:
    """The epochs that the training state covers; a row after them belongs to an epoch that was cut off. Of a recorded
    run, which has no such state, all."""
    epochs, done = read_epochs(run.losses_csv, kind), state_facts(run.resume)["epoch"]
    if run.config.data == RECORDED:
        return epochs
    if len(epochs) < done:
        raise FmcefastError(
            f"{run.losses_csv} has {len(epochs)} epochs and the training state {done}: rows are missing. Put the "
            "file back, or start again with --force."
        )
    return epochs[:done]


def has_converged(config: Config, epochs: list[Epoch]) -> bool:
    """Whether the CQI of a full window was at most mu in one of the epochs."""
    return loss_has_converged(
        [row.loss for row in epochs],
        mu=config.mu,
        alpha=config.alpha,
        window=config.window,
        smoothing=config.smoothing,
        start=config.start,
    )


def _result(run: RunFolder, epochs: list[Epoch]) -> TrainResult:
    left_out = len(read_split(run.split_json, run.path).left_out) if run.split_json.exists() else 0
    seconds, last = sum(row.seconds for row in epochs), epochs[-1]
    return TrainResult(len(epochs), last.loss, last.top1, has_converged(run.config, epochs), seconds, left_out)


def _what_is_trained(config: Config, source: Source, trainer: Trainer, epochs: list[Epoch]) -> str:
    left_out = f" ({len(source.left_out):,} that cannot be decoded left out)" if source.left_out else ""
    processes = f", {trainer.ranks.size} processes" if trainer.ranks.size > 1 else ""
    going_on = f"; going on after epoch {len(epochs)}" if epochs else ""
    return (
        f"train: {config.backbone} on {config.data}, {len(source.train):,} images of {config.image_size} px, "
        f"{len(source.test):,} held out{left_out}; {describe(trainer.device, trainer.dtype)}{processes}{going_on}"
    )


def _loss_and_cqi(config: Config, epochs: list[Epoch]) -> str:
    losses = [row.loss for row in epochs]
    value = cqi(losses, alpha=config.alpha, window=config.window, smoothing=config.smoothing)[-1]
    shown = f"{value:.2e}" if len(losses) > 1 else "-"
    return f"loss {losses[-1]:.4f}  CQI {shown} (mu {config.mu:g})"
