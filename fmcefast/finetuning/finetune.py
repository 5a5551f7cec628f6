"""Train a backbone with an FMCE-Net as auxiliary head ([FMCE++] III)."""

from collections.abc import Iterator
from pathlib import Path

from fmcefast.errors import InputError
from fmcefast.finetuning.begun import begun_sweep, finetune_command
from fmcefast.finetuning.cell import Cell, Init, finished_cells, table_cells, trainings_begun
from fmcefast.finetuning.cell_training import FinetuneResult, train_cell
from fmcefast.losses.representation_auxiliary import check_raf
from fmcefast.models.weights import WeightsFile, check_safetensors
from fmcefast.progress import Progress
from fmcefast.run.config import check_value
from fmcefast.run.folder import RunFolder
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
from fmcefast.stages.stage import Stage, problem


class Finetune(Stage[FinetuneResult]):
    """Leaves finetune/raf-0.80-seed-0/ with losses.csv and the last weights, a folder for each RAF and seed."""

    name = "finetune"
    costly = True
    on_request = True
    parallel = True

    def outputs(self, run: RunFolder) -> list[Path]:
        return [] if run.module else [run.finetune]

    def is_done(self, run: RunFolder) -> bool:
        """Whether there are trainings, and all of them are finished: there may always be another."""
        finished = trainings_begun(run)
        return bool(finished) and all(finished)

    def run(
        self,
        run: RunFolder,
        progress: Progress,
        *,
        raf: float,
        seed: int | None = None,
        epochs: int | None = None,
        init: Path | None = None,
        key: str | None = None,
        force: bool = False,
    ) -> FinetuneResult:
        """Train the run's backbone anew under the run's FMCE-Net, continuing after an interruption.

        seed: the run's own by default; epochs: how many of the run's schedule, E_K by default; init: weights to start
        from instead of fresh ones; key: which of the weights in that file (see WeightsFile); force: train the cell from
        the start, even if it is finished. Raises InputError for a raf outside 0..1, more epochs than the schedule has,
        an FMCE-Net that does not fit, and a folder whose cell has other settings.
        """
        config, last = run.config, markers.epochs(run)[-1]
        epochs = last if epochs is None else epochs
        if not 1 <= epochs <= config.epochs:
            raise InputError(
                f"`epochs` must lie in 1..{config.epochs}, the length of the run's schedule, not {epochs}."
            )
        fit.fmce_net(run)  # raises when it is missing
        if init is not None:
            WeightsFile(init, key)  # raises when it cannot be read
        elif key is not None:
            raise InputError("`key` names weights in the file of `init`. Give both.")
        cell = Cell(
            run=run,
            raf=check_raf(raf),
            seed=config.seed if seed is None else check_value("seed", seed),
            epochs=epochs,
            fmce_net=run.fmce_net,
            init=Init.of(init, key) if init else None,
            until_convergence=epochs == last,
        )
        return train_cell(cell, progress, force)

    def load(self, run: RunFolder) -> FinetuneResult:
        """The last finished training of a table, by RAF and seed."""
        cells = finished_cells(run)
        if not cells:
            raise InputError(f"{run} has no finished fine-tuning yet. Make one: fmcefast finetune {run} --raf 0.8")
        return FinetuneResult.of(cells[-1])

    def reason_to_redo(self, run: RunFolder) -> str | None:
        cells = table_cells(run)
        outdated = sum(map(_is_outdated, cells))
        return f"{outdated} of {len(cells)} under another FMCE-Net or other settings" if outdated else None

    def explain(self, run: RunFolder) -> str | None:
        for cell in finished_cells(run):
            cell.rows()  # raises for a damaged one
        finished = trainings_begun(run)
        return f"{sum(finished)} of {len(finished)} fine-tunings finished" if finished else None

    def command(self, run: RunFolder, *, redo: bool = False) -> str | None:
        """For the cells of a table; the weights that others began with have no name any more."""
        sweep = None if redo else begun_sweep(run)
        if sweep is not None:
            return sweep.command
        cells = [cell for cell in table_cells(run) if not cell.net_of_seed]
        todo = [cell for cell in cells if (_is_outdated(cell) if redo else not cell.finished)]
        return finetune_command(todo[0], redo=redo) if todo else None

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        problems = list(problem(finished_cells, run))
        yield from problems
        for cell in [] if problems else finished_cells(run):
            yield from problem(cell.rows)
            yield from problem(check_safetensors, cell.place.weights_of(cell.epochs))
        for path in run.finetune.rglob("*.safetensors"):
            yield from problem(check_safetensors, path)


finetune = Finetune()


def _is_outdated(cell: Cell) -> bool:
    """Whether the cell would be trained otherwise now."""
    return cell.epochs != markers.epochs(cell.run)[-1] or bool(cell.differing())
