"""The epoch markers of a log, in its own epochs or steps."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from fmcefast.convergence.markers import Markers, find_markers
from fmcefast.convergence.parameters import MIN_DROP
from fmcefast.convergence.verdict import Verdict, verdict
from fmcefast.errors import InputError
from fmcefast.logs.read import LossLog


@dataclass(frozen=True)
class LogMarkers:
    """A log, its markers, which are positions among its losses, counted from 1, and what its loss does."""

    log: LossLog
    markers: Markers
    verdict: Verdict

    def explain(self) -> str:
        """The markers as the log counts, or why there are none and what to change; and the verdict."""
        return f"{self.markers.explain(self.log.axis, self.log.place)}\n{self.verdict.text}"

    def as_json(self) -> dict[str, Any]:
        marked = self.markers.markers
        places = [self.log.place(marker) for marker in marked or []]
        return {
            **asdict(self.markers),
            "marker_epochs": None if marked is None or self.log.axis == "row" else places,
            "axis": self.log.axis,
            "column": self.log.column,
            "format": self.log.format,
            "losses": len(self.log.losses),
            "dropped": self.log.dropped,
            "verdict": asdict(self.verdict),
        }


def find_log_markers(log: LossLog, **settings: Any) -> LogMarkers:
    """Find the markers of a log. settings: as of `find_markers`, which raises InputError; by default the loss must have
    fallen to have converged."""
    try:
        markers = replace(find_markers(log.losses, **{"min_drop": MIN_DROP, **settings}), source=log.source)
    except InputError as error:
        if log.places is None:
            raise
        first, last = log.place(1), log.place(len(log.losses))
        raise InputError(
            f"{error} (Epochs are counted from 1 here; in the log they are the {log.axis}s {first} to {last}.)"
        ) from error
    told = verdict(log.losses, markers, validation=log.validation, epochs=log.places, axis=log.axis)
    return LogMarkers(log, markers, told)
