"""What the page says of learning with feature maps."""

import shlex
from collections.abc import Sequence
from statistics import mean
from typing import Any

from fmcefast.learning.cache_experiment import ARMS, ArmResult, CacheResult, saved_cache
from fmcefast.learning.explore_result import ExploreResult, saved_explore
from fmcefast.learning.feature_training import FeaturesResult, saved_features
from fmcefast.learning.fgsm import PAPER_EPSILONS, FgsmResult, saved_fgsm
from fmcefast.learning.kept_training import IMAGES
from fmcefast.learning.results import learn_folder, read_result
from fmcefast.report.figures.explore import explore_figures
from fmcefast.report.figures.learning import arms_figure, batch_sizes_figure, fgsm_figure, hits_figure
from fmcefast.report.pictures import Album
from fmcefast.report.tables import Strong, Table, interval
from fmcefast.run.folder import RunFolder


def learning_sections(run: RunFolder, album: Album) -> dict[str, Any]:
    """{section: what its part of the page shows}, of the experiments that have run. Raises InputError for damaged
    results."""
    cache, features, fgsm, explored = saved_cache(run), saved_features(run), saved_fgsm(run), saved_explore(run)
    sections: dict[str, Any] = {}
    if cache is not None:
        sections["cache"] = _cache(cache, album, _commands(run, "cache"))
    if features is not None:
        sections["features"] = _features(features, _commands(run, "features"))
    if fgsm is not None:
        sections["fgsm"] = _fgsm(fgsm, album, _commands(run, "fgsm"))
    if explored is not None:
        sections["explore"] = _explore(explored, album, _commands(run, "explore"))
    return sections


def learning_commands(run: RunFolder) -> list[str]:
    """The commands that made what `learning_sections` shows."""
    return [line for verb in ("cache", "features", "fgsm", "explore") for line in _commands(run, verb)]


def _commands(run: RunFolder, verb: str) -> list[str]:
    saved = read_result(learn_folder(run) / f"{verb}.json")
    return [] if saved is None else [_command(run, verb, saved)]


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


def _cache(result: CacheResult, album: Album, commands: Sequence[str]) -> dict[str, Any]:
    """The tables of [LFM] Figs. 7 and 8, means over the seeds, and the curves."""
    sizes = list(dict.fromkeys(arm.batch_size for arm in result.arms))
    by_size = [
        [
            f"{arm}, {side}",
            *(f"{100 * mean(getattr(each, kind) for each in _of(result, arm, size)):.2f}" for size in sizes),
        ]
        for arm in ("plain", "cache")
        for side, kind in (("training images", "train_accuracy"), ("held-out images", "accuracy"))
        if all(_of(result, arm, size) for size in sizes)
    ]
    several = len(sizes) > 1 and bool(by_size)
    alt = "Accuracy at the end against the batch size"
    return {
        "result": result,
        "seeds": len({arm.seed for arm in result.arms}),
        "by_batch_size": [_of_batch_size(result, size, album, commands) for size in sizes],
        "sizes_picture": album.add(batch_sizes_figure(result.arms), "learn-cache-sizes", alt, commands)
        if several
        else None,
        "by_size": Table("Accuracy by batch size, %", ["trained", *(f"{size:,}" for size in sizes)], by_size)
        if several
        else None,
    }


def _of_batch_size(result: CacheResult, size: int, album: Album, commands: Sequence[str]) -> dict[str, Any]:
    arms = {name: _of(result, name, size) for name in ARMS if _of(result, name, size)}
    of_size = [arm for arm in result.arms if arm.batch_size == size]
    hits = None
    if "cache" in arms:
        alt = "Images that the cache explains and images that are trained, in each epoch"
        hits = album.add(hits_figure(of_size), f"learn-hits-{size}", alt, commands)
    alt = "Accuracy on held-out images against the epoch, the seconds and the images trained, for each way to train"
    return {
        "size": size,
        "picture": album.add(arms_figure(of_size), f"learn-cache-{size}", alt, commands),
        "hits": hits,
        "epochs": _epochs_table(result, arms),
        "totals": _totals_table(arms),
        "comparisons": _comparisons_table(result, size),
    }


def _epochs_table(result: CacheResult, arms: dict[str, list[ArmResult]]) -> Table:
    rows = []
    for epoch in range(1, result.epochs + 1):
        row = [str(epoch)]
        if "cache" in arms:
            of_epoch = [arm.epochs[epoch - 1] for arm in arms["cache"]]
            row += [f"{mean(getattr(each, what) for each in of_epoch):,.0f}" for what in ("hits", "trained")]
        for trainings in arms.values():
            lasted = all(len(arm.epochs) >= epoch for arm in trainings)
            row.append(f"{100 * mean(arm.epochs[epoch - 1].accuracy for arm in trainings):.2f}" if lasted else "")
        rows.append(row)
    skipped = ["hits", "images trained by cache"] if "cache" in arms else []
    return Table("Accuracy on held-out images after each epoch, %", ["epoch", *skipped, *arms], rows)


