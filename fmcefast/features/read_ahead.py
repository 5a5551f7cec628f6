"""Prepare the next items on threads while the caller uses the current one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield `work(item)` of every item in order, with up to `ahead` at a time on threads. Raises what `work` raises.

    Closing the iterator early does not wait for the threads. It uses SimpleQueue, which survives Ctrl-C at any moment;
    futures and locks do not.
    """
    todo: SimpleQueue = SimpleQueue()

    def serve() -> None:
        while (entry := todo.get()) is not None:
            item, result = entry
            try:
                result.put((work(item), None))
            except BaseException as error:
                result.put((None, error))

    def take(result: SimpleQueue) -> Result:
        value, error = result.get()
        if error is not None:
            raise error
        return value

    results: deque[SimpleQueue] = deque()
    try:
        for _ in range(ahead):
            Thread(target=serve, daemon=True, name="fmcefast-read").start()
        for item in items:
            results.append(SimpleQueue())
            todo.put((item, results[-1]))
            if len(results) > ahead:
                yield take(results.popleft())
        while results:
            yield take(results.popleft())
    finally:
        try:
            while True:
                todo.get_nowait()
        except Empty:
            for _ in range(ahead):
                todo.put(None)
