"""Scores that are learnt from some runs and tested on others: is a model of several statistics better than one?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fmcefast.bench.experiments.maturity.judging import PHASES, rank_correlation
from fmcefast.maturity.statistics import LABEL_FREE

_ALONE = (*LABEL_FREE, "silhouette")
_COLUMNS = [f"{statistic}_{place}" for statistic in LABEL_FREE for place in ("final", "middle")]
# (training checkpoints, test checkpoints) -> scores of the test checkpoints
Method = Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]


@dataclass(frozen=True)
class Trial:
    """One method on the runs that one split holds out. error: mean absolute, in phases; None for a method that only
    ranks."""

    split: str
    method: str
    runs: int
    spearman: float
    worst: float
    error: float | None


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row a checkpoint, the statistics of both modules beside each other."""
    facts = ["run", "setting", "seed", "data", "family", "epoch", "progress"]
    values = table.pivot_table(index=["run", "epoch"], columns="module", values=list(_ALONE), dropna=False)
    values.columns = [f"{statistic}_{place}" for statistic, place in values.columns]
    known = table[table.module == "final"][facts].set_index(["run", "epoch"])
    return known.join(values).reset_index()


def trials(table: pd.DataFrame, development_seed: int) -> Iterator[Trial]:
    """All methods on all splits. table: as `wide` makes it."""
    for split, parts in _splits(table, development_seed).items():
        if not parts:
            continue
        for name, method in methods().items():
            results = [_judge(test, method(train, test), name) for train, test in parts]
            ranks = [rank for each in results for rank, _ in each]
            errors = [error for each in results for _, error in each]
            error = None if name == "ranker" else float(np.mean(errors))
            yield Trial(split, name, len(ranks), float(np.mean(ranks)), float(np.min(ranks)), error)


def methods() -> dict[str, Method]:
    alone = {f"isotonic on {statistic}": _isotonic(f"{statistic}_final") for statistic in _ALONE}
    return {**alone, "boosting": _boosting, "ranker": _ranker}


def _splits(table: pd.DataFrame, development_seed: int) -> dict[str, list[tuple[pd.DataFrame, pd.DataFrame]]]:
    """Each leaves out what it names, and tests on runs on which nothing was chosen."""
    fresh = table[table.seed != development_seed]

    def leaving_out(column: str) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
        parts = [(table[table[column] != value], fresh[fresh[column] == value]) for value in fresh[column].unique()]
        return [(train, test) for train, test in parts if len(train)]

    of_seed = [
        (table[(table.setting == setting) & (table.seed != seed)], test)
        for (setting, seed), test in fresh.groupby(["setting", "seed"])
    ]
    return {
        "other seed": [(train, test) for train, test in of_seed if len(train)],
        "other data": leaving_out("data"),
        "other architecture": leaving_out("family"),
    }


def _judge(test: pd.DataFrame, scores: np.ndarray, method: str) -> list[tuple[float, float]]:
    """(rank correlation, mean absolute error) in each run."""
    scored = test.assign(score=scores)
    return [
        (
            rank_correlation(run.score, run.progress),
            float((run.score - PHASES * run.progress).abs().mean()),
        )
        for _, run in scored.groupby("run")
    ]


def _isotonic(column: str) -> Method:
    def score(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
        known = train[train[column].notna()]
        rising = rank_correlation(known[column], known.progress) >= 0
        regression = IsotonicRegression(increasing=rising, out_of_bounds="clip")
        return regression.fit(known[column], PHASES * known.progress).predict(test[column].fillna(known[column].mean()))

    return score


def _boosting(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    model = HistGradientBoostingRegressor(
        max_iter=120, learning_rate=0.08, max_leaf_nodes=8, min_samples_leaf=5, random_state=0
    )
    return model.fit(train[_COLUMNS], PHASES * train.progress).predict(test[_COLUMNS]).clip(0, PHASES)


def _ranker(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """A linear score whose weights are learnt from pairs within runs: which of the two has come further?"""
    scaler = StandardScaler().fit(train[_COLUMNS])
    leads, signs = [], []
    for _, run in train.groupby("run"):
        values = np.nan_to_num(scaler.transform(run[_COLUMNS])).clip(-4, 4)
        i, j = np.triu_indices(len(run), 1)
        gap = run.progress.to_numpy()[j] - run.progress.to_numpy()[i]
        clear = np.abs(gap) > 0.03
        leads += [(values[j] - values[i])[clear], (values[i] - values[j])[clear]]
        signs += [np.sign(gap[clear]), -np.sign(gap[clear])]
    model = LogisticRegression(C=0.003, fit_intercept=False).fit(np.concatenate(leads), np.concatenate(signs))
    return np.nan_to_num(scaler.transform(test[_COLUMNS])).clip(-4, 4) @ model.coef_[0]
