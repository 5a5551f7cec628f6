"""Training one cell: a backbone under a frozen FMCE-Net ([FMCE++] III)."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from fmcefast.evaluation.held_out import require_phases
from fmcefast.finetuning.cell import Cell
from fmcefast.models.fmce_net import FMCENet
from fmcefast.progress import Progress
from fmcefast.run.epochs import FinetuningEpoch
from fmcefast.run.images import held_source, loader_of, open_source
from fmcefast.run.resume import load_state
from fmcefast.runtime.device import pick_device
from fmcefast.runtime.ranks import current_ranks
from fmcefast.stages.markers import markers
from fmcefast.training.loop import committed_epochs, train_epochs
from fmcefast.training.objectives import RepresentationAuxiliary
from fmcefast.training.trainer import Trainer


@dataclass(frozen=True)
class FinetuneResult:
    """The last epoch: losses (None for a term of weight 0), top1 and mean predicted FMCS of held-out images; weights:
    its file; seconds: of all epochs."""

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

    @classmethod
    def of(cls, cell: Cell) -> "FinetuneResult":
        """The result of a finished cell. Raises FmcefastError when rows of its table are missing."""
        rows = cell.rows()
        last = rows[-1]
        return cls(
            raf=cell.raf,
            seed=cell.seed,
            epochs=len(rows),
            phases=cell.run.config.phases,
            loss=last.loss,
            base_loss=last.base_loss,
            fmcs_loss=last.fmcs_loss,
            top1=last.top1,
            fmcs=last.fmcs,
            weights=str(cell.place.weights_of(last.epoch)),
            seconds=sum(row.seconds for row in rows),
        )

    def explain(self) -> str:
        return (
            f"finetune: RAF {self.raf:g}, seed {self.seed}, {self.epochs} epochs: top-1 {self.top1:.4f} and mean "
            f"predicted FMCS {self.fmcs:.2f} of {self.phases} on held-out images; {self.weights}"
        )


def train_cell(cell: Cell, progress: Progress, force: bool = False) -> FinetuneResult:
    """Train what is left of a cell. Raises what `finetune` does, and FmcefastError when another process trains it."""
    ranks, net = current_ranks(), load_net(cell)
    with ranks.first(), ExitStack() as stack:
        if ranks.rank == 0:
            stack.enter_context(cell.locked())
            if force or not cell.finished:
                open_source(cell.run)  # raises when images are gone
            cell.begin(force)
        lock = stack.pop_all()
    with lock:
        if not cell.finished:
            _train(cell, net, progress)
            ranks.barrier()
            if ranks.rank == 0:
                cell.finish()
            ranks.barrier()
    return FinetuneResult.of(cell)


def load_net(cell: Cell) -> FMCENet:
    """The FMCE-Net of a cell. Raises InputError when it is missing or of another number of phases."""
    net, phases = FMCENet.from_pretrained(cell.fmce_net), len(markers.epochs(cell.run))
    require_phases(net, str(cell.fmce_net), phases, "the run", f"Fit it again: fmcefast fit {cell.run} --force")
    return net


def _train(cell: Cell, net: FMCENet, progress: Progress) -> None:
    run, place, ranks = cell.run, cell.place, current_ranks()
    source, device = open_source(run), pick_device()
    if run.config.compile:
        torch.compiler.reset()  # else the cells of a process would share the limit of recompilations
    loader = loader_of(run, source.train, device).loader
    source = held_source(run, source, device, loader, progress)
    config = replace(place.config, loader=loader)
    trainer = Trainer(config, source, device, ranks, RepresentationAuxiliary(net, cell.raf, config, device))
    epochs = committed_epochs(FinetuningEpoch, place)
    start = "from fresh weights"
    if epochs:
        load_state(place.resume, trainer.backbone, trainer.optimizer, trainer.scaler)
        start = f"after epoch {len(epochs)}"
    elif cell.init is not None:
        choice = trainer.backbone.load(cell.init.path, cell.init.key)
        start = f"from {cell.init.path}"
        for line in choice.explain(cell.init.path):
            progress.line(line)
    ranks.barrier()
    progress.line(f"finetune: {cell}: {cell.epochs} epochs {start}; {trainer.hardware}, --loader {loader}")
    train_epochs(
        place,
        trainer,
        epochs,
        progress,
        last=cell.epochs,
        is_done=lambda epochs: len(epochs) >= cell.epochs,
        note=lambda epochs: f"loss {epochs[-1].loss:.4f}  FMCS {epochs[-1].fmcs:.2f}",
        stage="finetune",
        keep_weights=lambda epoch: epoch == cell.epochs,
    )
