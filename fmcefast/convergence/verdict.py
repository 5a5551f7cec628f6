"""What a curve does, in a sentence: it has converged, improves, is flat, diverges or jumps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isinf
from typing import Any

import numpy as np

from fmcefast.convergence.axis import Axis
from fmcefast.convergence.criterion import converged_at
from fmcefast.convergence.markers import Markers, round_up
from fmcefast.convergence.outlook import outlook
from fmcefast.convergence.parameters import MIN_DROP, MIN_DROP_OF_METRIC
from fmcefast.convergence.points import Points, points_of
from fmcefast.errors import InputError

_RISEN = 0.1  # part of its range that a loss which diverges has lost again


@dataclass(frozen=True)
class Verdict:
    """What a curve does; the fields are those of `verdict` in the JSON of `fmcefast markers`.

    kind: "converged", "improving", "flat", "diverging", "jumping" or "too-short". text: says so, with what to do.
    epoch: of convergence; when the CQI will reach mu, of a curve that improves; since when it diverges; of the last
    jump. low, high: between which epochs the CQI is likely to reach mu. Epochs have the curve's own numbers; None: it
    cannot be told.
    """

    kind: str
    text: str
    epoch: float | None = None
    low: float | None = None
    high: float | None = None
    validation_rises_since: float | None = None


def verdict(
    losses: Any,
    markers: Markers,
    *,
    validation: Any = None,
    epochs: Sequence[float] | np.ndarray | None = None,
    axis: str = "epoch",
) -> Verdict:
    """What a training loss does, and since when the validation loss has been rising.

    losses: (M,) as `find_markers` had them; they are read once. markers: what it found, best with a `min_drop`, without
    which a loss that has not begun to fall may have converged. validation: (M,) validation losses, NaN where there are
    none. epochs: (M,) rising numbers of the losses, by default 1, 2, 3, ...; axis: what they are: "epoch", "step", ...

    Raises InputError when `validation` or `epochs` are not as many as the losses.
    """
    smoothing: dict[str, Any] = {"alpha": markers.alpha, "window": markers.window, "smoothing": markers.smoothing}
    points = points_of(losses, markers.epochs, **smoothing)
    curve = _Curve("The loss", points, Axis(axis, epochs, markers.epochs), markers.mu, MIN_DROP)
    told = curve.tell(markers.markers[-1] if markers.markers else None, has_cqi=markers.min_cqi is not None)
    if validation is None:
        return told
    validation = np.asarray(validation, np.float64)
    if validation.shape != (markers.epochs,):
        raise InputError(f"There are {len(validation)} validation losses for {markers.epochs} losses; pad with NaN.")
    known = np.flatnonzero(np.isfinite(validation))
    since = points_of(validation[known], len(known), **smoothing).rising_since() if len(known) else None
    if since is None:
        return told
    since = known[round(since) - 1] + 1
    text = f"{told.text} The validation loss has been rising since {curve.axis(since)}."
    return replace(told, text=text, validation_rises_since=curve.axis.number(since))


def judge(
    values: Any,
    *,
    higher_is_better: bool = False,
    name: str = "The metric",
    epochs: Sequence[float] | np.ndarray | None = None,
    axis: str = "epoch",
    mu: float = 1e-4,
    alpha: float = 0.85,
    window: int = 5,
    smoothing: str = "ema",
    start: int = 1,
    min_drop: float = MIN_DROP_OF_METRIC,
    relative: bool = False,
) -> Verdict:
    """What any metric does, such as a validation accuracy, by the rule of `converged_at`, whose settings it takes.

    values: (M,) finite numbers of any sign. name: what the text calls them. epochs, axis: as for `verdict`.
    Raises InputError for an invalid value or setting.
    """
    values = np.asarray(values, np.float64)
    losses = -values if higher_is_better else values
    rule: dict[str, Any] = {"alpha": alpha, "window": window, "smoothing": smoothing}
    converged = converged_at(losses, mu=mu, start=start, min_drop=min_drop, relative=relative, **rule)
    points = points_of(losses, len(losses), **rule)
    curve = _Curve(name, points, Axis(axis, epochs, len(losses)), mu, min_drop, higher_is_better, relative)
    return curve.tell(converged, has_cqi=len(losses) >= max(window + 1, start))


@dataclass(frozen=True)
class _Curve:
    """A curve as a loss: where higher is better its values are negated.

    mu: what the CQI must come down to, with `relative` as a part of the curve. min_drop: a fall by less than this part
    of the loss is hardly one.
    """

    name: str
    points: Points
    axis: Axis
    mu: float
    min_drop: float
    higher_is_better: bool = False
    relative: bool = False

    def tell(self, converged: int | None, *, has_cqi: bool) -> Verdict:
        """converged: the epoch of convergence. has_cqi: whether some epoch has a CQI that counts."""
        if not has_cqi:
            return Verdict("too-short", f"{self.name} has too few {self.axis.name}s for a full window of the CQI.")
        points = self.points
        rising_since = points.rising_since(_RISEN) if points.trend >= 0 else None
        if converged is not None:
            return self._converged(converged, rising_since)
        if rising_since is not None:
            return self._diverging(rising_since)
        if points.jumps.size and points.jumps[-1] >= points.recent:
            return self._jumping()
        if points.trend < 0 and not (self._is_slow and self._has_hardly_moved):
            return self._improving()
        return self._flat()

    def _converged(self, epoch: int, rising_since: float | None) -> Verdict:
        text = f"{self.name} converged at {self.axis(epoch)}"
        if rising_since is not None and rising_since > epoch:
            text += f", but has {self._worsened} since {self.axis(rising_since)}"
        return Verdict("converged", f"{text}.", self.axis.number(epoch))

    def _diverging(self, since: float) -> Verdict:
        way = self._way(self.points.levels.min(), self.points.levels[-1])
        diverges = "gets worse" if self.higher_is_better else "diverges"
        text = f"{self.name} {diverges}: since {self.axis(since)} it has {self._worsened} {way}."
        return Verdict("diverging", text, self.axis.number(since))

    def _jumping(self) -> Verdict:
        points, last = self.points, self.points.jumps[-1]
        epoch, way = points.epochs[last], self._way(*points.losses[last - 1 : last + 1])
        often = "once" if len(points.jumps) == 1 else f"{len(points.jumps)} times"
        text = f"{self.name} jumps: {often} far beyond its noise, last at {self.axis(epoch)}, {way}."
        return Verdict("jumping", text, self.axis.number(epoch))

    def _improving(self) -> Verdict:
        still = f"{self.name} still {'rises' if self.higher_is_better else 'falls'}"
        if self._is_slow:
            text = f"{still}, but so slowly that its CQI is at most {self._mu}. Choose a smaller `mu`."
            return Verdict("improving", text)
        ahead = outlook(self.points, self.mu * self._unit)
        if ahead is None:
            return Verdict("improving", f"{still}; it cannot be told yet when its CQI will reach {self._mu}.")
        epoch, low = self.axis.number(ahead.epoch), self.axis.number(ahead.low)
        high = None if isinf(ahead.high) else self.axis.number(ahead.high)
        limits = f"not before {low}" if high is None else f"between {low} and {high}"
        when = f"near {self.axis.name} {epoch} ({limits})"
        text = f"{still}: at the present pace its CQI will reach {self._mu} {when}."
        return Verdict("improving", text, epoch, low, high)

    def _flat(self) -> Verdict:
        points = self.points
        way = self._way(points.smoothed[self._peak], points.smoothed[-1])
        peak = self.axis(points.epochs[self._peak])
        if self._has_hardly_moved:
            text = f"{self.name} is flat and has not converged: since {peak} it has hardly {self._improved}, {way}."
        elif self._is_slow:
            text = (
                f"{self.name} is flat, but its way since {peak}, {way}, does not count: it is within the noise, less "
                "than `min_drop`, or never was faster than mu."
            )
        else:
            text = (
                f"{self.name} is flat, but noise keeps its CQI near {self._cqi:.2g}{self._of_it}, above {self._mu}. "
                f"Choose `mu={round_up(self._cqi):g}`, or a larger `window` or `alpha`."
            )
        return Verdict("flat", text)

    @property
    def _cqi(self) -> float:
        """In the unit of mu."""
        return float(self.points.changes[-self.points.window :].mean()) / self._unit

    @property
    def _unit(self) -> float:
        return abs(float(self.points.smoothed[-1])) or 1.0 if self.relative else 1.0

    @property
    def _of_it(self) -> str:
        return f" of {self.name}" if self.relative else ""

    @property
    def _mu(self) -> str:
        return f"mu = {self.mu:g}{self._of_it}"

    @property
    def _is_slow(self) -> bool:
        return self._cqi <= self.mu

    @property
    def _peak(self) -> int:
        """Where E_0 is."""
        return int(np.argmax(self.points.losses))

    @property
    def _has_hardly_moved(self) -> bool:
        top = self.points.smoothed[self._peak]
        return bool(top - self.points.smoothed[-1] < self.min_drop * abs(top))

    @property
    def _improved(self) -> str:
        return "risen" if self.higher_is_better else "fallen"

    @property
    def _worsened(self) -> str:
        return "fallen" if self.higher_is_better else "risen"

    def _way(self, before: float, after: float) -> str:
        sign = -1 if self.higher_is_better else 1
        texts = ((f"{sign * before:.{digits}g}", f"{sign * after:.{digits}g}") for digits in range(3, 18))
        return next((f"from {a} to {b}" for a, b in texts if a != b), f"at {sign * after:.3g}")
