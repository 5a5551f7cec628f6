"""Text logs with one row per line, parsed in parallel blocks of whole lines."""

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, TypeVar

from fmcefast.logs.source import Source
from fmcefast.logs.table import Chunk, Table

_BLOCK = 1 << 22
_LONGEST_LINE = 1 << 26

Result = TypeVar("Result")


class Lines(Table):
    """A text log whose rows are lines."""

    def __init__(self, source: Source):
        self.source = source
        self.header_lines = 0

    def chunks(self, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Chunk]:
        parse = self.parser(numbers, texts)
        with self.source.open() as file:
            header = [file.readline() for _ in range(self.header_lines)]
            if any(b"\r" in line.rstrip(b"\r\n") for line in header):
                raise ValueError("lines that end in a carriage return")
            yield from _in_threads(parse, _blocks(file))

    @abstractmethod
    def parser(self, numbers: Sequence[str], texts: Sequence[str]) -> Callable[[bytes], Chunk]:
        """A function from a block of lines to a chunk."""


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file in blocks of whole lines; blocks of white space are skipped."""
    rest = b""
    while data := file.read(_BLOCK):
        end = data.rfind(b"\n") + 1
        if end == 0:
            rest += data
            if len(rest) > _LONGEST_LINE:
                raise ValueError("a very long line")
            continue
        block, rest = b"".join((rest, memoryview(data)[:end])), data[end:]
        if not block.isspace():
            yield block
    if rest and not rest.isspace():
        yield rest


def _in_threads(function: Callable[[bytes], Result], items: Iterable[bytes]) -> Iterator[Result]:
    """Like map, but with one thread per core and a bounded number of pending results."""
    threads = len(os.sched_getaffinity(0))
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
