"""Records trainings of Lightning."""

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fmcefast.callbacks.resuming import epochs_before
from fmcefast.convergence.stopping import Stopping
from fmcefast.errors import InputError
from fmcefast.recorder.recorder import ConvergenceRecorder

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.rank_zero import rank_zero_warn
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]
        from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[assignment]
        from pytorch_lightning.utilities.rank_zero import rank_zero_warn
    except ImportError as error:
        raise ImportError("Lightning is not installed. Install it: pip install 'fmcefast[lightning]'") from error


class ConvergenceCallback(Callback):
    """Records every epoch of a Trainer with a ConvergenceRecorder, and logs its CQI as `cqi` from the second epoch on.

        trainer = Trainer(callbacks=[ConvergenceCallback("runs/mine", stop=True, mu=1e-3)])

    run, settings: as for ConvergenceRecorder, `modules` and `images` among them: modules of the LightningModule, whose
    forward(images) the first process alone runs for them, once before the first epoch too. monitor: the training loss,
    as training_step logs it. Its mean over the epoch is recorded, weighted by batch size and taken over all processes,
    whether it is logged for steps, epochs or both. stop: end the training when the loss has converged, or when another
    metric has: Stopping("val_acc", mode="max"). resume: let the epochs follow those that the folder holds.

    A training resumed from a checkpoint continues in the folder after that checkpoint's epoch; a `fast_dev_run` leaves
    nothing. Raises InputError when a metric was not logged, for a new training in a folder that holds one, and what
    ConvergenceRecorder raises.
    """

    def __init__(
        self,
        run: str | Path,
        monitor: str = "train_loss",
        stop: bool | Stopping = False,
        *,
        resume: bool = False,
        **settings: Any,
    ):
        self.run, self.monitor, self.stop, self.resume = run, monitor, stop, resume
        self._settings = settings
        self.recorder: ConvergenceRecorder | None = None  # in the first process
        self._lr: float | None = None
        self._recorded = 0  # epochs before the Trainer's first one
        self._means = _EpochMeans([monitor, *([stop.monitor] if isinstance(stop, Stopping) else [])])
        self._stop_values: list[float] = []
        self._has_begun = False  # a batch of the current epoch has ended

    def state_dict(self) -> dict[str, Any]:
        return {"stop_values": self._stop_values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stop_values = list(state_dict["stop_values"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            name = type(pl_module).__name__
            self.recorder = ConvergenceRecorder(self.run, resume=True, **{"name": name, **self._settings})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.recorder is not None:
            self.recorder.maturity(pl_module)  # what it cannot tell is refused before the first epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.recorder is not None:
            self._recorded = epochs_before(
                self.recorder,
                trainer.current_epoch + 1,
                from_checkpoint=trainer.global_step > 0,
                resume=self.resume,
                how="trainer.fit(..., ckpt_path=FILE)",
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._means.begin(trainer)
        self._has_begun = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._means.begin_batch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._has_begun and batch_idx > 0:
            rank_zero_warn(
                f"Epoch {trainer.current_epoch + 1} goes on in its middle: the recorded loss is the mean from batch "
                f"{batch_idx + 1} on. Resume from the end of an epoch to record the mean of all."
            )
        self._has_begun = True
        self._means.end_batch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        loss = self._means.mean(trainer, self.monitor)
        if loss is None:
            raise _not_logged(trainer, self.monitor)
        state = trainer.strategy.lightning_module_state_dict()  # by all processes: it may be gathered from them
        stops = isinstance(self.stop, Stopping) and self._stops(trainer, self.stop)
        progress: tuple[float, bool, int] = (nan, False, 0)  # in the other processes
        if self.recorder is not None:
            epoch = self._recorded + trainer.current_epoch + 1
            converged = self.recorder.epoch_end(pl_module, loss, lr=self._lr, epoch=epoch, state=state)
            progress = self.recorder.cqi, stops or (self.stop is True and converged), self.recorder.epochs
        cqi, stops, epochs = trainer.strategy.broadcast(progress)
        if epochs > 1:
            pl_module.log("cqi", cqi, sync_dist=True)
        trainer.should_stop = trainer.should_stop or stops

    def _stops(self, trainer: Trainer, stop: Stopping) -> bool:
        value, every = self._means.mean(trainer, stop.monitor), trainer.check_val_every_n_epoch
        if value is not None:
            self._stop_values.append(value)
        elif every is not None and (trainer.current_epoch + 1) % every == 0:
            raise _not_logged(trainer, stop.monitor)
        return stop.reached(self._stop_values)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.recorder is not None:
            self.recorder.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


class _EpochMeans:
    """Means of logged metrics over an epoch and all processes, weighted by batch size.

    Lightning takes the mean of what is logged with on_epoch=True. Of what is logged for steps only it keeps the last
    value, so each value is logged once more, for the epoch.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        self._before_epoch: dict[str, Tensor] = {}
        self._before_batch: dict[str, Tensor] = {}
        self._logged_again: set[str] = set()

    def begin(self, trainer: Trainer) -> None:
        """At the beginning of an epoch."""
        self._before_epoch = dict(trainer.callback_metrics)
        self._logged_again.clear()

    def begin_batch(self, trainer: Trainer) -> None:
        self._before_batch = dict(trainer.callback_metrics)

    def end_batch(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        for name in self.names:
            is_logged_for_epochs = name not in metrics or f"{name}_step" in metrics
            if is_logged_for_epochs or _is_same(metrics[name], self._before_batch.get(name)):
                continue
            self._logged_again.add(name)
            try:
                module.log(f"{name}_mean", metrics[name], on_step=False, on_epoch=True, logger=False, sync_dist=True)
            except MisconfigurationException as error:
                raise InputError(
                    f"The mean of {name!r} needs the number of samples in a batch, which cannot be seen here. Log it "
                    f'in training_step: self.log("{name}", loss, on_epoch=True, batch_size=N)'
                ) from error

    def mean(self, trainer: Trainer, name: str) -> float | None:
        """At the end of an epoch; None for a metric that was not logged in it."""
        value = trainer.callback_metrics.get(f"{name}_mean" if name in self._logged_again else name)
        if value is None or _is_same(value, self._before_epoch.get(name)):
            return None
        return float(trainer.strategy.reduce(value.clone(), reduce_op="mean"))


def _is_same(value: Tensor, other: Tensor | None) -> bool:
    """Whether Lightning hands out the same logged value again."""
    return other is not None and value.data_ptr() == other.data_ptr()


def _not_logged(trainer: Trainer, name: str) -> InputError:
    there = ", ".join(map(repr, trainer.callback_metrics)) or "no metrics"
    return InputError(
        f"No {name!r} was logged in epoch {trainer.current_epoch + 1}; there are {there}. Log it in the steps of your "
        f'module: self.log("{name}", value, on_epoch=True)'
    )
