"""What the names of columns say, by the conventions of the tools that write logs."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from fmcefast.errors import InputError

_TRAINING = {"train", "training", "trn", "tr", "main"}  # main/loss is Chainer's
_VALIDATION = {"val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing", "holdout", "heldout"}
_WHOLE = {"total", "overall", "average", "avg", "mean", "running"}  # beside the losses of single terms
_AROUND = {"history", "logs", "metrics", "scalars"}  # of objects in which losses lie
_EPOCHS = ("epoch", "epochs", "ep", "epoche")
_STEPS = ("step", "steps", "iteration", "iterations", "iter", "iters", "itr", "it", "updates", "batch", "minibatch")
_COUNTING = {"global", "current", "num", "number", "nr", "no", "n", "idx", "index", "id", "trainer", *_TRAINING}
_ACCURACY = {
    "acc", "accuracy", "top", "f1", "prec", "precision", "recall", "auc", "auroc", "ap", "map", "iou", "miou", "dice",
    "bleu", "rouge", "score", "psnr", "ssim", "r2", "reward", "success",
}  # fmt: skip
_ERRORS = {
    "err", "error", "mae", "mse", "rmse", "mape", "nll", "perplexity", "ppl", "bpc", "bpb", "wer", "cer", "fid", "kid",
    "lpips", "ece",
}  # fmt: skip
_TIMES = {"time", "timestamp", "date", "datetime", "seconds", "elapsed", "duration", "runtime"}
_RATES = {("lr",), ("learning", "rate")}
_VALUES = {"value", "metric_value"}
_TAGS = {"tag", "key", "metric", "metric_name", "metric_key", "name", "variable", "series"}
_SPLITS = {
    "split", "data_split", "dataset_split", "phase", "mode", "subset", "set", "partition", "part", "stage", "dataset",
    "loader",
}  # fmt: skip
_RUNS = {
    "run", "run_id", "run_name", "run_uuid", "run_number", "name", "fold", "cv_fold", "kfold", "fold_id", "seed",
    "random_seed", "rank", "local_rank", "global_rank", "world_rank", "process", "process_index", "worker", "worker_id",
    "replica", "replicate", "repeat", "repetition", "trial", "trial_id", "trial_name", "trial_number", "experiment",
    "experiment_id", "experiment_name", "exp", "exp_id", "exp_name", "job", "job_id", "list",
}  # fmt: skip


def words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case: trainLoss, train/losses and "run - train_loss" are ("train", "loss")."""
    if not name.endswith(("__MIN", "__MAX")):  # of W&B, beside the column itself
        name = name.rpartition(" - ")[2]
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return tuple(part for word in re.findall(r"[^\W_]+", name.lower()) for part in _parts(word))


def _parts(word: str) -> Iterable[str]:
    """loss for losses; train and loss for trainloss."""
    match = re.fullmatch(r"(.*?)loss(?:es)?", word)
    return (word,) if match is None else filter(None, (match[1], "loss"))


def loss_rank(name: str) -> int | None:
    """How surely a column is the loss of the whole training, 0 the most; None when it is not.

    Means of epochs come before losses of single steps. Losses of one term, such as loss_cls, are not.
    """
    return None if is_validation(name) else _rank(words(name))


def _rank(found: Sequence[str]) -> int | None:
    rest = set(found) - {"loss"} - _WHOLE - _AROUND - _TRAINING - _VALIDATION
    trained = bool(_TRAINING.intersection(found))
    if "loss" not in found:
        return 6 if is_value("_".join(found)) else None
    if not rest:
        return 1 if trained else 3
    if rest == {"epoch"}:
        return 0 if trained else 2
    return (4 if trained else 5) if rest <= {*_STEPS} else None


def is_training(name: str) -> bool:
    found = set(words(name))
    return bool(found & _TRAINING) and not found & _VALIDATION


def is_validation(name: str) -> bool:
    return bool(_VALIDATION.intersection(words(name)))


