"""Records trainings of Lightning."""

from math import nan
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from fmcefast.errors import InputError
from fmcefast.recorder.recorder import ConvergenceRecorder

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]
    except ImportError as error:
        raise ImportError("Lightning is not installed. Install it: pip install 'fmcefast[lightning]'") from error


class ConvergenceCallback(Callback):
    """Records every epoch of a Trainer with a ConvergenceRecorder, and logs its CQI as `cqi` from the second epoch on.

        trainer = Trainer(callbacks=[ConvergenceCallback("runs/mine", stop=True, mu=1e-3)])

    run, settings: as for ConvergenceRecorder, `modules` and `images` among them: modules of the LightningModule, whose
    forward(images) the first process alone runs for them, once before the first epoch too. monitor: the mean training
    loss of an epoch, as training_step logs it: self.log("train_loss", loss, on_epoch=True), and sync_dist=True where
    several processes train. stop: end the training when the loss has converged.

    A training resumed from a checkpoint continues in the folder after that checkpoint's epoch; a `fast_dev_run` leaves
    nothing. Raises InputError when `monitor` was not logged, and what ConvergenceRecorder raises.
    """

    def __init__(self, run: str | Path, monitor: str = "train_loss", stop: bool = False, **settings: Any):
        self.run, self.monitor, self.stop = run, monitor, stop
        self._settings = settings
        self.recorder: ConvergenceRecorder | None = None  # in the first process
        self._lr: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.recorder = ConvergenceRecorder(self.run, **{"name": type(pl_module).__name__, **self._settings})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.recorder is not None:
            self.recorder.maturity(pl_module)  # what it cannot tell is refused before the first epoch

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise InputError(
                f"No {self.monitor!r} was logged in epoch {trainer.current_epoch + 1}; there are "
                f"{', '.join(map(repr, metrics)) or 'no metrics'}. Log it in training_step: "
                f'self.log("{self.monitor}", loss, on_epoch=True)'
            )
        state = trainer.strategy.lightning_module_state_dict()  # by all processes: it may be gathered from them
        progress: tuple[float, bool, int] = (nan, False, 0)  # in the other processes
        if self.recorder is not None:
            epoch, loss = trainer.current_epoch + 1, float(metrics[self.monitor])
            self.recorder.epoch_end(pl_module, loss, lr=self._lr, epoch=epoch, state=state)
            progress = self.recorder.cqi, self.recorder.converged, self.recorder.epochs
        cqi, converged, epochs = trainer.strategy.broadcast(progress)
        if epochs > 1:
            pl_module.log("cqi", cqi, sync_dist=True)
        trainer.should_stop = trainer.should_stop or (self.stop and converged)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.recorder is not None:
            self.recorder.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
