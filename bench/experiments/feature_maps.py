r"""What training on feature maps is worth: accuracy on held-out images, and on images that were changed to mislead.

    fmcefast bench feature-maps mnist -- --data mnist --data-root ~/data --epochs 5 --layer maps1 --layer maps2
    fmcefast bench feature-maps digits

Runs `fmcefast learn fgsm` with these flags, which trains as `fmcefast learn features` does, in an empty folder, or in
--folder to go on after an interruption. Leaves feature-maps-NAME.json and the figure of the report.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.commands import fmcefast, working_folder
from fmcefast.bench.tools.measuring import shown
from fmcefast.bench.tools.results import publish, result_name, row
from fmcefast.finetuning.table import paired_interval
from fmcefast.learning.feature_training import saved_features
from fmcefast.learning.fgsm import FgsmResult, saved_fgsm
from fmcefast.learning.kept_training import IMAGES, KeptTraining
from fmcefast.run.folder import read_run


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("feature-maps", __doc__)
    parser.add_argument("name")
    parser.add_argument("--folder", type=Path, help="where the run is kept")
    parser.add_argument("flags", nargs="*", help="flags of `fmcefast learn fgsm`")
    arguments = parser.parse_args(argv)
    with working_folder(arguments.folder) as folder:
        fmcefast("learn", "fgsm", arguments.name, *arguments.flags, cwd=folder)
        fmcefast("report", arguments.name, cwd=folder)
        run = read_run(folder / arguments.name)
        trained, attacked = saved_features(run), saved_fgsm(run)
        arguments.results.mkdir(parents=True, exist_ok=True)
        picture = f"{result_name('feature-maps', arguments.name)}-fgsm.png"
        shutil.copy(run.figures / "learn-fgsm.png", arguments.results / picture)
    assert trained is not None and attacked is not None
    rows = [*trainings(trained.trainings), *attacks(attacked)]
    for entry in rows:
        print(f"{entry['name']:56}{100 * entry['value']:8.2f}%")
    facts = {name: getattr(attacked, name) for name in ("data", "backbone", "layers", "epsilons")}
    publish(arguments, "feature-maps", rows, of=arguments.name, peers=("scipy",), flags=shown(arguments.flags), **facts)


def trainings(all_of_them: list[KeptTraining]) -> Iterator[dict]:
    """A row for images and for the maps of each layer, with the difference to images over paired seeds."""
    by_seed = {
        on: {each.seed: each for each in all_of_them if each.on == on}
        for on in dict.fromkeys(each.on for each in all_of_them)
    }
    for on, of_kind in by_seed.items():
        differences = np.array([each.accuracy - by_seed[IMAGES][seed].accuracy for seed, each in of_kind.items()])
        low, high = paired_interval(differences)
        entry = row(
            f"trained on {on}",
            [float(np.mean([each.accuracy for each in of_kind.values()]))],
            "accuracy",
            train_accuracy=float(np.mean([each.train_accuracy for each in of_kind.values()])),
            difference=float(differences.mean()),
            low=low,
            high=high,
        )
        yield {**entry, "n": len(of_kind)}


def attacks(result: FgsmResult) -> Iterator[dict]:
    """A row for each network, attack and epsilon."""
    seeds = len({each.seed for each in result.attacks})
    for network, attacked in result.kinds:
        for epsilon in result.epsilons:
            facts = {"network": network, "attacked": attacked, "epsilon": epsilon}
            if network != IMAGES:
                difference, low, high = result.difference(network, attacked, epsilon)
                facts |= {"difference": difference, "low": low, "high": high}
            name = f"{network}, attack on {attacked}, epsilon {epsilon:g}"
            yield {**row(name, [result.mean(network, attacked, epsilon)], "accuracy", **facts), "n": seeds}


if __name__ == "__main__":
    main()
