"""Records trainings of Hugging Face's Trainer."""

import warnings
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any

from fmcefast.callbacks.resuming import epochs_before
from fmcefast.convergence.stopping import Stopping
from fmcefast.errors import InputError
from fmcefast.recorder.recorder import ConvergenceRecorder

try:
    from accelerate.utils import broadcast_object_list
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import has_length
except ImportError as error:
    raise ImportError("transformers is not installed. Install it: pip install 'fmcefast[transformers]'") from error


class ConvergenceCallback(TrainerCallback):
    """Records every epoch of a Trainer with a ConvergenceRecorder.

        trainer = Trainer(model, args, train_dataset=images, callbacks=[ConvergenceCallback("runs/mine", stop=True)])

    run, settings: as for ConvergenceRecorder, `modules` and `images` among them; batches may be dictionaries with
    `pixel_values`, and the first process alone runs the model for them, once before the first epoch too. stop: end the
    training when the loss has converged, or when another logged metric has: Stopping("eval_accuracy", mode="max").
    resume: let the epochs follow those that the folder holds.

    The loss of an epoch is the mean logged loss of its steps, with any logging strategy: at the end of an epoch the
    Trainer is asked to log the remaining steps. A training resumed from a checkpoint continues in the folder after that
    checkpoint's epoch. Resumed in the middle of an epoch, it counts the losses that were logged before, and a warning
    names the steps of which none was. Raises InputError when a metric is not logged, for a new training in a folder
    that holds one, and what ConvergenceRecorder raises.
    """

    def __init__(self, run: str | Path, stop: bool | Stopping = False, *, resume: bool = False, **settings: Any):
        self.run, self.stop, self.resume = run, stop, resume
        self._settings = settings
        self.recorder: ConvergenceRecorder | None = None  # in the first process
        self._recorded = 0  # epochs before the Trainer's first one
        # Of the current epoch: its steps, how many of them have an unknown loss, the sum of the other losses, the
        # learning rate, whether it has ended.
        self._first_step = self._logged_step = self._unknown = 0
        self._sum = 0.0
        self._lr: float | None = None
        self._ended = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        self._close()  # a training before may have failed
        if self._metric and self._metric.startswith("eval_") and args.eval_strategy == "no":
            raise InputError(f"{self._metric!r} is never logged. Give the Trainer's arguments an eval_strategy.")
        if state.is_world_process_zero:
            self.recorder = ConvergenceRecorder(self.run, resume=True, **self._settings)
            try:
                self._recorded = epochs_before(
                    self.recorder,
                    int(state.epoch or 0) + 1,
                    from_checkpoint=state.global_step > 0,
                    resume=self.resume,
                    how="trainer.train(resume_from_checkpoint=FOLDER)",
                )
                self.recorder.maturity(model)  # what it cannot tell is refused before the first epoch
            except InputError:
                self._close()
                raise
        self._begin(state.global_step)
        if state.global_step > 0 and has_length(train_dataloader) and not args.ignore_data_skip:
            steps = max(ceil(len(train_dataloader) / args.gradient_accumulation_steps), 1)
            self._take_up(state.global_step - state.global_step % steps, state)

    def _take_up(self, first: int, state: TrainerState) -> None:
        """Count the losses logged in the current epoch, which began after the step `first`, before the checkpoint."""
        self._first_step, self._unknown = first, state.global_step - first
        before = 0
        for entry in state.log_history:
            if "loss" in entry:
                step = int(entry["step"])
                if before >= first:
                    self._sum += entry["loss"] * (step - before)
                    self._unknown -= step - before
                before = step

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._require_recorded()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if logs is None:
            return
        if isinstance(self.stop, Stopping) and self.stop.monitor in logs:
            values = [entry[self.stop.monitor] for entry in state.log_history if self.stop.monitor in entry]
            control.should_training_stop = control.should_training_stop or self.stop.reached(values)
        if "loss" not in logs:
            return
        self._sum += logs["loss"] * (state.global_step - self._logged_step)
        self._logged_step = state.global_step
        self._lr = logs.get("learning_rate")
        if self._ended:
            self._record(state, control, model)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step == self._first_step:  # an epoch without data
            return
        self._ended = True
        if self._logged_step == state.global_step:
            self._record(state, control, model)
        else:
            control.should_log = True  # comes next, with the steps that are not logged yet

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._close()
        self._require_recorded()
        if self._metric and not any(self._metric in entry for entry in state.log_history):
            raise self._not_logged(name for entry in state.log_history for name in entry)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._metric and self._metric.startswith("eval_") and self._metric not in (metrics or {}):
            raise self._not_logged(metrics or {})

    @property
    def _metric(self) -> str | None:
        """What is to converge before the training stops, if not the recorded loss."""
        return self.stop.monitor if isinstance(self.stop, Stopping) else None

    def _not_logged(self, names: Iterable[str]) -> InputError:
        there = ", ".join(map(repr, dict.fromkeys(names))) or "no metrics"
        return InputError(f"No {self._metric!r} was logged, which `stop` waits for; there are {there}.")

    def _begin(self, step: int) -> None:
        """An epoch, after this step."""
        self._first_step = self._logged_step = step
        self._sum, self._unknown, self._lr, self._ended = 0.0, 0, None, False

    def _record(self, state: TrainerState, control: TrainerControl, model: Any) -> None:
        converged = [False]
        if self.recorder is not None:
            epoch, steps = self._recorded + ceil(state.epoch), state.global_step - self._first_step
            if self._unknown:
                warnings.warn(
                    f"Epoch {epoch} was resumed in its middle, and the losses of {self._unknown} of its {steps} steps "
                    "had not been logged: the mean of the others is recorded. Log as often as checkpoints are saved.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            loss = self._sum / (steps - self._unknown)
            converged = [self.recorder.epoch_end(model, loss, lr=self._lr, epoch=epoch)]
        self._begin(state.global_step)
        if self.stop is True and broadcast_object_list(converged)[0]:
            control.should_training_stop = True

    def _require_recorded(self) -> None:
        if self._ended:
            raise InputError(
                'The Trainer logged no "loss" at the end of an epoch. Give it TrainingArguments with '
                'logging_strategy="epoch".'
            )

    def _close(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
