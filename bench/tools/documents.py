"""Writes what was measured into documents: bench/RESULTS.md, and the table in README.md.

    python bench/tools/documents.py            # write both
    python bench/tools/documents.py --check    # change nothing; exit with 1 when one of them is stale

Every figure is looked up in bench/results by name, and a missing one is an error.
"""

import argparse
import json
import re
from math import floor, log10
from pathlib import Path
from statistics import fmean
from textwrap import fill

import jinja2

TOOLS = Path(__file__).resolve().parent
RESULTS = TOOLS.parent / "results"
PAGE = TOOLS.parent / "RESULTS.md"
README = TOOLS.parent.parent / "README.md"
BEGIN, END = "<!-- measured: written by bench/tools/documents.py -->", "<!-- end of measured -->"
WIDTH = 120


class MissingResultError(Exception):
    """A figure that the results do not hold. Not a LookupError, which Jinja would turn into an undefined value."""


class Facts(dict):
    """A part of the results. Looking up a missing key raises MissingResultError with the place in the results."""

    def __init__(self, place: str, content: dict):
        super().__init__(content)
        self.place = place
        for key, value in content.items():
            if type(value) is dict:
                self[key] = Facts(f"{place}, {key}", value)

    def __missing__(self, key: str):
        raise MissingResultError(f"{self.place}: there is no {key!r}")

    def matching(self, begin: str = "", end: str = "") -> list[tuple[str, "Facts"]]:
        """[(middle, value)] of all keys `begin` + middle + `end`; at least one must exist."""
        names = [name for name in self if name.startswith(begin) and name.endswith(end)]
        if not names:
            raise MissingResultError(f"{self.place}: there is no '{begin}...{end}'")
        return [(name.removeprefix(begin).removesuffix(end), self[name]) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 when a document is stale")
    arguments = parser.parse_args()
    readme = README.read_text("utf-8")
    page = PAGE.read_text("utf-8") if PAGE.exists() else ""
    for path, before, after in (
        (README, readme, with_table(readme, render("readme.md.j2", RESULTS))),
        (PAGE, page, render("results.md.j2", RESULTS)),
    ):
        if before != after and arguments.check:
            raise SystemExit(f"{path.name} differs from bench/results: run python bench/tools/documents.py")
        if before != after:
            path.write_text(after, "utf-8")


def render(template: str, results: Path) -> str:
    """A template of templates/, filled with the result files in a folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TOOLS / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": number, "significant": significant, "percent": percent, "part": part, "duration": duration,
        "mean": fmean,
    }  # fmt: skip
    files = {path.stem: load(path) for path in sorted(results.glob("*.json"), key=lambda path: path.stem)}
    environment.globals |= {"results": Facts("bench/results", files), "files": " ".join(files), "line": line}
    text = environment.get_template(template).render()
    return "\n\n".join(filled(block) for block in re.split(r"\n{2,}", text.strip())) + "\n"


def with_table(readme: str, table: str) -> str:
    """The README with `table` between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README has no place for the measured table: {BEGIN} ... {END}")
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def load(path: Path) -> Facts:
    """A result file, with its rows by name."""
    content = json.loads(path.read_text("utf-8"))
    return Facts(path.name, {**content, "rows": {row["name"]: row for row in content["rows"]}})


def filled(block: str) -> str:
    """Prose and lists wrapped at WIDTH; headings, tables, comments and pictures as they are."""
    if block.startswith(("#", "|", "<!--", "![")):
        return block
    indent = "  " if block.startswith("- ") else ""
    items = [" ".join(item.split()) for item in re.split(r"\n(?=- )", block)]
    return "\n".join(
        fill(item, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) for item in items
    )


def line(*cells: str | None) -> str:
    """A line of a table; cells that are None are left out."""
    return f"| {' | '.join(cell for cell in cells if cell is not None)} |"


def number(value: float, digits: int = 0, sign: str = "-") -> str:
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}"  # + 0.0 turns -0 into 0


def significant(value: float, digits: int = 3) -> str:
    return number(value, max(digits - 1 - floor(log10(abs(value))), 0) if value else 0)


def percent(fraction: float, digits: int = 0) -> str:
    return f"{fraction:.{digits}%}"


def part(fraction: float | None) -> str:
    return "-" if fraction is None else number(fraction, 2)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


if __name__ == "__main__":
    main()
