"""The rows that a writer still has to write."""

from collections import deque
from pathlib import Path

from fmcefast.errors import InputError
from fmcefast.features.shards import Layout, Span


class Ledger:
    """Which rows a writer takes next, in each of `phases` phases.

    shards: the ones to write, in order. folder: of the store, for messages.
    """

    def __init__(self, folder: Path, layout: Layout, phases: int, shards: list[Span]):
        self._folder, self._layout = folder, layout
        scores = range(1, phases + 1)
        self._shards = {score: deque(span for span in shards if span.score == score) for score in scores}
        self._left = {score: _joined(self._shards[score]) for score in scores}
        self._begun: Span | None = None  # the rest of a phase that stopped within a shard

    def next_row(self, score: int) -> int:
        """The first row that is missing in a phase, or the number of samples."""
        self._check(score)
        return self._left[score][0].first if self._left[score] else self._layout.samples

    def spans(self) -> list[Span]:
        """The missing rows, by score; adjacent shards are joined."""
        return [span for spans in self._left.values() for span in spans]

    def take(self, score: int, rows: int) -> None:
        """Count the next `rows` of a phase as written. Raises InputError when they do not fit."""
        self._check(score)
        begun, samples = self._begun, self._layout.samples
        if begun is not None and begun.score != score:
            raise InputError(
                f"Phase {begun.score} has {begun.first} of {samples} rows; finish it before phase {score}."
            )
        left = self._left[score]
        span = left[0] if left else Span(score, samples, 0)
        if rows > span.rows:
            expected = f"rows {span.first} to {span.end - 1} next" if span.rows else "no more rows"
            raise InputError(
                f"Phase {score} of {self._folder} takes {expected}; {rows} do not fit. writer.spans() lists what it "
                "takes."
            )
        if rows == 0:
            return
        rest = Span(score, span.first + rows, span.rows - rows)
        if rest.rows:
            left[0] = rest
        else:
            left.popleft()
        self._begun = rest if rest.rows and rest.first % self._layout.rows_per_shard else None

    def next_shard(self, score: int) -> Span:
        """The shard in which the next rows of a phase begin; each is returned once."""
        return self._shards[score].popleft()

    def _check(self, score: int) -> None:
        if score not in self._left:
            raise InputError(f"Score {score} is not one of 1..{len(self._left)}.")


def _joined(spans: deque[Span]) -> deque[Span]:
    joined: deque[Span] = deque()
    for span in spans:
        if joined and joined[-1].end == span.first:
            before = joined.pop()
            span = Span(span.score, before.first, before.rows + span.rows)
        joined.append(span)
    return joined
