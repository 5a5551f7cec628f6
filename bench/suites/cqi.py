r"""The search for convergence in one long loss log: fmcefast against pandas, NumPy, bottleneck and polars.

    pip install '.[bench]'
    fmcefast bench cqi                     # 1e8 losses, about 12 minutes, 8 GB of memory
    fmcefast bench cqi --losses 1e7

First every contestant must find the same E_0 and E_K. Then all of them take turns, round by round. The peers stop at
E_0 and E_K; fmcefast also finds the markers between them. Leaves cqi.json and cqi-plot.png.
Peers that are not installed are left out.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from scipy.signal import lfilter

from fmcefast import find_markers
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import seconds, status, with_peers
from fmcefast.bench.tools.results import publish, ratios, result_name, row
from fmcefast.kernels.cqi.compiled import compiled
from fmcefast.kernels.cqi.search import Criterion, Slices, search_chunks
from fmcefast.report.figures.convergence import log_figure
from fmcefast.report.figures.saving import save

PEERS = ("pandas", "scipy", "bottleneck", "polars", "pyarrow")
ALPHA = 0.85
CORES = len(os.sched_getaffinity(0))
THIS_SUITE = (sys.executable, "-P", "-m", "fmcefast.bench.suites.cqi")

Contestant = Callable[[np.ndarray, float, int, str], tuple[int, int]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("cqi", __doc__)
    parser.add_argument("--losses", type=float, default=1e8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--memory", nargs=5, metavar=("NAME", "FILE", "MU", "WINDOW", "SMOOTHING"), help="of one search"
    )
    arguments = parser.parse_args(argv)
    if arguments.memory:
        name, file, mu, window, smoothing = arguments.memory
        print(extra_memory(CONTESTANTS[name], np.load(file), float(mu), int(window), smoothing))
        return
    count = int(arguments.losses)

    losses = decaying_loss(count)
    rows = [bandwidth(losses)]
    for window in (5, 1000):
        for smoothing in ("ema", "literal"):
            rows += search_rows(losses, window, smoothing, arguments.rounds, rows[0]["value"])
    draw(losses, arguments.results)
    print(table(rows))
    publish(arguments, "cqi", rows, peers=PEERS, losses=count, cores=CORES)


def decaying_loss(count: int) -> np.ndarray:
    """2.3 at first, e^-8 of that at last, with 5% of noise."""
    noise = np.random.default_rng(1)
    losses = np.empty(count)
    for first in range(0, count, 1 << 20):
        part = losses[first : first + (1 << 20)]
        part[:] = 2.3 * np.exp(-8 / count * np.arange(first, first + len(part)))
        part *= 1 + 0.05 * noise.standard_normal(len(part))
    return losses


def threshold(losses: np.ndarray, window: int, smoothing: str) -> float:
    """A mu that is met in the last tenth."""
    begin = int(0.95 * len(losses))
    part = find_markers(losses[begin:], mu=1e-300, alpha=ALPHA, window=window, smoothing=smoothing)
    before = find_markers(losses[:begin], mu=1e-300, alpha=ALPHA, window=window, smoothing=smoothing)
    return min(before.min_cqi * (1 - 1e-9), (part.min_cqi * before.min_cqi) ** 0.5)


def ours(threads: int) -> Contestant:
    def search(losses: np.ndarray, mu: float, window: int, smoothing: str) -> tuple[int, int]:
        markers = find_markers(losses, mu=mu, alpha=ALPHA, window=window, smoothing=smoothing, threads=threads)
        return markers.e0 - 1, markers.markers[-1] - 1 if markers.converged else -1

    return search


def with_pandas(losses: np.ndarray, mu: float, window: int, smoothing: str) -> tuple[int, int]:
    import pandas as pd

    series = pd.Series(losses, copy=False)
    if smoothing == "ema":
        smooth = series.ewm(alpha=1 - ALPHA, adjust=False).mean()
    else:
        smooth = ALPHA * series.shift(1) + (1 - ALPHA) * series
        smooth.iloc[0] = losses[0]
    return first_below(losses, smooth.diff().abs().rolling(window).mean().to_numpy(), mu)


def with_numpy(losses: np.ndarray, mu: float, window: int, smoothing: str) -> tuple[int, int]:
    sums = np.cumsum(np.abs(np.diff(smoothed(losses, smoothing))))
    cqi = np.full(len(losses), np.nan)
    cqi[window] = sums[window - 1]
    np.subtract(sums[window:], sums[:-window], out=cqi[window + 1 :])
    cqi /= window
    return first_below(losses, cqi, mu)


def with_bottleneck(losses: np.ndarray, mu: float, window: int, smoothing: str) -> tuple[int, int]:
    import bottleneck

    origin, end = first_below(
        losses[1:], bottleneck.move_mean(np.abs(np.diff(smoothed(losses, smoothing))), window), mu
    )
    return (origin + 1 if losses[origin + 1] > losses[0] else 0), end + 1


def with_plain_loops(losses: np.ndarray, mu: float, window: int, smoothing: str) -> tuple[int, int]:
    """One pass of the plain loops, compiled by Numba, as a user who needs speed would write them."""
    result = search_chunks(Slices(losses), Criterion(mu, ALPHA, window, smoothing == "literal", 0, 1), compiled()[0])
    return result.origin, result.end


def with_polars(losses: np.ndarray, mu: float, window: int, smoothing: str) -> tuple[int, int]:
    import polars as pl

    loss = pl.col("loss")
    if smoothing == "ema":
        smooth = loss.ewm_mean(alpha=1 - ALPHA, adjust=False)
    else:
        smooth = (ALPHA * loss.shift(1) + (1 - ALPHA) * loss).fill_null(loss.first())
    frame = pl.DataFrame({"loss": losses}).lazy().select(smooth.diff().abs().rolling_mean(window))
    return first_below(losses, frame.collect().to_series().to_numpy(), mu)


def smoothed(losses: np.ndarray, smoothing: str) -> np.ndarray:
    if smoothing == "ema":
        return lfilter([1 - ALPHA], [1, -ALPHA], losses, zi=[ALPHA * losses[0]])[0]
    smooth = np.empty_like(losses)
    smooth[0] = losses[0]
    np.multiply(losses[:-1], ALPHA, out=smooth[1:])
    smooth[1:] += (1 - ALPHA) * losses[1:]
    return smooth


def first_below(losses: np.ndarray, cqi: np.ndarray, mu: float) -> tuple[int, int]:
    end = int(np.argmax(cqi <= mu))
    return int(np.argmax(losses[: end + 1])), end


CONTESTANTS: dict[str, Contestant] = with_peers(
    {
        "fmcefast, 1 thread": ours(1),
        f"fmcefast, {CORES} threads": ours(CORES),
        "Numba loops": with_plain_loops,
        "pandas": with_pandas,
        "bottleneck": with_bottleneck,
        "NumPy": with_numpy,
        "polars": with_polars,
    },
    needs={"pandas": "pandas", "bottleneck": "bottleneck", "polars": "polars"},
)


def search_rows(losses: np.ndarray, window: int, smoothing: str, rounds: int, read_speed: float) -> list[dict]:
    mu = threshold(losses, window, smoothing)
    expected = with_numpy(losses, mu, window, smoothing)
    assert expected[1] > 0.9 * len(losses), f"E_K = {expected[1]} is not in the last tenth"
    for name, search in CONTESTANTS.items():
        epochs = search(losses, mu, window, smoothing)
        assert epochs == expected, f"{name} finds {epochs}, NumPy {expected}"
    memory = memory_of_each(losses, mu, window, smoothing)

    taken: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, search in CONTESTANTS.items():
            taken[name].append(seconds(lambda search=search: search(losses, mu, window, smoothing)))
    result = []
    for name, values in taken.items():
        nanoseconds = [value / len(losses) * 1e9 for value in values]
        speed = 8 / median(nanoseconds)
        result.append(
            row(
                f"{smoothing}, window {window}: {name}",
                nanoseconds,
                "ns/loss",
                gigabytes_per_second=speed,
                part_of_read_bandwidth=speed / read_speed,
                extra_megabytes=memory[name],
                **ratios(name, taken),
            )
        )
    return result


def draw(losses: np.ndarray, results: Path) -> None:
    """The figure that `fmcefast markers LOG --plot FILE` makes."""
    markers = find_markers(losses, mu=threshold(losses, 1000, "ema"), window=1000)
    results.mkdir(parents=True, exist_ok=True)
    save(log_figure(losses, markers), results / f"{result_name('cqi')}-plot.png")


def bandwidth(losses: np.ndarray) -> dict:
    """How fast all cores together read the losses once."""
    parts = np.array_split(losses, max(len(losses) >> 21, CORES))
    with ThreadPoolExecutor(CORES) as pool:
        speeds = [losses.nbytes / 1e9 / seconds(lambda: list(pool.map(np.sum, parts))) for _ in range(11)]
    return row("reading memory", speeds, "GB/s")


def memory_of_each(losses: np.ndarray, mu: float, window: int, smoothing: str) -> dict[str, float]:
    """Megabytes, each measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "losses.npy", losses)
        settings = [f"{folder}/losses.npy", repr(mu), str(window), smoothing]
        return {
            name: float(
                subprocess.check_output(
                    [sys.executable, "-P", "-m", "fmcefast.bench.suites.cqi", "--memory", name, *settings]
                )
            )
            for name in CONTESTANTS
        }


def extra_memory(search: Contestant, losses: np.ndarray, mu: float, window: int, smoothing: str) -> float:
    """Megabytes at the peak of a search beyond the losses, imports and what is compiled."""
    search(losses[:200_000], mu, window, smoothing)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = status("VmRSS")
    search(losses, mu, window, smoothing)
    return (status("VmHWM") - before) * 1024 / 1e6


def table(rows: list[dict]) -> str:
    lines = []
    for entry in rows:
        ratios = ", ".join(f"{ratio:.1f}x {peer}" for peer, ratio in entry.get("ratio", {}).items())
        extra = f"{entry['extra_megabytes']:8,.1f} MB" if "extra_megabytes" in entry else ""
        share = f"{entry['part_of_read_bandwidth']:5.0%}" if "part_of_read_bandwidth" in entry else ""
        lines.append(f"{entry['name']:60} {entry['value']:8.3f} {entry['unit']:8} {share} {extra} {ratios}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
