"""Epochs and steps of rows, as ranges where they are regular."""

from collections.abc import Callable, Iterator

import numpy as np

from fmcefast.convergence.sequences import Spool

_CHUNK = 1 << 20

Places = range | np.ndarray  # (n,)


class PlaceSpool:
    """Collects the epochs or the steps of rows; whole numbers at equal distances take no memory."""

    def __init__(self) -> None:
        self._regular = range(0)
        self._others: Spool | None = None
        self._complete = True

    def append(self, places: np.ndarray) -> None:
        """places: (n,) float64, NaN where there is none."""
        if self._others is None:
            joined = _continued(self._regular, places)
            if joined is not None:
                self._regular = joined
                return
            self._others = Spool()
            for first in range(0, len(self._regular), _CHUNK):
                self._others.append(np.asarray(self._regular[first : first + _CHUNK], np.float64))
        self._complete = self._complete and bool(np.isfinite(places).all())
        self._others.append(places)

    def vector(self) -> range | np.ndarray | None:
        """All places, None when some are missing or there are none at all."""
        if self._others is None:
            return self._regular if len(self._regular) else None
        return self._others.vector() if self._complete else None


def _continued(places: range, more: np.ndarray) -> range | None:
    """The range with more places after it, or None when they do not continue it."""
    if not len(more):
        return places
    if not np.isfinite(more).all():
        return None
    first = places[0] if len(places) else more[0]
    before = [*places[-1:], *more[:2]]
    distance = places.step if len(places) > 1 else before[1] - before[0] if len(before) > 1 else 1
    whole = float(first).is_integer() and float(distance).is_integer()
    joined = not len(places) or more[0] - places[-1] == distance
    if not whole or distance <= 0 or not joined or (more[1:] - more[:-1] != distance).any():
        return None
    return range(int(first), int(first) + (len(places) + len(more)) * int(distance), int(distance))


def neighbours(places: Places) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """In chunks, the number of the first row, places, and the place after each."""
    for first in range(0, len(places) - 1, _CHUNK):
        chunk = np.asarray(places[first : first + _CHUNK + 1])
        yield first, chunk[:-1], chunk[1:]


def starts_of(places: np.ndarray, begins: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The first row, and each for whose place and the one before `begins` is true."""
    later = [np.flatnonzero(begins(now, before)) + first + 1 for first, before, now in neighbours(places)]
    return np.concatenate([np.zeros(1, int), *later])


def place_text(place: float) -> str:
    """An epoch or a step as the log has it."""
    return str(int(place)) if float(place).is_integer() else f"{place:.6g}"
