"""Batches that are begun before their turn."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

Begun = TypeVar("Begun")
Batch = TypeVar("Batch")


def begun_ahead(
    begin: Callable[[slice], Begun], finish: Callable[[Begun], Batch], count: int, batch_size: int, ahead: int
) -> Iterator[Batch]:
    """Yield `finish(begin(part))` for each part of `count` images, once `begin` was called for the `ahead` after it."""
    begun: deque[Begun] = deque()
    for first in range(0, count, batch_size):
        begun.append(begin(slice(first, first + batch_size)))
        if len(begun) > ahead:
            yield finish(begun.popleft())
    while begun:
        yield finish(begun.popleft())
