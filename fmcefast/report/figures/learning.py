"""Figures of learning with feature maps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from fmcefast.learning.cache_experiment import ARMS, ArmResult
from fmcefast.learning.fgsm import PAPER_EPSILONS, FgsmResult
from fmcefast.report.figures.labels import finish, head, legend_below, number_of, short
from fmcefast.report.figures.style import BAND, GUIDE, NARROW, WIDTH, line_of, style

_NAME = 24  # letters of a layer


@style()
def arms_figure(arms: Sequence[ArmResult]) -> Figure:
    """Held-out accuracy against the epoch, the seconds of training, and the images trained; the mean over the seeds,
    whose range is shaded. arms: of one batch size."""
    figure = Figure(figsize=(WIDTH, 4.2))
    panels = figure.subplots(1, 3, sharey=True)
    for number, name in enumerate(ARMS):
        of_arm = [arm for arm in arms if arm.arm == name]
        if not of_arm:
            continue
        length = min(len(arm.epochs) for arm in of_arm)
        accuracy = 100 * np.array([[row.accuracy for row in arm.epochs[:length]] for arm in of_arm])
        seconds, images = (
            np.cumsum([[getattr(row, what) for row in arm.epochs[:length]] for arm in of_arm], axis=1).mean(axis=0)
            for what in ("seconds", "trained")
        )
        look = line_of(number, length)
        for axes, places in zip(panels, (np.arange(1, length + 1), seconds, images), strict=True):
            axes.plot(places, accuracy.mean(axis=0), label=name, **look)
            axes.fill_between(places, accuracy.min(axis=0), accuracy.max(axis=0), color=look["color"], **BAND)
    finish(panels[0], "(a) By epoch", ylabel="accuracy on held-out images, %")
    finish(panels[1], "(b) By time", xlabel="seconds of training", ylabel="", whole_numbers=False)
    finish(panels[2], "(c) By images", xlabel="images trained", ylabel="", whole_numbers=False)
    panels[2].xaxis.set_major_formatter(EngFormatter(sep=""))
    legend_below(figure, panels[0].lines)
    seeds = number_of(len({arm.seed for arm in arms}), "seed")
    head(figure, f"Ways to train with batches of {arms[0].batch_size:,}: mean and range of accuracy ({seeds})")
    _leave_out_the_start(panels[0], arms)
    return figure


@style()
def hits_figure(arms: Sequence[ArmResult]) -> Figure:
    """[LFM] Fig. 7: the training images that a cache explained, and those that were trained, in each epoch; the mean
    over the seeds, whose range is shaded. arms: of one batch size, `cache` among them."""
    cached = [arm for arm in arms if arm.arm == "cache"]
    figure = Figure(figsize=(NARROW, 4))
    axes = figure.subplots()
    named = []
    for number, (what, label) in enumerate((("trained", "trained"), ("hits", "hits: explained by the cache"))):
        images = np.array([[getattr(row, what) for row in arm.epochs] for arm in cached])
        places = np.arange(1, images.shape[1] + 1)
        look = line_of(number, len(places))
        named += axes.plot(places, images.mean(axis=0), label=label, **look)
        axes.fill_between(places, images.min(axis=0), images.max(axis=0), color=look["color"], **BAND)
    finish(axes, ylabel="training images")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    legend_below(figure, named)
    seeds = number_of(len(cached), "seed")
    head(figure, f"Images that the cache explains, batches of {cached[0].batch_size:,}: mean and range ({seeds})")
    return figure


@style()
def batch_sizes_figure(arms: Sequence[ArmResult]) -> Figure:
    """[LFM] Fig. 8: accuracy at the end against the batch size, of plain training and of training that skips what its
    cache explains; the mean over the seeds, whose range is shaded. arms: `plain` or `cache` among them."""
    figure = Figure(figsize=(NARROW, 4))
    axes = figure.subplots()
    sizes = sorted({arm.batch_size for arm in arms})
    named = []
    kinds = [
        (arm, side, statistic)
        for arm in ("plain", "cache")
        for side, statistic in (("training images", "train_accuracy"), ("held-out images", "accuracy"))
        if any(each.arm == arm for each in arms)
    ]
    for number, (name, side, statistic) in enumerate(kinds):
        of_size = {size: [arm for arm in arms if (arm.arm, arm.batch_size) == (name, size)] for size in sizes}
        places = [place for place, size in enumerate(sizes) if of_size[size]]
        values = [[100 * getattr(arm, statistic) for arm in of_size[sizes[place]]] for place in places]
        look = line_of(number, 1)
        named += axes.plot(places, [np.mean(each) for each in values], label=f"{name}, {side}", **look)
        axes.fill_between(places, [*map(min, values)], [*map(max, values)], color=look["color"], **BAND)
    finish(axes, xlabel="images in a batch", ylabel="accuracy, %", whole_numbers=False)
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    legend_below(figure, named)
    seeds = number_of(len({arm.seed for arm in arms}), "seed")
    head(figure, f"Accuracy by batch size: mean and range ({seeds})")
    return figure


@style()
def fgsm_figure(result: FgsmResult) -> Figure:
    """Held-out accuracy against epsilon, a line for each network and attack."""
    figure = Figure(figsize=(NARROW, 4))
    axes = figure.subplots()
    named = []
    for number, (network, attacked) in enumerate(result.kinds):
        values = [100 * result.mean(network, attacked, epsilon) for epsilon in result.epsilons]
        trained = "trained on images" if network == "images" else f"trained on maps of {short(network, _NAME)}"
        label = f"{trained}, attacked itself" if network == attacked else f"{trained}, changes made for images"
        named += axes.plot(result.epsilons, values, label=label, **line_of(number, len(values)))
    paper, *_ = [axes.axvline(epsilon, **GUIDE, label="epsilons of the paper") for epsilon in PAPER_EPSILONS]
    finish(axes, xlabel="epsilon, the largest change of a pixel in 0 to 1", ylabel="accuracy, %", whole_numbers=False)
    legend_below(figure, [*named, paper])
    seeds = number_of(len({each.seed for each in result.attacks}), "seed")
    head(figure, f"Accuracy on held-out images changed by FGSM: mean ({seeds})")
    return figure


def _leave_out_the_start(axes: Axes, arms: Sequence[ArmResult]) -> None:
    """Begin the axis where the slowest arm is after a fifth of its epochs: the first epochs would flatten the rest."""
    start = min(100 * arm.epochs[len(arm.epochs) // 5].accuracy for arm in arms)
    top = max(100 * row.accuracy for arm in arms for row in arm.epochs)
    margin = 0.05 * max(top - start, 0.1)
    axes.set_ylim(start - margin, top + margin)
