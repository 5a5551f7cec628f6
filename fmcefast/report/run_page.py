"""The page of a run: one offline HTML file with everything that it has shown."""

from pathlib import Path

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.report.learning import learning_commands, learning_sections
from fmcefast.report.pictures import Album
from fmcefast.report.provenance import data_table, seeds_of, settings_table, stages_table
from fmcefast.report.rendering import render
from fmcefast.report.reproduction import command, run_commands
from fmcefast.report.results import RunResults, read_results
from fmcefast.report.sections import (
    cam_section,
    convergence_section,
    maturity_section,
    modules_section,
    other_runs_section,
    reading_section,
    sweep_sections,
)
from fmcefast.report.summary import summarise
from fmcefast.run.folder import RunFolder


def write_run_page(run: RunFolder, path: Path, figures: Path) -> None:
    """Write the page to `path`, and its figures into a folder. What has no results is left out, and the page says so.

    Raises InputError when there are no results at all, or a file is damaged.
    """
    results, album = read_results(run), Album(figures)
    learning = learning_sections(run, album)
    if not results.epochs and not learning:
        raise InputError(f"{run} holds no results yet. Train it: fmcefast train {run}")
    trained = bool(results.epochs)
    page = render(
        "run.html.j2",
        results=results,
        config=run.config,
        summary=summarise(results),
        convergence=convergence_section(results, album) if trained else None,
        reading=reading_section(results, album),
        others=other_runs_section(results, album),
        maturity=maturity_section(results, album),
        modules=modules_section(results, album),
        sweeps=sweep_sections(results, album),
        cam=cam_section(results, album),
        learning=learning,
        missing=missing_stages(results) if trained else [],
        commands=[*(run_commands(run) if trained else []), *learning_commands(run)],
        stages=stages_table(results),
        settings=settings_table(run),
        data=data_table(results),
        seeds=seeds_of(results),
    )
    files.write_text(path, page)


def missing_stages(results: RunResults) -> list[tuple[str, str]]:
    """(what the run does not hold, the command that makes it)."""
    run, converged = results.run, results.markers is not None and results.markers.converged
    if not results.is_trained:
        return [("the end of the training, and all that follows from it", command("run", run))]
    if not converged:
        return [("an FMCE-Net, since there are no epoch markers", command("markers", run))]
    if results.fit is None:
        return [("an FMCE-Net", command("fit", run))]
    offered = [
        (results.scores, "how mature each epoch is", command("score", run, "--reference")),
        (results.cam, "where the network looks", command("cam", run)),
        (
            results.others,
            "whether the FMCE-Net is valid for another training",
            command("fit", run, "--test-run", "OTHER"),
        ),
        (results.sweeps, "whether training under the FMCE-Net helps (FMCE-Net++)", command("sweep", run)),
    ]
    recorded = run.config.is_recorded  # whose images are its owner's
    return [] if recorded else [(what, line) for held, what, line in offered if not held]
