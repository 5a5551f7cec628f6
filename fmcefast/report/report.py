"""The last stage of a run: its report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmcefast.errors import InputError
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.stages.stage import Stage


@dataclass(frozen=True)
class ReportResult:
    """report: the page."""

    report: str

    def explain(self) -> str:
        return f"report: {self.report}"


class Report(Stage[ReportResult]):
    """Leaves report.html and figures/."""

    name = "report"

    def __call__(self, run: RunFolder, progress: Progress, **options: Any) -> ReportResult:
        return self.run(run, progress, **options)  # what it shows may have changed

    def outputs(self, run: RunFolder) -> list[Path]:
        return [run.figures, run.report_html]

    def is_done(self, run: RunFolder) -> bool:
        return run.report_html.exists()

    def run(self, run: RunFolder, progress: Progress, *, output: Path | None = None) -> ReportResult:
        """Write the page of what the run holds. output: a file outside the run, with its figures in a folder beside it.

        Raises InputError when there are no results at all.
        """
        from fmcefast.report.run_page import write_run_page  # with matplotlib, which other stages do not need

        page = output or run.report_html
        figures = page.with_name(f"{page.stem}-figures") if output else run.figures
        write_run_page(run, page, figures)
        return ReportResult(str(page))

    def load(self, run: RunFolder) -> ReportResult:
        if not self.is_done(run):
            raise InputError(f"{run} has no report yet. Write it: fmcefast report {run}")
        return ReportResult(str(run.report_html))


report = Report()
