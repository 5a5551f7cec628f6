"""Training one backbone with an FMCE-Net as auxiliary head ([FMCE++] III)."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fmcefast.errors import InputError
from fmcefast.evaluation.held_out import load_fmce_net
from fmcefast.finetuning.cell import Cell, Init
from fmcefast.losses.representation_auxiliary import check_raf
from fmcefast.models.fmce_net import FMCENet
from fmcefast.models.weights import read_weights
from fmcefast.progress import Progress
from fmcefast.run.config import check_value
from fmcefast.run.epochs import FinetuningEpoch
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import loader_of, open_source
from fmcefast.run.resume import load_state
from fmcefast.runtime.device import describe, pick_device
from fmcefast.runtime.ranks import current_ranks
from fmcefast.stages.markers import require_markers
from fmcefast.stages.train import committed_epochs, train_epochs
from fmcefast.training.objectives import RALTrainer


@dataclass(frozen=True)
class FinetuneResult:
    """Of the last epoch: losses (None where they count for nothing), top1 and mean predicted FMCS of held-out images;
    weights: its file; seconds: of all epochs."""

    raf: float
    seed: int
    epochs: int
    phases: int
    loss: float
    base_loss: float
    fmcs_loss: float | None
    top1: float
    fmcs: float
    weights: str
    seconds: float

    def explain(self) -> str:
        return (
            f"finetune: RAF {self.raf:g}, seed {self.seed}, {self.epochs} epochs: top-1 {self.top1:.4f} and mean "
            f"predicted FMCS {self.fmcs:.2f} of {self.phases} on held-out images; {self.weights}"
        )


def finetune(
    run: RunFolder,
    progress: Progress,
    *,
    raf: float,
    seed: int | None = None,
    epochs: int | None = None,
    init: Path | None = None,
    force: bool = False,
) -> FinetuneResult:
    """Train the run's backbone anew under the run's FMCE-Net.

    seed: the run's own by default; epochs: of the run's schedule, E_K by default; init: weights to begin with instead
    of fresh ones. Leaves finetune/raf-0.80-seed-0/ with losses.csv and the last weights, and goes on there after an
    interruption. Raises InputError for a raf outside 0..1, more epochs than the schedule has, an FMCE-Net that does
    not fit, and a folder that was made from something else.
    """
    config, last = run.config, require_markers(run).markers[-1]
    epochs = last if epochs is None else epochs
    if not 1 <= epochs <= config.epochs:
        raise InputError(f"--epochs must lie in 1..{config.epochs}, the length of the run's schedule, not {epochs}.")
    load_fmce_net(run)  # one that is missing shows here
    if init is not None:
        read_weights(init)
    cell = Cell(
        run=run,
        raf=check_raf(raf),
        seed=config.seed if seed is None else check_value("seed", seed),
        epochs=epochs,
        fmce_net=run.fmce_net,
        init=Init.of(init) if init else None,
        until_convergence=epochs == last,
    )
    return train_cell(cell, progress, force)


def train_cell(cell: Cell, progress: Progress, force: bool = False) -> FinetuneResult:
    """Train a cell as far as it is not done. Raises what `finetune` does, and FmcefastError when another is at it."""
    ranks, net = current_ranks(), load_net(cell)
    with ranks.first(), ExitStack() as stack:
        if ranks.rank == 0:
            stack.enter_context(cell.locked())
            if force or not cell.finished:
                open_source(cell.run)  # images that are gone show here
            cell.begin(force)
        lock = stack.pop_all()
    with lock:
        if not cell.finished:
            _train(cell, net, progress)
            ranks.barrier()
            if ranks.rank == 0:
                cell.finish()
            ranks.barrier()
    rows = cell.rows()
    last = rows[-1]
    return FinetuneResult(
        cell.raf,
        cell.seed,
        len(rows),
        net.phases,
        last.loss,
        last.base_loss,
        last.fmcs_loss,
        last.top1,
        last.fmcs,
        str(cell.place.weights_of(last.epoch)),
        sum(row.seconds for row in rows),
    )


def load_net(cell: Cell) -> FMCENet:
    """The FMCE-Net of a cell. Raises InputError when it is missing or of another number of phases."""
    net, phases = FMCENet.from_pretrained(cell.fmce_net), require_markers(cell.run).phases
    if net.phases != phases:
        raise InputError(
            f"{cell.fmce_net} tells {net.phases} scores apart and the run has {phases} phases. Fit it again: fmcefast "
            f"fit {cell.run} --force"
        )
    return net


def _train(cell: Cell, net: FMCENet, progress: Progress) -> None:
    run, place, ranks = cell.run, cell.place, current_ranks()
    source, device = open_source(run), pick_device()
    if run.config.compile:
        torch.compiler.reset()  # else the cells of a process would share the limit of recompilations
    loader = loader_of(run, source.train, device).loader
    trainer = RALTrainer(replace(place.config, loader=loader), source, device, net, cell.raf, ranks)
    epochs = committed_epochs(place, FinetuningEpoch)
    if epochs:
        load_state(place.resume, trainer.backbone, trainer.optimizer, trainer.scaler)
    elif cell.init is not None:
        trainer.backbone.take(read_weights(cell.init.path), cell.init.path)
    ranks.barrier()
    begins = f"from {cell.init.path}" if cell.init else "from fresh weights"
    progress.line(
        f"finetune: {cell}: {cell.epochs} epochs {f'after epoch {len(epochs)}' if epochs else begins}; "
        f"{describe(device, trainer.dtype)}, --loader {loader}"
    )
    train_epochs(
        place,
        trainer,
        epochs,
        progress,
        last=cell.epochs,
        is_done=lambda done: len(done) >= cell.epochs,
        note=lambda done: f"loss {done[-1].loss:.4f}  FMCS {done[-1].fmcs:.2f}",
        stage="finetune",
        keep=lambda epoch: epoch == cell.epochs,
    )
