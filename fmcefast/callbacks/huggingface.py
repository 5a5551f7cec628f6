"""Records trainings of Hugging Face's Trainer."""

from math import ceil
from pathlib import Path
from typing import Any

from fmcefast.errors import InputError
from fmcefast.recorder.recorder import ConvergenceRecorder

try:
    from accelerate.utils import broadcast_object_list
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError("transformers is not installed. Install it: pip install 'fmcefast[transformers]'") from error


class ConvergenceCallback(TrainerCallback):
    """Records every epoch of a Trainer with a ConvergenceRecorder.

        trainer = Trainer(model, args, train_dataset=images, callbacks=[ConvergenceCallback("runs/mine", stop=True)])

    run, settings: as for ConvergenceRecorder, `modules` and `images` among them; batches may be dictionaries with
    `pixel_values`, and the first process alone runs the model for them, once before the first epoch too. stop: end the
    training when the loss has converged.

    The loss of an epoch is the mean logged loss of its steps, with any logging strategy: at the end of an epoch the
    Trainer is asked to log the remaining steps. A training resumed from a checkpoint continues in the folder after that
    checkpoint's epoch. Raises InputError when no loss is logged, and what ConvergenceRecorder raises.
    """

    def __init__(self, run: str | Path, stop: bool = False, **settings: Any):
        self.run, self.stop = run, stop
        self._settings = settings
        self.recorder: ConvergenceRecorder | None = None  # in the first process
        # Of the current epoch: its steps, the sum of their losses, the learning rate, whether it has ended.
        self._first_step = self._logged_step = 0
        self._sum = 0.0
        self._lr: float | None = None
        self._ended = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        self._close()  # a training before may have failed
        if state.is_world_process_zero:
            self.recorder = ConvergenceRecorder(self.run, **self._settings)
            self.recorder.maturity(model)  # what it cannot tell is refused before the first epoch
        self._begin(state.global_step)

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
        if logs is None or "loss" not in logs:
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

    def _begin(self, step: int) -> None:
        """An epoch, after this step."""
        self._first_step = self._logged_step = step
        self._sum, self._lr, self._ended = 0.0, None, False

    def _record(self, state: TrainerState, control: TrainerControl, model: Any) -> None:
        converged = [False]
        if self.recorder is not None:
            loss = self._sum / (state.global_step - self._first_step)
            converged = [self.recorder.epoch_end(model, loss, lr=self._lr, epoch=ceil(state.epoch))]
        self._begin(state.global_step)
        if self.stop and broadcast_object_list(converged)[0]:
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
