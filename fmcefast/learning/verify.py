"""The integrity of what the experiments left."""

from collections.abc import Iterator

from fmcefast.errors import FmcefastError
from fmcefast.learning.cache_experiment import saved_cache
from fmcefast.learning.explore_result import saved_explore
from fmcefast.learning.feature_training import saved_features
from fmcefast.learning.fgsm import saved_fgsm
from fmcefast.learning.kept_training import check_kept
from fmcefast.learning.results import learn_folder, read_result
from fmcefast.run.folder import RunFolder
from fmcefast.stages.stage import problem


def verify_learning(run: RunFolder) -> Iterator[str]:
    """What is wrong in RUN/learn, a line each: JSON is parsed, weights and arrays must have their checksums."""
    folder = learn_folder(run)
    for read in (saved_cache, saved_features, saved_fgsm):
        yield from problem(read, run)
    try:
        explored = saved_explore(run)
        if explored is not None:
            explored.read_arrays()
    except FmcefastError as error:
        yield str(error)
    for path in sorted(folder.glob("*/*-seed-*.json")):
        yield from problem(read_result, path)
        if path.parent.name == "features":
            yield from problem(check_kept, path.with_suffix(".safetensors"))