def _totals_table(arms: dict[str, list[ArmResult]]) -> Table:
    rows = [
        [
            name,
            f"{100 * mean(arm.accuracy for arm in trainings):.2f}",
            f"{mean(arm.seconds for arm in trainings):.1f}",
            f"{mean(sum(row.trained for row in arm.epochs) for arm in trainings):,.0f}",
        ]
        for name, trainings in arms.items()
    ]
    return Table("At the end", ["way to train", "accuracy, %", "seconds", "images trained"], rows)


def _comparisons_table(result: CacheResult, size: int) -> Table | None:
    rows = [
        [
            f"{each.arm} with {each.than}",
            each.at,
            interval(each.difference, each.low, each.high, "+.2f", scale=100),
            "not to be told apart" if each.verdict == "equal" else Strong(each.verdict),
            f"{each.seconds:.2f}",
        ]
        for each in result.comparisons
        if each.batch_size == size
    ]
    heads = [
        "compared",
        "at equal",
        "difference of accuracy, points [95% interval]",
        "the first is",
        "times the seconds",
    ]
    return Table("Which way is better", heads, rows, text=(0, 1, 3)) if rows else None


def _features(result: FeaturesResult, commands: Sequence[str]) -> dict[str, Any]:
    """The table of [LFM] Fig. 9, means over the seeds."""
    rows = []
    for on in (IMAGES, *result.layers):
        trainings = [each for each in result.trainings if each.on == on]
        train, test = mean(each.train_accuracy for each in trainings), mean(each.accuracy for each in trainings)
        name = "images" if on == IMAGES else f"feature maps of {on}"
        rows.append([name, f"{100 * train:.2f}", f"{100 * test:.2f}", f"{100 * (train - test):.2f}"])
    heads = ["trained on", "accuracy, training images, %", "held-out images, %", "gap"]
    differences = [
        f"Maps of {each.arm} less images, held out: "
        + interval(each.difference, each.low, each.high, "+.2f", scale=100)
        + (", not to be told apart." if each.verdict == "equal" else ".")
        for each in result.comparisons
    ]
    return {
        "result": result,
        "table": Table("Training on images and on feature maps", heads, rows),
        "differences": differences,
        "seeds": len({each.seed for each in result.trainings}),
        "commands": commands,
    }


def _fgsm(result: FgsmResult, album: Album, commands: Sequence[str]) -> dict[str, Any]:
    """The table of [LFM] Fig. 10, with intervals, and the curve."""
    rows = [
        [
            f"{epsilon:g}",
            layer,
            "the network of the images" if attacked == IMAGES else "each network itself",
            f"{100 * result.mean(IMAGES, IMAGES, epsilon):.2f}",
            f"{100 * result.mean(layer, attacked, epsilon):.2f}",
            interval(*result.difference(layer, attacked, epsilon), "+.2f", scale=100),
        ]
        for layer in result.layers
        for attacked in (IMAGES, layer)
        for epsilon in PAPER_EPSILONS
    ]
    heads = ["epsilon", "maps of", "changes made to mislead", "trained on images, %", "trained on maps, %",
             "difference, points [95% interval]"]  # fmt: skip
    alt = "Accuracy on changed images against the size of the change"
    return {
        "table": Table("Accuracy on changed images", heads, rows, text=(1, 2)),
        "seeds": len({each.seed for each in result.attacks}),
        "picture": album.add(fgsm_figure(result), "learn-fgsm", alt, commands),
    }


def _explore(result: ExploreResult, album: Album, commands: Sequence[str]) -> dict[str, Any]:
    """The pictures of [LFM] Figs. 1 to 3, and what can be counted in them."""
    alts = {
        "centroids": "The mean image of each class",
        "outliers": "The training images farthest from the mean image of their class",
        "tsne": "Held-out images in a plane, by their pixels and by their feature maps",
    }
    agree = [
        [each.space if each.space == "pixels" else f"{each.space} of {result.layer}", f"{100 * each.original:.2f}",
         f"{100 * each.plane:.2f}"]
        for each in result.separations
    ]  # fmt: skip
    accuracies = [
        [each.group, f"{each.images:,}", "" if each.accuracy is None else f"{100 * each.accuracy:.2f}"]
        for each in result.accuracies
    ]
    return {
        "result": result,
        "pictures": [
            album.add(figure, f"learn-{name}", alts[name], commands) for name, figure in explore_figures(result).items()
        ],
        "separations": Table(
            "Nearest neighbours of the same class, %", ["by", "in all dimensions", "in the plane"], agree
        ),
        "accuracies": Table(f"Accuracy of {result.backbone}", ["images", "how many", "%"], accuracies),
    }


def _of(result: CacheResult, arm: str, batch_size: int) -> list[ArmResult]:
    return [each for each in result.arms if each.arm == arm and each.batch_size == batch_size]
