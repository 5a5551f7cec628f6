"""Figures of learning with feature maps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmcefast.learning.cache_experiment import ARMS, ArmResult
from fmcefast.learning.fgsm import PAPER_EPSILONS, FgsmResult
from fmcefast.report.style import RAW, finish, line_of


def arms_figure(arms: Sequence[ArmResult]) -> Figure:
    """Held-out accuracy against the epoch, the seconds of training, and the images trained; the mean over the seeds,
    whose range is shaded. arms: of one batch size."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
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
        for axes, places in zip(panels, (np.arange(1, length + 1), seconds, images), strict=True):
            axes.plot(places, accuracy.mean(axis=0), markersize=4, label=name, **line_of(number))
            axes.fill_between(
                places,
                accuracy.min(axis=0),
                accuracy.max(axis=0),
                color=line_of(number)["color"],
                alpha=0.1,
                linewidth=0,
            )
    seeds = len({arm.seed for arm in arms})
    panels[0].set(title=f"(a) By epoch (seeds: {seeds})", ylabel="accuracy on held-out images, %")
    panels[1].set_title("(b) By seconds of training")
    panels[2].set_title("(c) By images trained")
    finish(panels[0])
    finish(panels[1], xlabel="seconds", whole_numbers=False)
    finish(panels[2], xlabel="images", whole_numbers=False)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=len(names), frameon=False)
    _leave_out_the_start(panels[0], arms)
    return figure


def fgsm_figure(result: FgsmResult) -> Figure:
    """Held-out accuracy against epsilon, a line for each network and attack."""
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for epsilon in PAPER_EPSILONS:
        axes.axvline(epsilon, color=RAW, linestyle=":", linewidth=1.2)
    for number, (network, attacked) in enumerate(result.kinds):
        values = [100 * result.mean(network, attacked, epsilon) for epsilon in result.epsilons]
        trained = "images" if network == "images" else f"maps of {network}"
        label = f"{trained}, attacked itself" if network == attacked else f"{trained}, changes made for images"
        axes.plot(result.epsilons, values, markersize=5, label=label, **line_of(number))
    seeds = len({each.seed for each in result.attacks})
    axes.set(title=f"FGSM: trained on images and on feature maps (seeds: {seeds})", ylabel="accuracy, %")
    axes.legend(frameon=False, title="network trained on", alignment="left")
    finish(axes, xlabel="epsilon, the largest change of a pixel in 0..1", whole_numbers=False)
    return figure


def _leave_out_the_start(axes: Axes, arms: Sequence[ArmResult]) -> None:
    """Begin the axis where the slowest arm is after a fifth of its epochs: the first epochs would flatten the rest."""
    start = min(100 * arm.epochs[len(arm.epochs) // 5].accuracy for arm in arms)
    top = max(100 * row.accuracy for arm in arms for row in arm.epochs)
    margin = 0.05 * max(top - start, 0.1)
    axes.set_ylim(start - margin, top + margin)
