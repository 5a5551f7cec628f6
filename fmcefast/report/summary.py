"""The first thing on a page: what came out, in plain sentences, each with its 95% interval where one can be told."""

from math import isfinite, sqrt
from statistics import mean

import numpy as np

from fmcefast.convergence.markers import Markers
from fmcefast.convergence.verdict import Verdict
from fmcefast.evaluation.metrics import Metrics
from fmcefast.finetuning.sweep_csv import table_of
from fmcefast.finetuning.table import RafRow
from fmcefast.report.results import RunResults
from fmcefast.stages.markers import markers


def summarise(results: RunResults) -> list[str]:
    """What was trained, whether it has converged, how well maturity can be read from the maps, whether RAL helped."""
    sentences = [_training(results)] if results.epochs else []
    if results.markers is not None:
        sentences.append(convergence_sentence(markers.verdict(results.run), results.markers))
    if results.fit is not None:
        sentences.append(_reading(results.fit))
    if results.others is not None and results.others.others:
        sentences.append(_other_runs([other.metrics for other in results.others.others], results.phases))
    for kind in results.sweeps:
        sentences.append(_ral(table_of(results.sweeps[kind], kind), kind))
    if results.cam is not None and results.cam.difference is not None:
        attention = {
            "contracts": "contracts: the heat maps of the last phase are more concentrated than those of the first",
            "spreads": "spreads: the heat maps of the last phase are less concentrated than those of the first",
        }.get(
            results.cam.difference.verdict, "cannot be said to contract or to spread from the first phase to the last"
        )
        sentences.append(f"Attention {attention} ({results.cam.images:,} images).")
    return sentences


def convergence_sentence(told: Verdict, found: Markers, axis: str = "epoch") -> str:
    """What the training loss does, and how slowly it changes where it has converged."""
    text = told.text.replace("`", "")
    if found.markers is None or found.cqi is None:
        return text
    return (
        f"{text} At convergence the smoothed loss changes by {found.cqi:.3g} from one {axis} to the next, at most mu = "
        f"{found.mu:g} (the CQI)."
    )


def share(part: float, count: int | None) -> str:
    """`98.3% [96.4, 99.2]`: a fraction of `count` independent cases with Wilson's 95% interval; without it where
    `count` is not known."""
    if not count:
        return f"{100 * part:.1f}%"
    from scipy.stats import binomtest  # takes a second to import

    low, high = binomtest(round(part * count), count).proportion_ci(method="wilson")
    return f"{100 * part:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _training(results: RunResults) -> str:
    config, last, data = results.run.config, results.epochs[-1], results.data
    images = f" ({data.train_images:,} training images)" if data else ""
    on = "" if config.is_recorded else f" on {config.data}{images}, at {config.image_size} px"
    text = f"{config.backbone} was trained{on} for {len(results.epochs):,} epochs"
    if isfinite(last.top1):
        held_out = f"{data.held_out_images:,} held-out images" if data else "held-out images"
        text += f". It recognises {share(last.top1, data.held_out_images if data else None)} of {held_out}"
    return text + ("." if results.is_trained else ". The training is not finished.")


def _reading(fit: Metrics) -> str:
    phases, images = len(fit.confusion), images_behind(fit)
    error, half = _error(fit, images)
    off = f" On average it is {error:.2f} phases off{f' ({error - half:.2f} to {error + half:.2f})' if half else ''}."
    hardly = "" if fit.accuracy > 2 / phases else "hardly "
    return (
        f"Maturity can {hardly}be read from the feature maps: FMCE-Net, shown one map of a held-out image, names the "
        f"right one of {phases} phases in {share(fit.accuracy, images)} of cases; guessing would give "
        f"{100 / phases:.1f}%.{off}"
    )


def images_behind(fit: Metrics) -> int:
    """The images that an FMCE-Net was tested on. The maps of one image are no independent cases: intervals count
    images."""
    return max(1, fit.test_maps // len(fit.confusion))


def _error(fit: Metrics, images: int) -> tuple[float, float]:
    """The mean error in phases, and half its 95% interval."""
    counts = np.array(fit.confusion, dtype=float)
    off = np.abs(np.subtract.outer(np.arange(len(counts)), np.arange(len(counts))))
    middle = float((counts * off).sum() / counts.sum())
    variance = float((counts * (off - middle) ** 2).sum() / counts.sum())
    return middle, 1.96 * sqrt(variance / images)


def _other_runs(metrics: list[Metrics], phases: int) -> str:
    accuracy = mean(each.accuracy for each in metrics)
    runs = "another training" if len(metrics) == 1 else f"{len(metrics)} other trainings"
    verdict = (
        "it is valid for its own training only" if accuracy < 2 / phases else "part of what it learnt holds there too"
    )
    return f"On feature maps of {runs}, the same FMCE-Net is right in {100 * accuracy:.1f}% of cases: {verdict}."


def _ral(table: list[RafRow], kind: str) -> str:
    rivals = [row for row in table if row.raf < 1 and row.difference is not None]
    net = "its FMCE-Net" if kind == "run" else "an FMCE-Net of each seed"
    if not rivals:
        return f"Training under {net} (FMCE-Net++) has not been compared with plain training on the same seeds yet."
    best = max(rivals, key=lambda row: row.difference or 0.0)
    difference = f"{100 * (best.difference or 0):+.2f} points of top-1"
    compared = (
        f"Training under {net} (FMCE-Net++), {len(rivals)} RAF{'s' * (len(rivals) > 1)} compared with plain training"
    )
    if best.low is None or best.high is None:
        return (
            f"{compared}: the best, RAF {best.raf:g}, differs by {difference} over {best.pairs} "
            f"seed{'s' * (best.pairs > 1)}. That is too little to tell it from chance."
        )
    verdict = "it helped" if best.low > 0 else "it hurt" if best.high < 0 else "that can be chance"
    return (
        f"{compared} over {best.pairs} seeds: with the best, RAF {best.raf:g}, {difference} "
        f"[{100 * best.low:+.2f}, {100 * best.high:+.2f}]: {verdict}."
    )
