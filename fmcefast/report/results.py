"""What a run holds, read for its page."""

from dataclasses import dataclass, replace

from fmcefast.attention.cam import cam
from fmcefast.attention.cam_result import CamResult
from fmcefast.convergence.markers import Markers, find_markers
from fmcefast.errors import InputError
from fmcefast.evaluation.metrics import Metrics
from fmcefast.finetuning.sweep_csv import SweepRow, read_table, swept_kinds
from fmcefast.run.data_facts import DataFacts, read_data_facts
from fmcefast.run.epochs import Epoch, read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.maturity import ModuleMaturity, read_maturity
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
from fmcefast.stages.other_runs import OtherRunsResult, other_runs
from fmcefast.stages.score import ScoreResult, score
from fmcefast.stages.train import train


@dataclass(frozen=True)
class RunResults:
    """The results of a run's stages; None or empty where a stage has none.

    markers: of an unfinished training, those of its epochs so far, None while they cannot be told; sweeps: {whose
    FMCE-Net, `run` or `seed`: the cells}; modules: FMCE-Net's metrics on the maps of other modules.
    """

    run: RunFolder
    epochs: list[Epoch]
    is_trained: bool
    markers: Markers | None
    fit: Metrics | None
    others: OtherRunsResult | None
    scores: ScoreResult | None
    probed: list[ModuleMaturity]
    cam: CamResult | None
    sweeps: dict[str, list[SweepRow]]
    modules: dict[str, Metrics]
    data: DataFacts | None

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def phases(self) -> int:
        """K: of the FMCE-Net, or of the markers."""
        return len(self.fit.confusion) if self.fit else self.run.config.phases


def read_results(run: RunFolder) -> RunResults:
    """All results of a run. Raises InputError for a damaged file."""
    epochs = read_epochs(run.losses_csv)
    is_trained = bool(epochs) and train.is_done(run)
    fitted = fit.load(run) if fit.is_done(run) else None
    rows = read_table(run) if run.sweep_csv.exists() else []
    return RunResults(
        run=run,
        epochs=epochs,
        is_trained=is_trained,
        markers=_markers(run, epochs, is_trained),
        fit=fitted,
        others=other_runs.load(run) if fitted and other_runs.is_done(run) else None,
        scores=score.load(run) if score.is_done(run) else None,
        probed=[row for row in read_maturity(run.maturity_csv) if row.epoch <= len(epochs)],
        cam=cam.load(run) if cam.is_done(run) else None,
        sweeps={kind: [row for row in rows if row.fmce_net == kind] for kind in swept_kinds(run)},
        modules={view.module: fit.load(view) for view in run.views() if view.module and fit.is_done(view)},
        data=read_data_facts(run),
    )


def _markers(run: RunFolder, epochs: list[Epoch], is_trained: bool) -> Markers | None:
    if is_trained and markers.is_begun(run):
        return markers.load(run)
    try:
        found = find_markers([row.loss for row in epochs], **run.config.marker_settings) if epochs else None
    except InputError:
        return None
    return replace(found, source="losses.csv") if found else None
