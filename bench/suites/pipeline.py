r"""The whole pipeline as a user runs it, from a cold start in an empty folder: `fmcefast run FLAGS`.

    fmcefast bench pipeline digits
    fmcefast bench pipeline mnist-224 -- --data mnist --data-root ~/data/mnist --subset 2000 \
        --epochs 60 --until-converged -b 64 --mu 1e-2

Leaves pipeline-NAME.json and the run's figures beside it. Nothing is written when a result is not right.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import FMCEFAST, shown
from fmcefast.bench.tools.results import publish, result_name, row


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("pipeline", __doc__)
    parser.add_argument("name")
    parser.add_argument("flags", nargs="*", help="flags of `fmcefast run`")
    arguments = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        rows = [] if arguments.flags else start_up_rows(folder)
        words = ["run", f"runs/{arguments.name}", *arguments.flags]
        began = time.perf_counter()
        done = subprocess.run([*FMCEFAST, *words, "--json"], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - began
        result, run = json.loads(done.stdout), Path(folder) / "runs" / arguments.name
        check(result)

        markers, fit, train = result["markers"], result["fit"], result["train"]
        rows += [
            row("whole run", [seconds], "s"),
            *(row(entry["stage"], [entry["seconds"]], "s") for entry in history(run)),
            row("backbone top-1, held-out images", [train["top1"]], "fraction"),
            row("FMCE-Net accuracy, held-out images", [fit["accuracy"]], "fraction"),
            row("FMCE-Net F1, held-out images", [fit["f1"]], "fraction"),
        ]
        arguments.results.mkdir(parents=True, exist_ok=True)
        for figure in ("convergence", "confusion"):
            target = f"{result_name('pipeline', arguments.name)}-{figure}.png"
            shutil.copy(run / "figures" / f"{figure}.png", arguments.results / target)
        facts = {"command": shown(["fmcefast", *words]), "markers": markers["markers"]}
        publish(arguments, "pipeline", rows, of=arguments.name, **facts)


def start_up_rows(folder: str) -> list[dict]:
    """What a user waits for before anything happens, each process new."""
    commands = {"fmcefast --help": [*FMCEFAST, "--help"], "import fmcefast": [sys.executable, "-c", "import fmcefast"]}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(11):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
            taken[name].append(time.perf_counter() - began)
    return [row(name, values, "s") for name, values in taken.items()]


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def check(result: dict) -> None:
    """Refuse to report a run that went wrong."""
    markers = result["markers"]["markers"]
    assert all(a < b for a, b in pairwise(markers)), f"markers do not increase: {markers}"
    confusion = result["fit"]["confusion"]
    right = sum(confusion[k][k] for k in range(len(confusion))) / sum(map(sum, confusion))
    assert abs(right - result["fit"]["accuracy"]) < 1e-12, "the accuracy is not the confusion matrix's"


if __name__ == "__main__":
    main()
