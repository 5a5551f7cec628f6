"""Text logs, from whose lines a regular expression takes the losses."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice

import regex

from fmcefast.errors import InputError
from fmcefast.logs.source import Source
from fmcefast.logs.table import Table, kinds_of

_LONGEST = 1000  # characters of a line that are searched, which bounds the time a pattern can take
_SLOWEST = 2.0  # seconds a line may take
_SAMPLE = 100  # lines that tell which groups are numbers
_COLOURS = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


class Matches(Table):
    """The lines of a text that a regular expression fits, each once; its groups are the columns.

    Of groups without a name the first is the loss. Raises InputError for an expression that is wrong, has no group, or
    fits no line; while it reads, for a line that takes too long.
    """

    format = "text"

    def __init__(self, source: Source, pattern: str):
        self._source = source
        try:
            self._pattern = regex.compile(pattern)  # which can stop a search that would go on for ever
        except (regex.error, RecursionError) as error:
            raise InputError(f"`pattern={pattern}` is no regular expression: {error}.") from error
        if not self._pattern.groups:
            raise InputError(f"`pattern={pattern}` has no group: put the number into brackets, as in loss: ([-+.\\w]+)")
        self._groups: dict[str, int] = dict(self._pattern.groupindex)
        if not self._groups:
            self._groups = {"loss": 1} | {str(i): i for i in range(2, self._pattern.groups + 1)}
        sample = [cells for _, cells in islice(self.rows(list(self._groups)), _SAMPLE)]
        if not sample:
            raise InputError(f"no line fits `pattern={pattern}`.")
        self._numbers, self._texts = kinds_of({name: [row[i] for row in sample] for i, name in enumerate(self._groups)})

    def columns(self) -> list[str]:
        return self._numbers

    def text_columns(self) -> list[str]:
        return self._texts

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[str | None]]]:
        groups = [self._groups[name] for name in names]
        with self._source.open_text(newline=None) as text:  # a progress bar ends its lines with a carriage return
            for number, line in enumerate(iter(lambda: text.readline(1 << 16), ""), start=1):
                try:
                    match = self._pattern.search(plain(line), timeout=_SLOWEST)
                except TimeoutError as error:
                    raise InputError(
                        f"line {number}: the search takes more than {_SLOWEST:g} s. Let `pattern` repeat less: "
                        "no * or + after a group that holds another, and \\S or \\d in place of a dot."
                    ) from error
                if match:
                    yield number, [match[group] for group in groups]


def plain(line: str) -> str:
    """The beginning of a line, without the codes that colour it."""
    return _COLOURS.sub("", line[:_LONGEST].rstrip())
