"""A calibrated score: what FMCS a statistic stands for, learnt from the checkpoints of several runs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.maturity.image_changes import DEFAULT_CHANGES
from fmcefast.maturity.pooled_maps import pool_maps
from fmcefast.maturity.probe import measure
from fmcefast.maturity.statistics import WITH_LABELS

_KEY = "invariant_score"
_FEWEST = 5  # checkpoints


@dataclass(frozen=True)
class Origin:
    """What a score was fitted to."""

    backbones: list[str]
    data: list[str]
    image_sizes: list[int]
    runs: int
    checkpoints: int


class InvariantScore:
    """The FMCS, from 0 for a fresh network to K, that a statistic of a module stands for: isotonic regression.

    The statistic depends neither on the order and number of channels nor on the size of the maps, so the score takes
    the maps of any network. It was fitted to some data and backbones, though, and its absolute value holds for these;
    elsewhere only the order of the checkpoints of one run does.

    values, scores: the knots (n,) of the regression, values increasing. phases: K. statistic, changes, images: what
    `probe` is to measure, with which changes of the images and how many of them.
    """

    def __init__(
        self,
        values: np.ndarray,
        scores: np.ndarray,
        *,
        phases: int,
        origin: Origin,
        statistic: str,
        images: int,
        changes: Sequence[str] = DEFAULT_CHANGES,
    ):
        self.values, self.scores = np.asarray(values, np.float64), np.asarray(scores, np.float64)
        self.phases, self.origin, self.statistic = phases, origin, statistic
        self.images, self.changes = images, tuple(changes)

    @classmethod
    def fit(
        cls,
        values: Sequence[float],
        scores: Sequence[float],
        *,
        phases: int,
        origin: Origin,
        statistic: str,
        images: int,
        changes: Sequence[str] = DEFAULT_CHANGES,
    ) -> "InvariantScore":
        """Fit to the statistic and the true FMCS (n,) of checkpoints. Raises InputError for fewer than 5, and when the
        statistic or the FMCS is the same for all."""
        from scipy.stats import spearmanr  # both take seconds to import
        from sklearn.isotonic import IsotonicRegression

        if len(values) < _FEWEST or np.ptp(values) == 0:
            raise InputError(
                f"A score needs {_FEWEST} or more checkpoints with different values of {statistic}; there are "
                f"{len(np.unique(values))} of them. Give runs that keep the weights of all epochs."
            )
        if np.ptp(scores) == 0:
            raise InputError(f"All checkpoints have an FMCS of {scores[0]:g}: there is nothing to learn.")
        rising = bool(spearmanr(values, scores).statistic >= 0)  # "auto" does the same, and warns of a weak correlation
        regression = IsotonicRegression(increasing=rising, out_of_bounds="clip").fit(values, scores)
        knots = regression.X_thresholds_, regression.y_thresholds_
        return cls(*knots, phases=phases, origin=origin, statistic=statistic, images=images, changes=changes)

    def of_values(self, values: Any) -> np.ndarray:
        """The FMCS (n,) of values (n,) of the statistic."""
        return np.interp(values, self.values, self.scores)

    @property
    def needs_labels(self) -> bool:
        """Whether its statistic looks at the classes of the images."""
        return self.statistic in WITH_LABELS

    def score(
        self, model: nn.Module, modules: Sequence[str], loader: Iterable[Any], labels: Any = None
    ) -> dict[str, float]:
        """{module: FMCS} of a model; arguments and errors as for `probe`. Raises InputError also without the labels
        that the statistic needs, and for maps that are the same for all images."""
        if self.needs_labels and labels is None:
            raise InputError(f"The statistic of this score, {self.statistic}, needs the labels of the images.")
        known = np.asarray(labels) if self.needs_labels else None
        pooled = pool_maps(model, modules, loader, changes=self.changes)
        scores = {}
        for name, maps in pooled.items():
            value = measure(maps, known)[self.statistic]
            if value is None:
                raise InputError(f"The feature maps of {name!r} are the same for all images: nothing to score.")
            scores[name] = float(self.of_values(value))
        return scores

    def save_pretrained(self, path: str | Path) -> None:
        """Write one safetensors file."""
        facts = {
            "phases": self.phases,
            "origin": asdict(self.origin),
            "statistic": self.statistic,
            "images": self.images,
            "changes": self.changes,
        }
        content = save({"values": self.values, "scores": self.scores}, metadata={_KEY: files.as_json(facts)})
        files.write_bytes(Path(path), content)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "InvariantScore":
        """Read what `save_pretrained` wrote. Raises InputError when the file is missing, damaged or something else."""
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})[_KEY])
                knots = file.get_tensor("values"), file.get_tensor("scores")
            return cls(*knots, **{**facts, "origin": Origin(**facts["origin"])})
        except FileNotFoundError as error:
            raise InputError(
                f"There is no score at {path}. Make one: fmcefast fit RUN RUN --model invariant --output {path}"
            ) from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a calibrated score or is damaged: {error}") from error


def is_invariant_score(path: Path) -> bool:
    """Whether a file was written by `InvariantScore.save_pretrained`."""
    try:
        with safe_open(path, framework="numpy") as file:
            return _KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
