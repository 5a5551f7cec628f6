"""Tables of plain text."""

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


def ending(text: str, width: int) -> str:
    """The text, or what fits of its end, after three dots."""
    return text if len(text) <= width else "..." + text[len(text) - width + 3 :]
