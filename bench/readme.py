"""README's section of measured figures, made from bench/results and bench/measured.md.j2.

    python bench/readme.py            # writes the section anew
    python bench/readme.py --check    # says whether that would change it

Every figure comes from a result by its name; one that is missing stops it.
"""

import argparse
import json
import re
from math import floor, log10
from pathlib import Path
from statistics import fmean
from textwrap import fill

import jinja2

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
WIDTH = 120


class MissingResultError(Exception):
    """Not a LookupError: Jinja takes those for undefined values and forgets what was looked for."""


class Facts(dict):
    """A part of the results, which says what it is when asked for something that it does not hold."""

    def __init__(self, place: str, content: dict):
        super().__init__(content)
        self._place = place
        for key, value in content.items():
            if type(value) is dict:
                self[key] = Facts(f"{place}, {key}", value)

    def __missing__(self, key: str):
        raise MissingResultError(f"{self._place}: there is no {key!r}")

    def among(self, begin: str = "", end: str = "") -> list[tuple[str, "Facts"]]:
        """All whose names begin and end so, with what is between; there must be some."""
        names = [name for name in self if name.startswith(begin) and name.endswith(end)]
        if not names:
            raise MissingResultError(f"{self._place}: there is no '{begin}...{end}'")
        return [(name.removeprefix(begin).removesuffix(end), self[name]) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 when README is stale")
    arguments = parser.parse_args()
    found = README.read_text("utf-8")
    wanted = with_section(found, measured(HERE / "results"))
    if not arguments.check:
        README.write_text(wanted, "utf-8")
    elif found != wanted:
        raise SystemExit("README.md does not say what is in bench/results: run python bench/readme.py")


def measured(results: Path) -> str:
    """The section, from its heading to the empty line before the next."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number, "significant": significant, "percent": percent, "duration": duration, "mean": fmean
    }  # fmt: skip
    files = {path.stem: load(path) for path in sorted(results.glob("*.json"), key=lambda path: path.stem)}
    text = environment.get_template("measured.md.j2").render(results=Facts("bench/results", files), line=line)
    return "\n\n".join(filled(block) for block in re.split(r"\n{2,}", text.strip())) + "\n\n"


def with_section(readme: str, section: str) -> str:
    """README with this section in place of its section of the same heading."""
    heading = section.splitlines()[0]
    place = re.search(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    if place is None:
        raise ValueError(f"README has no section {heading!r}")
    return readme[: place.start()] + section + readme[place.end() :]


def load(path: Path) -> Facts:
    """A result file, with its rows by name."""
    content = json.loads(path.read_text("utf-8"))
    return Facts(path.name, {**content, "rows": {row["name"]: row for row in content["rows"]}})


def filled(block: str) -> str:
    """Prose and lists filled to WIDTH; headings and tables as they are."""
    if block.startswith(("#", "|")):
        return block
    indent = "  " if block.startswith("- ") else ""
    items = [" ".join(item.split()) for item in re.split(r"\n(?=- )", block)]
    return "\n".join(
        fill(item, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) for item in items
    )


def line(*cells: str | None) -> str:
    """Of a table; None is no cell."""
    return f"| {' | '.join(cell for cell in cells if cell is not None)} |"


def number(value: float, digits: int = 0, sign: str = "-") -> str:
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}"  # no -0


def significant(value: float, digits: int = 3) -> str:
    return number(value, max(digits - 1 - floor(log10(abs(value))), 0) if value else 0)


def percent(fraction: float, digits: int = 0) -> str:
    return f"{fraction:.{digits}%}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


if __name__ == "__main__":
    main()
