"""What `status` tells of runs, and its text."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fmcefast.progress import format_bytes
from fmcefast.text import WIDTH, aligned, ending


@dataclass(frozen=True)
class StageStatus:
    """A stage of the final feature map or of a `module`, or an experiment of `learn`.

    state: done; partial, which is begun or damaged; stale, which is made from results that have changed since; missing.
    detail: what there is, or why there is nothing. bytes: of its files.
    """

    stage: str
    module: str | None
    state: str
    detail: str | None
    damaged: bool
    bytes: int

    @property
    def name(self) -> str:
        return f"{self.stage} {self.module}" if self.module else self.stage


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    bytes: of the whole folder; last_work: when its newest file was written, in ISO 8601. problem: why the folder is no
    run that can be read; what follows is None or empty then. stages: {name: state} for the final feature map; rows: the
    same with details, then modules and experiments. epochs: trained so far, of `planned`, None for a recorded run;
    converged_at: E_K; top1: of the last epoch; accuracy: of FMCE-Net. in_use: whether another process has locked the
    run. next: the command that makes sense next, None where there is none; advice: what to know about that.
    """

    run: str
    bytes: int
    last_work: str | None
    problem: str | None = None
    stages: dict[str, str] = field(default_factory=dict)
    rows: list[StageStatus] = field(default_factory=list)
    data: str | None = None
    backbone: str | None = None
    epochs: int | None = None
    planned: int | None = None
    converged_at: int | None = None
    top1: float | None = None
    accuracy: float | None = None
    in_use: bool = False
    next: str | None = None
    advice: str | None = None

    @property
    def worked_at(self) -> datetime:
        """When it was last worked on; in 1970 for an empty folder."""
        return datetime.fromisoformat(self.last_work or "1970-01-01T00:00:00+00:00")

    def explain(self) -> str:
        head = f"status: {self.run}, {self.backbone} on {self.data}; {format_bytes(self.bytes)}"
        rows = [
            (row.name, row.state, format_bytes(row.bytes) if row.bytes else "", row.detail or "") for row in self.rows
        ]
        nothing = "wait, another process is using the run" if self.in_use else "nothing"
        lines = [
            f"{head}, last worked on {self.worked_at:%Y-%m-%d %H:%M}",
            *aligned(rows, numbers=[2]),
            self.advice,
            f"next: {self.next or nothing}",
        ]
        return "\n".join(line for line in lines if line)

    def cells(self) -> tuple[str, ...]:
        """A row in the table of runs, after the name."""
        planned = "" if self.planned is None or self.stages["train"] == "done" else f"/{self.planned}"
        return (
            ending(self.data or "", 13),
            ending(self.backbone or "", 18),
            "" if self.epochs is None else f"{self.epochs}{planned}",
            "" if self.converged_at is None else str(self.converged_at),
            "" if self.top1 is None else f"{self.top1:.4f}",
            "" if self.accuracy is None else f"{self.accuracy:.4f}",
            format_bytes(self.bytes),
            "(in use)" if self.in_use else self.next.split()[1] if self.next else "",
        )


@dataclass(frozen=True)
class RunsStatus:
    """The runs of a folder, the one that was last worked on first."""

    folder: str
    runs: list[RunStatus]

    def explain(self) -> str:
        if not self.runs:
            return f"There is no run under {self.folder}/ yet. Make one: fmcefast run"
        sound = [run for run in self.runs if run.problem is None]
        heads = ("data", "backbone", "epochs", "E_K", "top-1", "FMCE-Net", "size", "next")
        cells = aligned([heads, *(run.cells() for run in sound)], numbers=range(2, 7))
        room = WIDTH - max(map(len, cells)) - 2
        names = ["run", *(ending(Path(run.run).name, room) for run in sound)]
        head, *rows = aligned(list(zip(names, cells, strict=True)))
        rest = iter(rows)
        return "\n".join([head, *(run.problem or next(rest) for run in self.runs)])
