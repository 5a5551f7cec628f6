"""The Original Task: train a backbone, keep the loss and the weights of every epoch ([FMCE] IV-A and V-A)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fmcefast.convergence.cqi import cqi
from fmcefast.convergence.criterion import converged_at
from fmcefast.data.image_set import Source
from fmcefast.data.split import read_split
from fmcefast.errors import FmcefastError, InputError
from fmcefast.models.backbones import make_backbone
from fmcefast.models.networks import check_backbone
from fmcefast.models.weights import check_safetensors
from fmcefast.progress import Progress
from fmcefast.run.config import Config
from fmcefast.run.data_facts import read_data_facts, write_data_facts
from fmcefast.run.epochs import Epoch, read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import configured_source, held_source, loader_of, open_source, resident_advice
from fmcefast.run.resume import load_state
from fmcefast.run.tensorboard import check_tensorboard
from fmcefast.runtime.device import pick_device
from fmcefast.runtime.ranks import current_ranks
from fmcefast.stages.rates import Rates
from fmcefast.stages.stage import Cost, Stage, problem
from fmcefast.text import counted
from fmcefast.training.loop import committed_epochs, train_epochs
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


class Train(Stage[TrainResult]):
    """Leaves losses.csv, one safetensors file of weights an epoch and resume.safetensors.

    On a CPU the result depends on configuration, loader, thread and process count alone, bit for bit, interrupted or
    not; `loader=auto` keeps the loader that training began with. Under torchrun the processes share every batch; each
    has batch statistics of its own.
    """

    name = "train"
    costly = True
    parallel = True

    def outputs(self, run: RunFolder) -> list[Path]:
        # The commit goes first.
        epochs = [run.resume, run.losses_csv, run.maturity_csv, run.weights]
        return [*epochs, *self._of_images(run), run.tensorboard, run.seeds]

    def _of_images(self, run: RunFolder) -> list[Path]:
        """What is written before the first epoch."""
        return [run.split_json, run.data_json, run.photos]

    def is_begun(self, run: RunFolder) -> bool:
        return any(path.exists() for path in self.outputs(run) if path not in self._of_images(run))

    def is_done(self, run: RunFolder) -> bool:
        """Whether training has reached its last epoch, or convergence with `until_converged`. A recorded training is
        done once it has an epoch."""
        return is_trained(run.config, _epochs(run))

    def check(self, run: RunFolder, *, resumes: bool) -> None:
        config = run.config
        check_tensorboard(run)
        check_backbone(config.backbone)
        if self.is_begun(run):
            configured_source(config)
            make_backbone(config.backbone, 2).feature_shape(config.image_size)

    def run(self, run: RunFolder, progress: Progress) -> TrainResult:
        """Train from fresh weights, or continue after the last epoch whose training state was saved.

        Raises FmcefastError when the loss is not finite, naming epoch and batch.
        """
        check_tensorboard(run)
        config, ranks = run.config, current_ranks()
        ranks.barrier()  # a file that rank 0 replaces later is read by all now
        epochs = committed_epochs(Epoch, run)
        with ranks.first():
            source = open_source(run, progress, keep=True)
            if ranks.rank == 0:
                write_data_facts(run, source)
        device = pick_device()
        choice = loader_of(run, source.train, device)
        source = held_source(run, source, device, choice.loader, progress)
        trainer = Trainer(replace(config, loader=choice.loader), source, device, ranks)
        if epochs:
            load_state(run.resume, trainer.backbone, trainer.optimizer, trainer.scaler)
        ranks.barrier()

        progress.line(_introduction(config, source, trainer, epochs))
        progress.line(f"train: --loader {choice.loader}, {choice.why}")
        if not epochs and (advice := resident_advice(run, source)):
            progress.line(f"train: {advice}")
        train_epochs(
            run,
            trainer,
            epochs,
            progress,
            last=config.epochs,
            is_done=lambda epochs: is_trained(config, epochs),
            note=lambda epochs: _loss_and_cqi(config, epochs),
            stage=self.name,
            may_end_early=config.until_converged,
        )
        ranks.barrier()
        return _result(run, epochs)

    def load(self, run: RunFolder) -> TrainResult:
        epochs = _epochs(run)
        if not epochs:
            raise InputError(f"{run} is not trained yet. Train it: fmcefast train {run}")
        return _result(run, epochs)

    def explain(self, run: RunFolder) -> str | None:
        if self.is_done(run):
            return counted(len(_epochs(run)), "epoch")
        epochs, config = committed_epochs(Epoch, run), run.config
        most = "at most " if config.until_converged else ""
        return f"{len(epochs)} of {most}{config.epochs} epochs" if epochs else None

    def command(self, run: RunFolder, *, redo: bool = False) -> str | None:
        return None if run.config.is_recorded else super().command(run, redo=redo)

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        yield from problem(read_epochs, run.losses_csv)
        if run.split_json.exists():
            yield from problem(read_split, run.split_json, run.path)
        yield from problem(read_data_facts, run)
        if run.resume.exists():
            yield from problem(check_safetensors, run.resume)

    def cost(self, run: RunFolder, images: int, rates: Rates) -> Cost:
        if self.is_done(run):
            return Cost(self.name, "done")
        config = run.config
        epochs = config.epochs - len(committed_epochs(Epoch, run))
        weights = sum(tensor.nbytes for tensor in rates.backbone.state_dict().values())
        rate, text = rates.measured(self.name, rates.train)
        most = "at most " if config.until_converged else ""
        # The state to resume from holds the weights and Adam's two moments, old and new at once.
        return Cost(
            self.name,
            f"{most}{epochs} epochs of {images:,} images",
            epochs * images / rate,
            (epochs + 6) * weights,
            text,
        )


train = Train()


def is_trained(config: Config, epochs: list[Epoch]) -> bool:
    """Whether these epochs are all that a training under `config` has."""
    if config.is_recorded:
        return bool(epochs)
    return len(epochs) >= config.epochs or (config.until_converged and is_converged(config, epochs))


def is_converged(config: Config, epochs: list[Epoch]) -> bool:
    """Whether the loss had converged in one of the epochs."""
    return bool(epochs) and converged_at([row.loss for row in epochs], **config.convergence_settings) is not None


def _epochs(run: RunFolder) -> list[Epoch]:
    """The epochs that count. A finished training needs no state to resume from: that file may be gone or damaged."""
    if not run.resume.exists():
        return read_epochs(run.losses_csv)
    try:
        return committed_epochs(Epoch, run)
    except FmcefastError:
        epochs = read_epochs(run.losses_csv)
        if not is_trained(run.config, epochs):
            raise
        return epochs


def _result(run: RunFolder, epochs: list[Epoch]) -> TrainResult:
    left_out = len(read_split(run.split_json, run.path).left_out) if run.split_json.exists() else 0
    seconds, last = sum(row.seconds for row in epochs), epochs[-1]
    return TrainResult(len(epochs), last.loss, last.top1, is_converged(run.config, epochs), seconds, left_out)


def _introduction(config: Config, source: Source, trainer: Trainer, epochs: list[Epoch]) -> str:
    left_out = f" ({len(source.left_out):,} that cannot be decoded left out)" if source.left_out else ""
    processes = f", {trainer.ranks.size} processes" if trainer.ranks.size > 1 else ""
    continued = f"; continuing after epoch {len(epochs)}" if epochs else ""
    return (
        f"train: {config.backbone} on {config.data}, {len(source.train):,} images of {config.image_size} px, "
        f"{len(source.test):,} held out{left_out}; {trainer.hardware}{processes}{continued}"
    )


def _loss_and_cqi(config: Config, epochs: list[Epoch]) -> str:
    losses = [row.loss for row in epochs]
    value = cqi(losses, **config.cqi_settings)[-1]
    shown = f"{value:.2e}" if len(losses) > 1 else "-"
    return f"loss {losses[-1]:.4f}  CQI {shown} (mu {config.mu:g})"