def is_accuracy(name: str) -> bool:
    return any({word, word.rstrip("0123456789")} & _ACCURACY for word in words(name))  # top5, AP50


def higher_is_better(name: str) -> bool | None:
    """Whether a metric of this name is to grow; None when its name does not say so."""
    if "loss" in words(name):
        return False
    grows, shrinks = is_accuracy(name), bool(_ERRORS.intersection(words(name)))
    return grows if grows != shrinks else None


def is_time(name: str) -> bool:
    return bool(_TIMES.intersection(words(name)))


def is_value(name: str) -> bool:
    """Whether a column holds values of which another column, or nothing, says what they are."""
    return "_".join(words(name)) in _VALUES


def is_tag(name: str) -> bool:
    """Whether a column may say what the value beside it is."""
    return "_".join(words(name)) in _TAGS


def is_run(name: str) -> bool:
    """Whether a column says of which run, fold, seed or process a row is."""
    return "_".join(words(name)) in _RUNS


def is_split(name: str) -> bool:
    """Whether a column is named like one that tells training from validation."""
    return "_".join(words(name)) in _SPLITS


def is_state(name: str) -> bool:
    """Whether a column says whether a run is finished."""
    return words(name) in (("state",), ("status",))


def epoch_column(columns: Iterable[str]) -> str | None:
    return _counter(columns, _EPOCHS)


def step_column(columns: Iterable[str]) -> str | None:
    return _counter(columns, _STEPS)


def _counter(columns: Iterable[str], kinds: Sequence[str]) -> str | None:
    """The column that counts `kinds`, of which the first are preferred, and a global count above all."""
    found = [(name, set(words(name))) for name in columns]
    counters = [(name, parts) for name, parts in found if len(parts - _COUNTING) == 1 and parts - _COUNTING <= {*kinds}]

    def preference(counter: tuple[str, set[str]]) -> tuple[bool, int]:
        _, found = counter
        return "global" not in found, min(kinds.index(kind) for kind in found - _COUNTING)

    return min(counters, key=preference)[0] if counters else None


def choose_loss(columns: Sequence[str], column: str | None = None) -> str:
    """`column`, or by default the one that is surest to be the training loss.

    Raises InputError, with the columns there are, when there is no such column or several are equally likely.
    """
    if column is not None:
        if column in columns:
            return column
        near = get_close_matches(column, columns, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"there is no column {column!r}.{hint} The columns: {listed(columns)}.")
    # A Hugging Face log ends with a summary; its train_loss is the mean over all epochs.
    summaries = {name.replace("runtime", "loss") for name in columns if name.endswith("train_runtime")}
    ranks = {name: rank for name in columns if name not in summaries and (rank := loss_rank(name)) is not None}
    best = [name for name, rank in ranks.items() if rank == min(ranks.values())]
    if len(best) == 1:
        return best[0]
    if best:
        raise InputError(f"there are several training losses: {listed(best)}. Choose one: `column=NAME`")
    if len(columns) == 1 and _may_be_loss(columns[0]):
        return columns[0]
    if not columns:
        raise InputError("there is no column of numbers.")
    raise InputError(
        f"none of the columns is known to be the training loss: {listed(columns)}. Choose one: `column=NAME`"
    )


def _may_be_loss(name: str) -> bool:
    """Whether a column that is alone, under a name of one's own, may be the loss."""
    known = is_accuracy(name) or is_validation(name) or is_time(name) or words(name) in _RATES
    return not known and epoch_column([name]) is None and step_column([name]) is None


def validation_loss(columns: Iterable[str]) -> str | None:
    """The column of the validation loss; a test loss only when there is no other, None when several are likely."""
    ranks = {
        name: ("test" in words(name), rank)
        for name in columns
        if is_validation(name) and (rank := _rank(words(name))) is not None
    }
    best = [name for name, rank in ranks.items() if rank == min(ranks.values())]
    return best[0] if len(best) == 1 else None


def listed(names: Sequence[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
