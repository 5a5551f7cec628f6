r"""Where the first seconds of a training go, each time in a process of its own.

    fmcefast bench start                                                        # two cores: about 3 minutes
    fmcefast bench start --backbone resnet50 --image-size 224 --batch 256       # a GPU

Tells apart imports, the start of CUDA and the first steps: with cuDNN's own choice of algorithms, with trials of a few
of them and of all; with `--no-graphs`, and with the fused loss of FMCE-Net++ before and after Triton has compiled its
kernels. On a GPU the fourth step is captured in a CUDA graph and checked; the later ones show what trials are worth.
Leaves start-*.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.results import publish, row


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("start", __doc__)
    parser.add_argument("--backbone", default="shufflenet_v2_x0_5")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    shared = {"backbone": arguments.backbone, "image_size": arguments.image_size, "batch_size": arguments.batch}
    ways = ways_to_start(shared)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as kernels:
            for name, settings in ways.items():
                taken[name].append(first_seconds(settings, kernels))
    rows = []
    for name, times in taken.items():
        for part in times[0]:
            rows.append(row(f"start, {name}: {part}", [each[part] for each in times], "s"))
        rows.append(row(f"start, {name}: in all", [sum(each.values()) for each in times], "s"))
        print(f"{rows[-1]['name']:60}{rows[-1]['value']:10.1f} s", flush=True)
    publish(arguments, "start", rows, of=arguments.backbone, **shared)


def ways_to_start(shared: dict) -> dict[str, dict]:
    """The settings of `first_steps` for each way. Of two with the fused loss, the first one compiles its kernels."""
    own = {"config": shared, "ral": False, "trials": None}
    ral = {**own, "ral": True}
    if not torch.cuda.is_available():
        return {"training": own, "RAL": ral}
    return {
        "cuDNN's own choice": own,
        **{f"{trials or 'all'} trials": {**own, "trials": trials} for trials in (3, 10, 0)},
        "without graphs": {**own, "config": {**shared, "graphs": False}},
        "RAL, kernels compiled now": ral,
        "RAL, kernels compiled before": ral,
    }


def first_seconds(settings: dict, kernels: str) -> dict[str, float]:
    """What a process says of its first steps. kernels: the folder of Triton's compiled kernels."""
    command = [sys.executable, "-P", "-m", "fmcefast.bench.tools.first_steps", str(time.monotonic())]
    environment = {**os.environ, "TRITON_CACHE_DIR": kernels}
    pipe = subprocess.PIPE
    done = subprocess.run([*command, json.dumps(settings)], env=environment, stdout=pipe, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
