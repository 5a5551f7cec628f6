"""What the page says of learning with feature maps."""

import shlex
from collections.abc import Callable
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from fmcefast.learning.cache_experiment import ARMS, ArmResult, CacheResult, saved_cache
from fmcefast.learning.explore_result import ExploreResult, saved_explore
from fmcefast.learning.feature_training import FeaturesResult, saved_features
from fmcefast.learning.fgsm import PAPER_EPSILONS, FgsmResult, saved_fgsm
from fmcefast.learning.kept_training import IMAGES
from fmcefast.learning.results import learn_folder, read_result
from fmcefast.report.explore_figures import explore_figures
from fmcefast.report.learning_figures import arms_figure, fgsm_figure
from fmcefast.run.folder import RunFolder

Save = Callable[[Figure, str], str]


def learning_sections(run: RunFolder, save: Save) -> dict[str, Any]:
    """{section: what its part of the page shows}, of the experiments that have run.

    save: (figure, name) -> data URL. Raises InputError for damaged results.
    """
    cache, features, fgsm, explored = saved_cache(run), saved_features(run), saved_fgsm(run), saved_explore(run)
    sections: dict[str, Any] = {}
    if cache is not None:
        sections["cache"] = _cache(cache, save)
    if features is not None:
        sections["features"] = _features(features)
    if fgsm is not None:
        sections["fgsm"] = _fgsm(fgsm, save)
    if explored is not None:
        sections["explore"] = _explore(explored, save)
    return sections


def learning_commands(run: RunFolder) -> list[str]:
    """The commands that made what `learning_sections` shows."""
    commands = []
    for verb in ("cache", "features", "fgsm", "explore"):
        saved = read_result(learn_folder(run) / f"{verb}.json")
        if saved is not None:
            commands.append(_command(run, verb, saved))
    return commands


def _command(run: RunFolder, verb: str, saved: dict[str, Any]) -> str:
    settings = saved["settings"]
    trainings = saved.get("arms") or saved.get("trainings") or saved.get("attacks") or []
    words = ["fmcefast", "learn", verb, str(run.path), "--data", run.config.data]
    given = {"--data-root": run.config.data_root, "--subset": run.config.subset, "--recipe": run.config.recipe}
    if run.config.data == "digits":
        del given["--data-root"]
    given |= {f"--{name.replace('_', '-')}": settings[name] for name in ("backbone", "image_size", "epochs", "lr")}
    given["--batch-size"] = ",".join(
        map(str, dict.fromkeys(arm["batch_size"] for arm in saved.get("arms", [settings])))
    )
    if trainings:
        given["--seeds"] = len({each["seed"] for each in trainings})
    if verb == "cache":
        given |= {"--arms": ",".join(dict.fromkeys(arm["arm"] for arm in saved["arms"]))}
        given |= {"--std": settings["std"], "--skip": settings["skip"]}
    if verb == "explore":
        given |= {"--images": settings["images"], "--farthest": settings["farthest"]}
        given["--seeds"] = settings["seeds"]
    if verb == "fgsm":
        given["--epsilons"] = ",".join(f"{epsilon:g}" for epsilon in saved["epsilons"])
    words += [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    words += [word for layer in settings["layers"] for word in ("--layer", layer)]
    return shlex.join(words)


def _cache(result: CacheResult, save: Save) -> dict[str, Any]:
    """The tables of [LFM] Figs. 7 and 8, means over the seeds, and the curves."""
    sizes = list(dict.fromkeys(arm.batch_size for arm in result.arms))
    return {
        "result": result,
        "seeds": len({arm.seed for arm in result.arms}),
        "by_batch_size": [_of_batch_size(result, size, save) for size in sizes],
        "batch_sizes": sizes if len(sizes) > 1 else [],
        "figure_8": [
            (arm, side, [100 * mean(getattr(each, kind) for each in _of(result, arm, size)) for size in sizes])
            for arm in ("plain", "cache")
            for side, kind in (("training images", "train_accuracy"), ("held-out images", "accuracy"))
            if all(_of(result, arm, size) for size in sizes)
        ],
    }


def _of_batch_size(result: CacheResult, size: int, save: Save) -> dict[str, Any]:
    arms = [name for name in ARMS if _of(result, name, size)]
    epochs = [
        {
            "epoch": epoch,
            "accuracy": {
                name: 100 * mean(arm.epochs[epoch - 1].accuracy for arm in _of(result, name, size))
                for name in arms
                if all(len(arm.epochs) >= epoch for arm in _of(result, name, size))
            },
            "cache": {
                what: mean(getattr(arm.epochs[epoch - 1], what) for arm in _of(result, "cache", size))
                for what in ("hits", "trained")
                if "cache" in arms
            },
        }
        for epoch in range(1, result.epochs + 1)
    ]
    totals = {
        name: {
            "accuracy": 100 * mean(arm.accuracy for arm in _of(result, name, size)),
            "seconds": mean(arm.seconds for arm in _of(result, name, size)),
            "trained": mean(sum(row.trained for row in arm.epochs) for arm in _of(result, name, size)),
        }
        for name in arms
    }
    figure = arms_figure([arm for arm in result.arms if arm.batch_size == size])
    return {
        "size": size,
        "arms": arms,
        "epochs": epochs,
        "totals": totals,
        "comparisons": [each for each in result.comparisons if each.batch_size == size],
        "picture": save(figure, f"learn-cache-{size}"),
    }


def _features(result: FeaturesResult) -> dict[str, Any]:
    """The table of [LFM] Fig. 9, means over the seeds."""
    rows = []
    for on in (IMAGES, *result.layers):
        trainings = [each for each in result.trainings if each.on == on]
        train, test = mean(each.train_accuracy for each in trainings), mean(each.accuracy for each in trainings)
        rows.append({"on": on, "train": 100 * train, "test": 100 * test, "gap": 100 * (train - test)})
    return {"result": result, "rows": rows, "seeds": len({each.seed for each in result.trainings})}


def _fgsm(result: FgsmResult, save: Save) -> dict[str, Any]:
    """The table of [LFM] Fig. 10, with intervals, and the curve."""
    rows = [
        {
            "epsilon": epsilon,
            "layer": layer,
            "images": 100 * result.mean(IMAGES, IMAGES, epsilon),
            "maps": 100 * result.mean(layer, attacked, epsilon),
            "attacked": attacked,
            "difference": [
                None if each is None else 100 * each for each in result.difference(layer, attacked, epsilon)
            ],
        }
        for layer in result.layers
        for attacked in (IMAGES, layer)
        for epsilon in PAPER_EPSILONS
    ]
    return {
        "result": result,
        "rows": rows,
        "seeds": len({each.seed for each in result.attacks}),
        "picture": save(fgsm_figure(result), "learn-fgsm"),
    }


def _explore(result: ExploreResult, save: Save) -> dict[str, Any]:
    """The pictures of [LFM] Figs. 1 to 3, and what can be counted in them."""
    pictures = {name: save(figure, f"learn-{name}") for name, figure in explore_figures(result).items()}
    return {"result": result, "pictures": pictures}


def _of(result: CacheResult, arm: str, batch_size: int) -> list[ArmResult]:
    return [each for each in result.arms if each.arm == arm and each.batch_size == batch_size]
