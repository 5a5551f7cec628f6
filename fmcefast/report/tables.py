"""Tables of a page, as text."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


class Strong(str):
    """A cell that stands out."""


@dataclass(frozen=True)
class Table:
    """heads and rows: the text of every cell; text: the numbers of the columns that hold words."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Collection[int] = (0,)

    def without_empty_columns(self) -> "Table":
        kept = [place for place in range(len(self.heads)) if any(row[place] for row in self.rows)]
        return Table(
            self.caption,
            [self.heads[place] for place in kept],
            [[row[place] for place in kept] for row in self.rows],
            [number for number, place in enumerate(kept) if place in self.text],
        )


def interval(middle: float | None, low: float | None, high: float | None, form: str, scale: float = 1) -> str:
    """`+0.42 [-0.10, +0.94]`; the middle alone where there is no interval, nothing where there is no middle.

    scale: what all three are multiplied by: 100 for percent.
    """
    if middle is None:
        return ""
    if low is None or high is None:
        return format(scale * middle, form)
    return f"{scale * middle:{form}} [{scale * low:{form}}, {scale * high:{form}}]"
