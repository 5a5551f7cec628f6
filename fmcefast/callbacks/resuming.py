"""Where the epochs of a Trainer, which count from 1, belong in a folder that may hold some already."""

from fmcefast.errors import InputError
from fmcefast.recorder.recorder import ConvergenceRecorder


def epochs_before(recorder: ConvergenceRecorder, first: int, *, from_checkpoint: bool, resume: bool, how: str) -> int:
    """How many recorded epochs come before epoch 1 of a Trainer.

    first: its next epoch. from_checkpoint: whether it goes on from one; then its epochs are those of the folder, and
    what is recorded from `first` on is replaced. resume: otherwise, whether its epochs follow the recorded ones. how:
    how a Trainer goes on from a checkpoint. Raises InputError where two trainings would mix.
    """
    if from_checkpoint:
        recorder.check_epoch(first)
        return 0
    if recorder.epochs and not resume:
        raise InputError(
            f"{recorder.run} holds {recorder.epochs} epochs. Go on from a checkpoint of that training, {how}, or with "
            "its weights and resume=True; or record a new training into another folder."
        )
    return recorder.epochs
