"""Which rows of a log count, and in which order: trainings that began anew or were resumed, rows in no order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fmcefast.errors import InputError
from fmcefast.logs.places import Places, neighbours, place_text, starts_of

_CHUNK = 1 << 20
_MOST_BLOCKS = 1000
_SHORT = 3  # rows: when blocks are shorter on average, the rows are in no order
_LONG = 8  # rows: when blocks are longer on average, steps in disorder are those of a resumed training

Block = tuple[int, int]  # the first row and the one after the last
Range = tuple[float, float]  # the first and the last epoch or step


@dataclass(frozen=True)
class Order:
    """pieces: the rows that count, in order, as slices or as indices (n,); None for all as they are. trainings: how
    many there are in the log. several: whether epochs, or steps, have several rows."""

    pieces: Sequence[slice] | np.ndarray | None = None
    trainings: int = 1
    several: bool = False
    notes: Sequence[str] = ()

    def take(self, values: Places) -> Iterator[np.ndarray]:
        """The values of the rows that count, in chunks (n,) float64."""
        if isinstance(self.pieces, np.ndarray):
            parts = [np.asarray(values)[self.pieces]]
        else:
            parts = [values[piece] for piece in ([slice(None)] if self.pieces is None else self.pieces)]
        for part in parts:
            for first in range(0, len(part), _CHUNK):
                yield np.asarray(part[first : first + _CHUNK], np.float64)


def order_rows(count: int, epochs: Places | None, steps: Places | None, training: int | None = None) -> Order:
    """Put the rows (count,) of a log in order by their epochs, or by their steps when they have no epochs.

    Where no epoch repeats, rows are sorted. A row that does not continue the one before begins a block. A block that
    begins at the first epoch of the log, or before, is a new training, of which the last counts, or number `training`
    from 1. One that begins later is a resumed training: its rows replace earlier ones of the same epochs, and where
    there are steps, those between its first and its last step, which need not be the same. Raises InputError when there
    is no such training, or no order.
    """
    places, unit = (steps, "step") if epochs is None else (epochs, "epoch")
    if places is None or isinstance(places, range):
        return _only(Order(), training)
    key, starts, several = _stretches(count, places, steps if epochs is not None else None)
    if len(starts) == 1:
        return _only(Order(several=several), training)
    firsts, lasts = key[starts], key[np.append(starts[1:], count) - 1]
    ascending = np.argsort(firsts)
    apart = (lasts[ascending][:-1] < firsts[ascending][1:]).all()
    disorder = unit == "epoch" or count < _LONG * len(starts)
    if apart or (disorder and not several and len(np.unique(key)) == count):
        return _only(Order(np.argsort(key, kind="stable"), several=several, notes=[f"sorted by {unit}"]), training)
    if len(starts) > min(_MOST_BLOCKS, max(20, count // _SHORT)):
        raise InputError(f"its {unit}s are in no order, and some repeat. Sort the rows of the log by {unit}.")
    blocks = list(pairwise([*starts.tolist(), count]))
    trainings = _trainings(places, key, blocks)
    number = len(trainings) if training is None else training
    _check(number, len(trainings))
    notes = []
    if len(trainings) > 1:
        other = len(trainings) - 1 if number == len(trainings) else len(trainings)
        which = "the last" if number == len(trainings) else f"number {number}"
        notes.append(f"{which} of {len(trainings)} trainings (`training={other}` takes another)")
    by_epoch = key is places and unit == "epoch"
    pieces, replaced = (_latest_of_epochs if by_epoch else _latest_of_steps)(key, trainings[number - 1])
    if replaced:
        notes.append(_said(unit, replaced))
    return Order(pieces, len(trainings), several, notes)


def _only(order: Order, training: int | None) -> Order:
    _check(1 if training is None else training, 1)
    return order


def _check(training: int, trainings: int) -> None:
    if not 1 <= training <= trainings:
        raise InputError(
            f"`training={training}`: "
            + (f"the log holds {trainings} trainings." if trainings > 1 else "the log holds one training.")
        )


def _stretches(count: int, places: np.ndarray, steps: Places | None) -> tuple[np.ndarray, np.ndarray, bool]:
    """What the rows are ordered by, where the stretches that are in order begin, and whether places have several rows.

    steps: those beside epochs, which tell where a training was resumed within an epoch.
    """
    ties = sum(int((before == now).sum()) for _, before, now in neighbours(places))
    several = 3 * ties >= count
    starts = starts_of(places, np.less if several else np.less_equal)
    if not several or steps is None:
        return places, starts, several
    within = _starts_within(places, steps)
    # More beginnings would show that steps are in no order within an epoch.
    most = count // _LONG if _go_on(places, steps) else (count - ties) // 10
    if len(within) == 1 or len(within) - len(starts) > max(1, most):
        return places, starts, several
    return np.asarray(places) + 1j * np.asarray(steps), within, several  # which NumPy orders as pairs


def _starts_within(epochs: np.ndarray, steps: Places) -> np.ndarray:
    """The first row, and each that is not later than the one before, by its epoch and then its step."""
    pairs = zip(neighbours(epochs), neighbours(steps), strict=True)
    later = [
        np.flatnonzero((now < before) | ((now == before) & (now_step <= before_step))) + first + 1
        for (first, before, now), (_, before_step, now_step) in pairs
    ]
    return np.concatenate([np.zeros(1, int), *later])


def _go_on(epochs: np.ndarray, steps: Places) -> bool:
    """Whether steps are counted over all epochs, and not anew in each."""
    pairs = zip(neighbours(epochs), neighbours(steps), strict=True)
    grows = [(now_step > before_step)[now > before] for (_, before, now), (_, before_step, now_step) in pairs]
    grow = np.concatenate(grows)
    return len(grow) == 0 or bool(grow.mean() > 0.9)


def _trainings(places: np.ndarray, key: np.ndarray, blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks of each training."""
    trainings: list[list[Block]] = [[blocks[0]]]
    for start, end in blocks[1:]:
        within_epoch = places[start] == places[start - 1]
        if key[start] <= key[0] if within_epoch else places[start] <= places[0]:
            trainings.append([])
        trainings[-1].append((start, end))
    return trainings


