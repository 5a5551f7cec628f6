"""How well statistics order checkpoints by their progress in training."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression

from fmcefast.convergence.progress import progress
from fmcefast.maturity.compare import compare

PHASES = 10
# +1: larger is more mature; -1: smaller is.
SIGNS = {
    "bn_inv_ccos": 1,
    "bn_shift_ccos": 1,
    "bn_brightness_ccos": 1,
    "bn_areq_pool": 1,
    "bn_erank_pool": -1,
    "bn_nn_ratio": -1,
    "cka_before": 1,
    "silhouette": 1,
    "davies_bouldin": -1,
    "nc1_trace": -1,
    "knn": 1,
    "ridge_probe": 1,
    "rankme": -1,
    "alpha_req": 1,
    "weightwatcher": -1,
    "fmce_net": 1,
    "loss": -1,
    "epoch": 1,
}
# Pairs of different runs count when their progress differs by this much.
_CLEARLY = 0.1
_REFERENCE = "digits-shufflenet"  # on whose runs the phases of faulty trainings are told


def with_targets(rows: list[dict], losses: list[float]) -> pd.DataFrame:
    """The rows of one run's checkpoints with `progress`, and `probe_part`: accuracy of a linear probe of the final map
    as a part of that of the last checkpoint."""
    table = pd.DataFrame(rows)
    table["progress"] = np.concatenate([[0.0], progress(losses)])[table.epoch]  # epoch 0 is the fresh network
    final = table[table.module == "final"].set_index("epoch").ridge_probe
    table["probe_part"] = table.epoch.map(final) / final.iloc[-1]
    table["first_half"] = table.progress <= 0.5
    return table


def within_runs(table: pd.DataFrame, statistic: str, target: str = "progress") -> pd.Series:
    """The rank correlation of a statistic, turned so that it should be positive, with a target in each run."""
    trained = table[(table.epoch > 0) & table[statistic].notna()]
    return trained.groupby("run").apply(
        lambda run: SIGNS[statistic] * rank_correlation(run[statistic], run[target]), include_groups=False
    )


def rank_correlation(values: pd.Series, target: pd.Series) -> float:
    """Spearman's; 0 where all values are the same, which tell nothing."""
    same = values.nunique() < 2 or target.nunique() < 2
    return 0.0 if same else float(spearmanr(values, target).statistic)


@dataclass(frozen=True)
class Pairs:
    """Checkpoints in pairs: rows `i` and `j` of a table, and how much further j has come."""

    i: np.ndarray
    j: np.ndarray
    gap: np.ndarray

    def ordered_rightly(self, values: np.ndarray) -> float | None:
        """The part of the pairs that values (larger: more mature) put into the right order; ties count half."""
        lead = values[self.j] - values[self.i]
        known = np.isfinite(lead)
        if not known.any():
            return None
        right = np.where(lead == 0, 0.5, np.sign(lead) == np.sign(self.gap))
        return float(right[known].mean())


def kinds_of_pairs(table: pd.DataFrame) -> dict[str, Pairs]:
    """Pairs of trained checkpoints of one module: of the same run five or more epochs apart in its first half, and of
    different runs of the same data and architecture, of other data, and of other architectures."""
    i, j = np.triu_indices(len(table), 1)
    run, data, family, epoch, half, way = (
        table[name].to_numpy() for name in ("run", "data", "family", "epoch", "first_half", "progress")
    )
    trained = (epoch[i] > 0) & (epoch[j] > 0)
    same_run, same_data, same_family = run[i] == run[j], data[i] == data[j], family[i] == family[j]
    gap = way[j] - way[i]
    between = trained & ~same_run & (np.abs(gap) >= _CLEARLY)
    kinds = {
        "same run": trained & same_run & (np.abs(epoch[i] - epoch[j]) >= 5) & half[i] & half[j] & (gap != 0),
        "other seed": between & same_data & same_family,
        "other data": between & ~same_data & same_family,
        "other architecture": between & same_data & ~same_family,
    }
    return {name: Pairs(i[kept], j[kept], gap[kept]) for name, kept in kinds.items()}


def phases_of_faults(table: pd.DataFrame, faults: pd.DataFrame, statistic: str) -> dict[str, float]:
    """The phase, 0 to 10, that the last checkpoint of each faulty training gets on the scale of the sound ones of its
    data and architecture, digits and ShuffleNetV2: elsewhere that scale means nothing."""
    reference = table[(table.setting == _REFERENCE) & table[statistic].notna()]
    if len(reference) < 20:
        return {}
    of_reference = reference[["data", "family"]].iloc[0]
    faults = faults[(faults.data == of_reference.data) & (faults.family == of_reference.family)]
    scale = IsotonicRegression(increasing=SIGNS[statistic] > 0, out_of_bounds="clip")
    scale.fit(reference[statistic], PHASES * reference.progress)
    last = faults.sort_values("epoch").groupby("run").last()
    return {run: float(scale.predict([value])[0]) for run, value in last[statistic].items() if np.isfinite(value)}


@dataclass(frozen=True)
class Decisions:
    """What `compare` says of pairs of checkpoints of one run: the parts that it orders rightly, that it decides, and
    that it decides wrongly."""

    pairs: int
    right: float
    decided: float
    decided_wrongly: float


def decisions(runs: Iterable[tuple[pd.DataFrame, np.ndarray]], apart: int, images: int, by: str) -> Decisions | None:
    """Of pairs `apart` epochs, the earlier one in the first half; None if there are none.

    runs: of each, the rows of one module, and (checkpoints, 2, images) invariance and silhouette. by: "invariance" or
    "silhouette", which has the invariance as its witness.
    """
    outcomes = [outcome for rows, values in runs for outcome in _decide(rows, values[:, :, :images], apart, by)]
    if not outcomes:
        return None
    right, decided, wrongly = np.array(outcomes, float).mean(axis=0)
    return Decisions(len(outcomes), float(right), float(decided), float(wrongly))


def _decide(rows: pd.DataFrame, values: np.ndarray, apart: int, by: str) -> Iterator[tuple[bool, bool, bool]]:
    place = {epoch: number for number, epoch in enumerate(rows.epoch)}
    way = dict(zip(rows.epoch, rows.progress, strict=True))
    for epoch in rows.epoch:
        later = epoch + apart
        if epoch == 0 or way[epoch] > 0.5 or later not in place or way[later] == way[epoch]:
            continue
        invariances, silhouettes = ({each: values[place[each], row] for each in (epoch, later)} for row in (0, 1))
        by_labels = by == "silhouette"
        (pair,) = compare(silhouettes if by_labels else invariances, witness=invariances if by_labels else None)
        right = (pair.lead > 0) == (way[later] > way[epoch])
        decided = pair.more_mature is not None
        yield right, decided, decided and not right
