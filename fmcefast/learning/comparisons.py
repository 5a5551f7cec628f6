"""Whether one way to train is better than another: paired seeds, with an interval."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fmcefast.finetuning.table import paired_interval


@dataclass(frozen=True)
class Comparison:
    """Mean accuracy of `arm` less that of `than` over the seeds of both, with its 95% Student interval (None for fewer
    than two seeds and where all differ by the same), at equal `at`: "epochs" or "seconds". seconds: how many times the
    seconds of `than` the arm took. verdict: "better" or "worse" where the interval excludes 0; else "equal", which
    means that they cannot be told apart."""

    arm: str
    than: str
    at: str
    batch_size: int
    seeds: int
    difference: float
    low: float | None
    high: float | None
    seconds: float
    verdict: str

    def explain(self, prefix: str = "") -> str:
        """One line; prefix: before the name of the arm."""
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"
        verdict = "cannot be told apart" if self.verdict == "equal" else self.verdict
        return (
            f"{prefix}{self.arm} against {self.than} at equal {self.at}: {100 * self.difference:+.2f}{interval}, "
            f"{verdict}; {self.seconds:.2f}x the seconds"
        )


def compare_arms(
    arm: str,
    than: str,
    at: str,
    batch_size: int,
    accuracies: Mapping[str, Mapping[int, float]],
    seconds: Mapping[str, Mapping[int, float]],
) -> Comparison | None:
    """{arm: {seed: accuracy at the end}} and {arm: {seed: seconds}} -> the comparison; None without a shared seed."""
    shared = sorted(accuracies.get(arm, {}).keys() & accuracies.get(than, {}).keys())
    if not shared:
        return None
    differences = np.array([accuracies[arm][seed] - accuracies[than][seed] for seed in shared])
    low, high = paired_interval(differences)
    ratio = sum(seconds[arm][seed] for seed in shared) / sum(seconds[than][seed] for seed in shared)
    verdict = "better" if low is not None and low > 0 else "worse" if high is not None and high < 0 else "equal"
    return Comparison(arm, than, at, batch_size, len(shared), float(differences.mean()), low, high, ratio, verdict)
