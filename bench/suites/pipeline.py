r"""The whole pipeline as a user runs it, from a cold start in an empty folder: `fmcefast run FLAGS`.

    fmcefast bench pipeline digits
    fmcefast bench pipeline --mnist ~/data/mnist mnist-64       # beside a plain script; two cores: 6 minutes a round
    fmcefast bench pipeline mnist-224 -- --data mnist --data-root ~/data/mnist --subset 2000 \
        --epochs 60 --until-converged -b 64 --mu 1e-2

With `--mnist`, `fmcefast run` on 2,000 of its images at 64 px takes turns with plain_pipeline.py, which does the same
without fmcefast. Equal are the numbers of images, epochs, phases and maps, the batch sizes, the networks, Adam and its
learning rates, the augmentation, and top-1 on as many test images after every epoch. The script takes the first images
instead of a stratified sample and evenly spaced epochs instead of markers, which costs the same, and draws no figures.
Timed are whole processes, and the loops of the stages.

Leaves pipeline-NAME.json and the run's figures beside it. Nothing is written when a result is not right, or when both
do not reach about the same accuracies.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.commands import fmcefast
from fmcefast.bench.tools.measuring import FMCEFAST, shown
from fmcefast.bench.tools.results import publish, result_name, row
from fmcefast.run.epochs import read_epochs
from fmcefast.run.folder import read_run
from fmcefast.runtime.waiting import waiting_settings

# Of the run on --mnist; flags given beside it come later and win.
MNIST_FLAGS = (
    "--data mnist --subset 2000 --image-size 64 --backbone shufflenet_v2_x0_5 -b 64 --epochs 60 --until-converged "
    "--mu 4.5e-2"
)
STAGES = ("train", "extract", "fit")
PLAIN = "plain script"


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("pipeline", __doc__)
    parser.add_argument("name")
    parser.add_argument("flags", nargs="*", help="flags of `fmcefast run`")
    parser.add_argument("--mnist", type=Path, help="torchvision's MNIST, to run beside a plain script")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args(argv)
    mnist = [*MNIST_FLAGS.split(), "--data-root", str(arguments.mnist.resolve())] if arguments.mnist else []
    words = ["run", f"runs/{arguments.name}", *mnist, *arguments.flags]

    ours: dict[str, list[float]] = defaultdict(list)
    plain: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        rows = [] if len(words) > 2 else start_up_rows(temporary)
        for number in range(arguments.rounds):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            result, ours_seconds = fmcefast(*words, cwd=folder)
            check(result)
            run = folder / "runs" / arguments.name
            note(ours, ours_seconds, {entry["stage"]: entry["seconds"] for entry in history(run)})
            if mnist:
                theirs, plain_seconds = plain_script(run, folder)
                check_alike(result, theirs)
                note(plain, plain_seconds, theirs)

        rows += [
            *(row(name, taken, "s", **ratio(plain, name, taken)) for name, taken in ours.items()),
            *(row(f"{PLAIN}: {name}", taken, "s") for name, taken in plain.items()),
            row("backbone top-1, held-out images", [result["train"]["top1"]], "fraction"),
            row("FMCE-Net accuracy, held-out images", [result["fit"]["accuracy"]], "fraction"),
            row("FMCE-Net F1, held-out images", [result["fit"]["f1"]], "fraction"),
        ]
        arguments.results.mkdir(parents=True, exist_ok=True)
        for figure in ("convergence", "confusion"):
            target = f"{result_name('pipeline', arguments.name)}-{figure}.png"
            shutil.copy(run / "figures" / f"{figure}.png", arguments.results / target)
        facts = {"command": shown(["fmcefast", *words]), "markers": result["markers"]["markers"]}
        publish(arguments, "pipeline", rows, of=arguments.name, **facts)


def note(taken: dict[str, list[float]], whole: float, stages: dict[str, float]) -> None:
    taken["whole run"].append(whole)
    for stage in STAGES:
        if stage in stages:  # with --store recompute nothing is extracted
            taken[stage].append(stages[stage])


def ratio(plain: dict[str, list[float]], name: str, taken: list[float]) -> dict:
    """How many times as long the plain script takes; of each round: the machine's speed changes slowly."""
    of_rounds = [theirs / mine for theirs, mine in zip(plain[name], taken, strict=True)] if plain else []
    return {"ratio": {PLAIN: median(of_rounds)}} if of_rounds else {}


def plain_script(run: Path, folder: Path) -> tuple[dict, float]:
    """What plain_pipeline.py says when it does the work of `run`, and the seconds of its process."""
    config, epochs = read_run(run).config, len(read_epochs(run / "losses.csv"))
    names = ("data_root", "subset", "image_size", "backbone", "batch_size", "lr", "phases", "fmce_epochs",
             "fmce_batch_size", "fmce_lr", "seed")  # fmt: skip
    settings = {"epochs": epochs, "schedule": config.epochs, **{name: getattr(config, name) for name in names}}
    words = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
    command = [sys.executable, Path(__file__).with_name("plain_pipeline.py"), *words]
    work = folder / "plain"
    work.mkdir()
    as_elsewhere = {name: value for name, value in os.environ.items() if name not in waiting_settings()}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=work, env=as_elsewhere, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - began


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


def check_alike(result: dict, theirs: dict) -> None:
    """Refuse to compare trainings that learn differently."""
    assert abs(result["train"]["top1"] - theirs["top1"]) < 0.03, "the backbones are not equally good"
    assert abs(result["fit"]["accuracy"] - theirs["accuracy"]) < 0.1, "the FMCE-Nets are not equally good"


if __name__ == "__main__":
    main()
