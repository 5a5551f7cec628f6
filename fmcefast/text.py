"""Tables of plain text, and text that fits a terminal."""

import re
import textwrap
from collections.abc import Collection, Sequence

WIDTH = 100  # characters that a table may take


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """The rows of a table as lines. Each column is as wide as its widest cell; those in `numbers` end together, the
    others begin together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:>{width}}" if at in numbers else f"{cell:{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def counted(number: int, thing: str) -> str:
    """`1 epoch`, `1,200 epochs`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def ending(text: str, width: int) -> str:
    """The text, or what fits of its end, after three dots."""
    return text if len(text) <= width else "..." + text[len(text) - width + 3 :]


def wrapped(text: str, width: int) -> str:
    """The text with long lines broken between words; the rest of a row begins below its second column. A line with a
    command stays whole, to be copied."""
    return "\n".join(_wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    if len(line) <= width or "fmcefast " in line:
        return line
    first_column = re.match(r"\s*\S+(?: \S+)*\s{2,}", line)
    indent = min(first_column.end() if first_column else 2, width // 2)
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