def _latest_of_epochs(epochs: np.ndarray, blocks: Sequence[Block]) -> tuple[np.ndarray, list[Range]]:
    """The rows of each epoch in the last block that has some, in order; and the epochs that several blocks have."""
    rows = np.concatenate([np.arange(*block) for block in blocks])
    block = np.repeat(np.arange(len(blocks)), [end - start for start, end in blocks])
    different, which = np.unique(epochs[rows], return_inverse=True)
    last = np.zeros(len(different), int)
    np.maximum.at(last, which, block)
    replaced = np.zeros(len(different), bool)
    replaced[which[block < last[which]]] = True
    edges = np.flatnonzero(np.diff(replaced, prepend=False, append=False))
    kept = rows[block == last[which]]
    ranges = [(different[start], different[end - 1]) for start, end in edges.reshape(-1, 2)]
    return kept[np.argsort(epochs[kept], kind="stable")], ranges


def _latest_of_steps(key: np.ndarray, blocks: Sequence[Block]) -> tuple[list[slice], list[Range]]:
    """The rows that do not lie between the first and the last step of a later block, in order; and what others do."""
    pieces: list[Block] = []
    replaced: list[Range] = []
    for start, end in blocks:
        kept = [(start, end)]
        for begin, stop in pieces:
            low = begin + int(np.searchsorted(key[begin:stop], key[start], "left"))
            high = begin + int(np.searchsorted(key[begin:stop], key[end - 1], "right"))
            kept += [(begin, low), (high, stop)]
            if low < high:
                replaced.append((key[low].real, key[high - 1].real))
        pieces = sorted((piece for piece in kept if piece[0] < piece[1]), key=lambda piece: key[piece[0]])
    return [slice(*piece) for piece in pieces], replaced


def _said(unit: str, replaced: Sequence[Range], most: int = 3) -> str:
    """That some epochs were trained more than once."""
    replaced = list(dict.fromkeys(replaced))
    ends = [list(dict.fromkeys(map(place_text, ends))) for ends in replaced[:most]]
    more = f" and {len(replaced) - most} more" if len(replaced) > most else ""
    plural = "" if len(replaced) == 1 and len(ends[0]) == 1 else "s"
    return f"{unit}{plural} {', '.join(map(' to '.join, ends))}{more} trained again, of which the later rows count"
