"""Trains epoch by epoch; each epoch is saved while the next one runs, and interrupted training resumes."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from fmcefast.errors import FmcefastError
from fmcefast.progress import Progress, format_seconds
from fmcefast.run.epochs import Epoch, read_epochs_of, write_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.history import HistoryEntry
from fmcefast.run.resume import TrainingState, state_facts
from fmcefast.run.tensorboard import write_events
from fmcefast.runtime.threads import using_threads
from fmcefast.training.background import Background
from fmcefast.training.memory import lack_of_memory
from fmcefast.training.trainer import Trainer

Row = TypeVar("Row", bound=Epoch)


def train_epochs(
    run: RunFolder,
    trainer: Trainer,
    epochs: list[Row],
    progress: Progress,
    *,
    last: int,
    is_done: Callable[[list[Row]], bool],
    note: Callable[[list[Row]], str],
    stage: str,
    keep_weights: Callable[[int], bool] = lambda epoch: True,
    may_end_early: bool = False,
) -> None:
    """Continue training, appending to `epochs`, until `is_done(epochs)`.

    last: the last epoch there can be; note: what to say of the epochs so far; keep_weights: whether to keep the weights
    of an epoch; may_end_early: whether `is_done` may hold before `last`. The files of an epoch are written beside the
    next one, and all of them before this returns or raises.
    """
    ranks = trainer.ranks
    if not is_done(epochs) and (lack := lack_of_memory(trainer)):
        progress.line(f"{stage}: {lack}")
    images = trainer.images_of_epoch * (last - len(epochs))
    with (
        using_threads(trainer.threads),
        run.recording(stage) if ranks.rank == 0 else nullcontext(HistoryEntry(stage)) as entry,
        Background() as background,
        progress.task(stage, total=images, unit="images") as task,
    ):
        entry.hardware, entry.processes = trainer.hardware, ranks.size
        entry.loader = trainer.config.loader
        while not is_done(epochs):
            current = f"epoch {len(epochs) + 1} of {last}  {note(epochs) if epochs else ''}"
            epochs.append(trainer.run_epoch(len(epochs) + 1, task, note=current))
            if ranks.rank == 0:
                background.submit(_commit(run, list(epochs), trainer, keep_weights(epochs[-1].epoch)))
            entry.rate = round(task.rate, 1)
            entry.data_wait = round(trainer.data_wait, 4)
            limit = "at most " if may_end_early else ""
            progress.line(
                f"epoch {len(epochs):>3} of {last}  {note(epochs)}  top-1 {epochs[-1].top1:.4f}  "
                f"{task.rate:,.0f} images/s  {limit}{format_seconds(task.seconds_left)} left"
            )
    trainer.release_graphs()  # for what this process does next


def committed_epochs(kind: type[Row], run: RunFolder) -> list[Row]:
    """The epochs that the training state covers; a later row belongs to an epoch that was cut off. A recorded run has
    no such state: all its epochs count.

    Raises FmcefastError when rows are missing.
    """
    epochs, done = read_epochs_of(kind, run.losses_csv), state_facts(run.resume)["epoch"]
    if run.config.is_recorded:
        return epochs
    if len(epochs) < done:
        raise FmcefastError(
            f"{run.losses_csv} has {len(epochs)} epochs, but the training state has {done}: rows are missing. Put the "
            "file back, or start again with `force`."
        )
    return epochs[:done]


def _commit(run: RunFolder, epochs: list[Row], trainer: Trainer, keep_weights: bool) -> Callable[[], None]:
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
        write_events(run, epochs)

    return write
