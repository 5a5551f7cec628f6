r"""What a user waits for: whole processes of `fmcefast markers LOG`.

    pip install '.[bench]'
    fmcefast bench logs                    # a CSV of 1e8 rows, about 3 minutes and 4 GB of disk
    fmcefast bench logs --losses 1e7

The CSV log against parsers that only read its column, all taking turns. Leaves logs.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from fmcefast import find_markers
from fmcefast.bench.suites.cqi import CORES, decaying_loss, table, threshold
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import FMCEFAST, seconds, with_peers
from fmcefast.bench.tools.results import publish, ratios, row


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("logs", __doc__)
    parser.add_argument("--losses", type=float, default=1e8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    losses = decaying_loss(int(arguments.losses))
    rows = start_up_rows(losses, arguments.rounds) + csv_rows(losses, arguments.rounds)
    print(table(rows))
    publish(arguments, "logs", rows, peers=("pyarrow", "polars"), losses=len(losses), cores=CORES)


def start_up_rows(losses: np.ndarray, rounds: int) -> list[dict]:
    """Whole processes of `fmcefast markers LOG`: a short log, and a long one with and without a compiled search."""
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short.csv", Path(folder) / "long.npy"
        stretch = max(len(losses) // 99_999, 1)
        short.write_text("loss\n" + "\n".join(map(repr, losses[::stretch][:99_999].tolist())))
        np.save(long, losses[:: max(len(losses) // 1_000_000, 1)])
        first = [process_seconds(markers(long, 1e-5), NUMBA_CACHE_DIR=f"{folder}/{i}") for i in range(3)]
        later = [process_seconds(markers(long, 1e-5)) for _ in range(rounds)]
        plain = [process_seconds(markers(short, 1e-5)) for _ in range(rounds)]
    return [
        row("process: 99,999 losses, CSV", plain, "s"),
        row("process: 1,000,000 losses, .npy, nothing compiled yet", first, "s"),
        row("process: 1,000,000 losses, .npy", later, "s"),
    ]


def csv_rows(losses: np.ndarray, rounds: int) -> list[dict]:
    """Whole processes: the markers of a CSV log, and parsers that only read its column."""
    parse = "import sys, pyarrow as pa, pyarrow.csv as c; p = sys.argv[1]; f = pa.float64();"
    options = "convert_options=c.ConvertOptions(include_columns=['loss'], column_types={'loss': f})"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        with path.open("wb") as file:
            for first in range(0, len(losses), 1 << 22):
                part = losses[first : first + (1 << 22)]
                steps = np.arange(first, first + len(part))
                header = pyarrow.csv.WriteOptions(include_header=first == 0)
                pyarrow.csv.write_csv(pa.table({"step": steps, "loss": part}), file, header)
        commands = with_peers(
            {
                "fmcefast markers": markers(path, threshold(losses, 1000, "ema")),
                "pyarrow, stream": [sys.executable, "-c", f"{parse} [0 for _ in c.open_csv(p, {options})]", str(path)],
                "pyarrow, into memory": [sys.executable, "-c", f"{parse} c.read_csv(p, {options})", str(path)],
                "polars, into memory": [
                    sys.executable,
                    "-c",
                    "import sys, polars as pl; pl.scan_csv(sys.argv[1]).select('loss').collect(engine='streaming')",
                    str(path),
                ],
            },
            needs={"polars, into memory": "polars"},
        )
        result = json.loads(subprocess.check_output([*commands["fmcefast markers"], "--json"], cwd=folder))
        assert result["markers"] == find_markers(losses, mu=result["mu"], window=1000).markers, "the CSV is misread"
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                taken[name].append(process_seconds(command))
    return [
        row(f"process, CSV of {len(losses):,} rows: {name}", values, "s", **ratios(name, taken))
        for name, values in taken.items()
    ]


def markers(path: Path, mu: float) -> list[str]:
    return [*FMCEFAST, "markers", str(path), "--mu", repr(mu), "--window", "1000", "--quiet"]


def process_seconds(command: list[str], **environment: str) -> float:
    def run() -> None:
        anywhere = tempfile.gettempdir()  # but where the source folder would be imported
        done = subprocess.run(command, env=os.environ | environment, cwd=anywhere, stdout=subprocess.DEVNULL)
        assert done.returncode in (0, 3), f"{command} failed"  # 3: not converged

    return seconds(run)


if __name__ == "__main__":
    main()
