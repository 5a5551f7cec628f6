"""What any metric of a log does, such as a validation accuracy, in the log's own epochs or steps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fmcefast.convergence.verdict import Verdict, judge
from fmcefast.logs.read import LossLog


@dataclass(frozen=True)
class LogMetric:
    """A metric of a log, and what it does. settings: the rule's, as of `judge`."""

    log: LossLog
    higher_is_better: bool
    verdict: Verdict
    settings: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "metric": self.log.column,
            "higher_is_better": self.higher_is_better,
            **self.settings,
            "axis": self.log.axis,
            "source": self.log.source,
            "format": self.log.format,
            "values": len(self.log.losses),
            "dropped": self.log.dropped,
            "verdict": asdict(self.verdict),
        }


def judge_log(log: LossLog, *, higher_is_better: bool, **settings: Any) -> LogMetric:
    """Judge a log that was read with `any_sign`. settings: as of `judge`, which raises InputError."""
    told = judge(
        log.losses,
        higher_is_better=higher_is_better,
        name=log.column,
        epochs=log.places,
        axis=log.axis,
        **settings,
    )
    return LogMetric(log, higher_is_better, told, settings)
