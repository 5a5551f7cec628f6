r"""The suites that take minutes, one after another in pieces; the same command goes on where the last one ended.

    fmcefast bench all                      # two cores: about an hour
    fmcefast bench all --gpu --minutes 9 --jpegs photos --small cifar10-jpeg --mnist ~/data/mnist --wheels wheels
    fmcefast bench all --quick              # whether everything works, with sizes that measure nothing

Each piece is a process of its own. When it succeeds, its result is in RESULTS and it is not run again. When it fails,
its messages are in RESULTS/PIECE.failed.txt, the others go on, and `--again` tries it once more. With `--minutes` no
piece is started that is expected to take longer than what is left. A piece that takes more than twice as long as
expected has failed; one that runs out of time is started anew the next time.

With `--gpu` the sizes are those of a large NVIDIA GPU. The clone's tests that need one, steps of training, the head and
the first seconds of a process come first and take 8 minutes, decoding 4 more, and the rest may wait. Pieces that need
image files are left out where these are missing; `--wheels` installs DALI, for decoding, from a folder of wheels,
without a network. Ends with a table of all results.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcefast import files
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import FMCEFAST, installed
from fmcefast.bench.tools.results import commit, result_name
from fmcefast.errors import FmcefastError, InputError, unknown_name
from fmcefast.progress import format_seconds


@dataclass(frozen=True)
class Piece:
    """One call of a suite.

    minutes: how long it is expected to take. of: tells pieces of one suite apart. needs: what is missing for it.
    """

    suite: str
    minutes: float
    words: str = ""
    of: str = ""
    needs: str = ""

    @property
    def name(self) -> str:
        return result_name(self.suite, self.of)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if arguments.gpu and not torch.cuda.is_available():
        raise InputError("--gpu needs an NVIDIA GPU, and torch finds none. See why: fmcefast doctor")
    deadline = time.monotonic() + 60 * arguments.minutes
    arguments.commit = arguments.commit or commit()
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.wheels:
        install(arguments.wheels)
    if not installed("nvidia.dali"):
        say("without DALI, which is not installed: see --wheels")
    pieces = pieces_of(arguments)
    for suite in arguments.only or []:
        if suite not in {piece.suite for piece in pieces}:
            raise unknown_name("suite of --only", suite, {piece.suite for piece in pieces})
    pieces = [piece for piece in pieces if arguments.only is None or piece.suite in arguments.only]
    states = {piece.name: perform(piece, arguments, deadline) for piece in pieces}
    paths = [arguments.results / f"{piece.name}.json" for piece in pieces]
    results = [json.loads(path.read_text()) for path in paths if path.exists()]
    if arguments.json:
        print(files.as_json({"pieces": states, "results": results}), file=sys.__stdout__)
    else:
        print(
            "\n\n".join(map(table, results)) + "\n\n" + "\n".join(f"{name:40}{state}" for name, state in states.items())
        )
    if "failed" in states.values():
        raise FmcefastError(f"Some pieces failed: see {arguments.results}/*.failed.txt, and try again with --again.")


def parser() -> SuiteParser:
    parser = SuiteParser("all", __doc__)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--gpu", action="store_true", help="sizes for a large NVIDIA GPU, and its tests")
    sizes.add_argument("--quick", action="store_true", help="sizes that measure nothing")
    parser.add_argument("--only", nargs="+", metavar="SUITE", help="run only these suites")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit of this call")
    parser.add_argument("--again", action="store_true", help="try again what failed")
    parser.add_argument("--jpegs", type=Path, help="a folder of large JPEGs, for busy, decode and train")
    parser.add_argument("--small", type=Path, help="a folder of small JPEGs, for decode")
    parser.add_argument("--mnist", type=Path, help="torchvision's MNIST, for decode and extract")
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels of DALI")
    parser.add_argument("--tests", type=Path, default=Path("tests"), help="tests/ of the clone, for gpu-tests")
    return parser


def pieces_of(arguments: argparse.Namespace) -> list[Piece]:
    """The most valuable ones first, in case time is short."""
    images = {name: path.resolve() for name in ("jpegs", "small", "mnist") if (path := getattr(arguments, name))}
    folders = {name: f" --{name} {shlex.quote(str(path))}" for name, path in images.items()}
    jpegs, all_folders = folders.get("jpegs", ""), "".join(folders.values())
    no_images = "" if images else "give --jpegs, --small or --mnist"
    backbones = ("shufflenet_v2_x1_0", "resnet50")
    if arguments.quick:
        few = "--image-size 32 --rounds 1 --batch"
        return [
            Piece("head", 1, "--batch 2 --channels 32 --rounds 2"),
            Piece("ral-step", 1, f"{few} 4 --steps 1 --amp off", of=backbones[0]),
            Piece("train", 1, f"{few} 256 --epochs 1 --images 512{jpegs}", of=backbones[0]),
            Piece("start", 1, "--rounds 1"),
            Piece("busy", 1, "--seconds 0.1 --rounds 1"),
            Piece("decode", 1, f"--images 128 --rounds 1{all_folders}", needs=no_images),
            Piece("extract", 1, "--images 256 --image-size 32 --rounds 1"),
            Piece("writer", 1, "--batches 4 --rounds 1"),
            Piece("reader", 1, "--rows 512 --batches 2 --rounds 1"),
            Piece("cqi", 1, "--losses 1e6 --rounds 1"),
            Piece("logs", 1, "--losses 1e6 --rounds 1"),
            Piece("cache-step", 1, "--rounds 1"),
            Piece("fit", 1, "--maps 2x16 --batch 32 --rounds 1"),
        ]
    on_gpu = arguments.gpu
    disk_and_logs = [
        Piece("extract", 4, f"--images 5120 --rounds 3{folders['mnist']}" if on_gpu and "mnist" in images else ""),
        Piece("writer", 4, "--batches 80 --rounds 3") if on_gpu else Piece("writer", 8),
        Piece("reader", 4),
        Piece("cqi", 4, "--losses 3e7 --rounds 3") if on_gpu else Piece("cqi", 8, "--rounds 3"),
        Piece("logs", 4),
        Piece("cache-step", 2),
        Piece("fit", 3),
    ]
    if not on_gpu:
        return [
            Piece("head", 3, "--batch 4 64"),
            Piece("ral-step", 6, of=backbones[0]),
            Piece("train", 8, jpegs, of=backbones[0]),
            Piece("start", 3),
            Piece("busy", 6, jpegs),
            Piece("decode", 10, f"--rounds 3{all_folders}", needs=no_images),
            *disk_and_logs,
        ]
    large, small = "--image-size 224 --batch 256", "--image-size 64 --batch 32 --backbone shufflenet_v2_x0_5"
    mnist = f" --epochs 4 --subset 12800{folders['mnist']}" if arguments.mnist else " --epochs 20"
    return [
        # Within 8 minutes, in the order of their worth.
        Piece("gpu-tests", 1.5, f"--tests {shlex.quote(str(arguments.tests.resolve()))}"),
        *(Piece("ral-step", 0.6, f"{large} --steps 10 --amp bf16 --backbone {name}", of=name) for name in backbones),
        Piece("train", 1.25, f"{small} --rounds 3 --epochs 10", of="shufflenet_v2_x0_5"),
        Piece("head", 1.25, "--batch 256 --rounds 7"),
        Piece("train", 0.85, f"{large} --rounds 3 --no-eager{mnist} --backbone {backbones[0]}", of=backbones[0]),
        Piece("start", 1.9, "--rounds 1", of="shufflenet_v2_x0_5"),
        # And 4 more.
        Piece("decode", 4, f"--rounds 3 --images 10240{all_folders}", needs=no_images),
        Piece("train", 1.5, f"{large} --rounds 2 --no-eager{mnist} --backbone {backbones[1]}", of=backbones[1]),
        Piece("start", 4, f"{large} --rounds 1 --backbone resnet50", of="resnet50"),
        *(
            Piece("train", 6, f"{large} --rounds 3{mnist} --compiled --backbone {name}{jpegs}", of=f"{name}-compiled")
            for name in backbones
        ),
        Piece("head", 6, "--batch 256 --compiled", of="compiled"),
        Piece("head", 3, "--batch 32 64 128 512", of="batches"),
        *disk_and_logs,
    ]


def perform(piece: Piece, arguments: argparse.Namespace, deadline: float) -> str:
    """Run one piece, unless it is done: "done", "failed", or why it did not run."""
    result, failure = (arguments.results / f"{piece.name}{end}" for end in (".json", ".failed.txt"))
    left = deadline - time.monotonic()
    if failure.exists() and not arguments.again:
        return "failed"
    if result.exists() and not failure.exists():
        return "done"
    if piece.needs:
        return f"left out: {piece.needs}"
    if left < 60 * piece.minutes:
        return "not yet"
    say(f"{piece.name}: about {piece.minutes:g} min")
    began, limit = time.monotonic(), min(left, 2 * 60 * piece.minutes)
    with (
        tempfile.TemporaryDirectory(dir=arguments.results, prefix=".work-") as work,
        tempfile.TemporaryFile("w+") as messages,
    ):
        words = [piece.suite, *shlex.split(piece.words), "--json", "--results", "figures", "--commit", arguments.commit]
        command = [*FMCEFAST, "bench", *words]
        process = subprocess.Popen(
            command, cwd=work, stdout=subprocess.PIPE, stderr=messages, text=True, start_new_session=True
        )
        try:
            output, _ = process.communicate(timeout=limit)
            failed = process.returncode != 0
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, KeyboardInterrupt):
                raise
            if limit == left:
                return "not yet"
            output, failed = "", True
            print(f"It took more than {format_seconds(limit)}.", file=messages)
        messages.seek(0)
        log = messages.read()
    last_line = output.splitlines()[-1:]  # lines before it come from libraries
    if last_line and last_line[0].startswith("{"):  # gpu-tests leaves a result even when tests fail
        files.write_json(result, json.loads(last_line[0]))
    if failed:
        files.write_text(failure, log)
    else:
        failure.unlink(missing_ok=True)
    state = "failed" if failed else "done"
    say(f"{piece.name}: {state} in {format_seconds(time.monotonic() - began)}")
    return state


def install(wheels: Path) -> None:
    paths = sorted(map(str, wheels.glob("*.whl")))
    if not paths:
        raise InputError(f"{wheels} holds no wheels. Get them: pip download nvidia-dali-cuda130 -d {wheels}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *paths]
    if subprocess.run(pip, stdout=sys.stderr).returncode:
        raise FmcefastError(f"pip could not install the wheels of {wheels}; see above.")


def table(result: dict) -> str:
    lines = [f"{result['suite']}: {result['hardware']}, {result['date']}, {result['commit']}"]
    for entry in result["rows"]:
        spread = f"{entry['p20']:12,.4g} {entry['p80']:12,.4g}" if entry["n"] > 1 else ""
        others = ", ".join(f"{ratio:.3g}x {peer}" for peer, ratio in entry.get("ratio", {}).items())
        lines.append(f"  {entry['name']:76}{entry['value']:12,.4g} {entry['unit']:10} {spread}  {others}".rstrip())
    return "\n".join(lines)


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
