"""Where the experiments stand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fmcefast.errors import FmcefastError
from fmcefast.learning.cache_experiment import saved_cache
from fmcefast.learning.explore_result import saved_explore
from fmcefast.learning.feature_training import saved_features
from fmcefast.learning.fgsm import saved_fgsm
from fmcefast.learning.results import learn_folder
from fmcefast.run.folder import RunFolder

_READERS: dict[str, Callable[[RunFolder], Any]] = {
    "cache": saved_cache,
    "features": saved_features,
    "fgsm": saved_fgsm,
    "explore": saved_explore,
}


class Standing(NamedTuple):
    """An experiment that has begun. problem: what is wrong with its result, None for nothing; trainings: those in its
    folder; finished: whether there is a result, and it is not older than the trainings."""

    name: str
    finished: bool
    problem: str | None
    trainings: int
    paths: list[Path]


def experiments_begun(run: RunFolder) -> Iterator[Standing]:
    """All of a run that have left anything."""
    for name, read in _READERS.items():
        result, folder = learn_folder(run) / f"{name}.json", learn_folder(run) / name
        trainings = [path for path in folder.glob("*-seed-*.json") if _belongs(name, path)]
        if not result.exists() and not trainings:
            continue
        problem = None
        try:
            read(run)
        except FmcefastError as error:
            problem = str(error)
        newest = max((path.stat().st_mtime_ns for path in trainings), default=0)
        finished = result.exists() and result.stat().st_mtime_ns >= newest
        yield Standing(name, finished, problem, len(trainings), [result, folder])


def _belongs(name: str, training: Path) -> bool:
    """Trainings on images lie beside those on features, but are made for other experiments too."""
    return name != "features" or not training.name.startswith("images-")
