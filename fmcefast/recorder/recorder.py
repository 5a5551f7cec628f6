"""Records your own training loop as a run."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import inf, nan
from pathlib import Path
from sys import float_info
from time import monotonic
from typing import Any

import torch
from torch import nn

from fmcefast import files
from fmcefast.convergence.cqi import cqi
from fmcefast.convergence.markers import Markers
from fmcefast.convergence.verdict import Verdict
from fmcefast.errors import FmcefastError, InputError, unknown_name
from fmcefast.features.dataset import FeatureMapDataset
from fmcefast.maturity.probe import Statistics
from fmcefast.pipeline.change import open_run
from fmcefast.pipeline.stages import extract, from_stage, markers, train, undo
from fmcefast.progress import Progress
from fmcefast.recorder.extraction import store_maps
from fmcefast.recorder.live import IMAGES, LiveProbe
from fmcefast.recorder.state import as_safetensors, class_of
from fmcefast.run.config import RECORDED, SETTINGS
from fmcefast.run.epochs import Epoch, read_epochs, write_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.maturity import ModuleMaturity, read_maturity, write_maturity
from fmcefast.run.tensorboard import check_tensorboard, write_events
from fmcefast.stages.train import is_converged

_REMEDY = "Record into another folder, or remove features/, fmce_net.safetensors and fit.json."
_SETTINGS = tuple(name for name, setting in SETTINGS.items() if setting.stage != "train")


class ConvergenceRecorder:
    """Records any training loop as a run folder, and tells when the loss has converged.

        with ConvergenceRecorder("runs/mine", mu=1e-3) as recorder:
            for epoch in range(200):
                ...  # train
                if recorder.epoch_end(model, mean_loss, top1=accuracy):
                    break
            recorder.extract(model, model.backbone, loader)  # the feature maps at the epoch markers

    Afterwards `fmcefast markers`, `fit`, `report` and `verify` work on the folder.

    run: the folder, created if missing. resume: go on after the epochs that it holds, as a script does that loads its
    own checkpoint when there is one. Without, a folder that holds epochs is refused, lest two trainings mix.
    name: of the model, for the report of a new folder; its class by default.
    modules: names within the model, such as "layer4", whose maturity is told at the end of every epoch and kept in
    maturity.csv; the report draws it. images: what it is told from, best held-out images: batches of images, or of
    (images, labels), of mixed classes, of which the first image_count are read once and kept; a loader that shuffles
    gives the same ones every time, and the training goes on as it would without. Three forward passes of them are run
    in an epoch. See `fmcefast.maturity.probe` for the statistics.
    settings: phases=10, mu=1e-4, alpha=0.85, window=5, smoothing="ema", start=1 and min_drop=0.05, see `find_markers`;
    keep="all", or "markers" to drop the weights of other epochs once there are markers; tensorboard=True to keep the
    curves as TensorBoard events too; dtype="float16" and others of `fmcefast extract` and `fmcefast fit`. Omitted
    settings keep the folder's values.

    The folder is locked until `close`, or the end of the `with` block. Only one of several training processes may
    record.

    Raises InputError for invalid settings, settings that contradict feature maps in the folder, a folder that is not a
    recorded run or holds epochs, modules without images, and too few images; FmcefastError when another process or
    recorder has locked the folder.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        resume: bool = False,
        name: str | None = None,
        modules: Sequence[str] = (),
        images: Iterable[Any] | None = None,
        image_count: int = IMAGES,
        **settings: Any,
    ):
        for unknown in settings.keys() - set(_SETTINGS):
            raise unknown_name("setting", unknown, _SETTINGS)
        if bool(modules) != (images is not None):
            raise InputError(
                "`modules` need images to be looked at with. Give some, best held-out ones: images=LOADER"
                if modules
                else 'No modules are named to be looked at with `images`. Name some: modules=["layer4"]'
            )
        self._probe = None if images is None else LiveProbe(modules, images, image_count)
        path = Path(run)
        known = (path / "config.yaml").exists()
        with ExitStack() as stack:
            if known:
                stack.enter_context(_lock(path))
                if not resume and (held := len(read_epochs(path / "losses.csv"))):
                    raise InputError(
                        f"{path} holds {held} epochs. Go on after them, with resume=True and the weights of your own "
                        "checkpoint, or record a new training into another folder."
                    )
            self.run: RunFolder = open_run(path, {"data": RECORDED, **settings}, create=True, remedy=_REMEDY)
            if not known:
                stack.enter_context(_lock(path))
            check_tensorboard(self.run)
            self._epochs = read_epochs(self.run.losses_csv)
            self._maturity = read_maturity(self.run.maturity_csv)
            self._lock = stack.pop_all()
        self._name, self._is_open, self._began = name, True, monotonic()

    @property
    def epochs(self) -> int:
        """The number of recorded epochs."""
        return len(self._epochs)

    @property
    def cqi(self) -> float:
        """The Convergence Quantification Indicator of the last epoch ([FMCE] IV-B); NaN before the second one."""
        if not self._epochs:
            return nan
        return float(cqi([row.loss for row in self._epochs], **self.run.config.cqi_settings)[-1])

    @property
    def converged(self) -> bool:
        """Whether the loss had converged by the last epoch: the CQI of a full window was at most mu, in that epoch or
        before, after a fall of `min_drop`."""
        return is_converged(self.run.config, self._epochs)

    def verdict(self) -> Verdict:
        """What the loss does so far: whether it has converged, improves, is flat, diverges or jumps. Raises InputError
        when nothing is recorded."""
        return markers.verdict(self.run)

    def epoch_end(
        self,
        model: nn.Module | Mapping[str, torch.Tensor],
        loss: float,
        *,
        top1: float | None = None,
        lr: float | None = None,
        epoch: int | None = None,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> bool:
        """Record an epoch. Returns whether the loss has converged.

        model: the model or, without `modules`, its state_dict (gathered if sharded); weights are stored without the
        name prefixes of DistributedDataParallel and torch.compile. loss: mean training loss of the epoch; top1: on
        held-out images, a fraction; lr: the last learning rate. state: what to store instead of model.state_dict().
        epoch: from 1, the next one by default. A recorded epoch is replaced and later ones are dropped, with a warning,
        as when a loop resumes from an older checkpoint.

        Once this returns the epoch is durable. Raises InputError for a loss that is not positive and finite, an epoch
        that `check_epoch` refuses or from which feature maps were made, a state that is not made of plain tensors, and
        what `maturity` refuses; nothing of the epoch is recorded then.
        """
        self._require_open()
        epoch = self.epochs + 1 if epoch is None else epoch
        self.check_epoch(epoch)
        row = Epoch(
            epoch=epoch,
            loss=float(loss),
            top1=nan if top1 is None else float(top1),
            lr=nan if lr is None else float(lr),
            seconds=round(monotonic() - self._began, 3),
        )
        if not float_info.min <= row.loss < inf:
            raise InputError(
                f"The mean loss of epoch {epoch} is {row.loss:g}; every loss must be positive and finite, because the "
                f"markers divide its logarithm. {self.run} keeps the epochs before; resume training from one of them."
            )
        if top1 is not None and not 0 <= row.top1 <= 1:
            raise InputError(f"top1 must be a fraction from 0 to 1, not {row.top1:g}. Leave it out if there is none.")
        maturity = [ModuleMaturity(epoch, module, **values) for module, values in self.maturity(model).items()]
        if state is None:
            state = model.state_dict() if isinstance(model, nn.Module) else model
        content = as_safetensors(state)
        if epoch <= self.epochs:
            self._drop_from(epoch)
        if not train.is_begun(self.run):
            self.run = open_run(self.run.path, {"backbone": self._name or class_of(model)})
        self.run.weights.mkdir(exist_ok=True)
        files.write_bytes(self.run.weights_of(epoch), content)
        self._replace_maturity(epoch, maturity)
        write_epochs(self.run.losses_csv, [*self._epochs, row])  # the commit: what has no row there does not count
        self._epochs.append(row)
        write_events(self.run, self._epochs)
        self._renew_markers()
        self._began = monotonic()
        return self.converged

    def check_epoch(self, epoch: int) -> None:
        """Raise InputError for an epoch that cannot be recorded next: it leaves a gap, or would replace all others."""
        if not 1 <= epoch <= self.epochs + 1:
            raise InputError(
                f"Epoch {epoch} cannot be recorded: {self.run} holds {self.epochs} epochs, which count from 1 without "
                f"a gap. Continue with epoch {self.epochs + 1} or an earlier one, or name another folder."
            )
        if epoch == 1 < self.epochs:
            raise InputError(
                f"Epoch 1 would replace all {self.epochs} epochs of {self.run}. Continue with epoch "
                f"{self.epochs + 1} or an earlier one, or record a new training into another folder."
            )

    def maturity(self, model: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, Statistics]:
        """{module: {statistic: value}} of the model's `modules` now; nothing is recorded, and the model and all random
        numbers are afterwards as they were. Before the first epoch it shows at once whether the modules serve.

        Raises InputError for an unknown module or one whose output is no feature map, a state_dict, which cannot be
        run, and a sharded model, which one process cannot run.
        """
        self._require_open()
        if self._probe is None:
            return {}
        if not isinstance(model, nn.Module):
            raise InputError(
                "The maturity of `modules` cannot be told from a state_dict. Pass the model itself, and its state_dict "
                "too if need be: epoch_end(model, loss, state=state_dict)"
            )
        return self._probe(model)

    def markers(self) -> Markers:
        """Find the epoch markers and write markers.json, as `fmcefast markers` does ([FMCE] IV-C).

        Raises InputError when nothing is recorded, or when too few epochs lie before convergence.
        """
        self._require_open()
        if not self._epochs:
            raise InputError(f"{self.run} holds no epochs yet. Record some: recorder.epoch_end(model, loss)")
        return markers(self.run, Progress(quiet=True))

    def extract(
        self,
        model: nn.Module,
        features: Callable[[Any], torch.Tensor],
        loader: Iterable[tuple[Any, Any]],
        *,
        labels: Any = None,
        quiet: bool = False,
    ) -> FeatureMapDataset:
        """Store the feature maps of every image at every epoch marker (the FMCS-Dataset, [FMCE] IV-D), for `fmcefast
        fit`. Called again, it continues after the stored maps.

        model: of the recorded loop. It takes the weights of the markers in turn, in eval mode; afterwards it is as it
        was. features: images, on the model's device, -> maps (N, C, H, W) with C >= 4, by that model: model.backbone,
        say. loader: (images, labels) in batches, the same images in the same order in every pass: neither shuffled nor
        augmented, the last batch not dropped.
        labels: (samples,) int64; they are taken from a first pass over the loader when left out.

        Raises NotConvergedError without markers; InputError when passes over the loader differ, or for weights or maps
        that do not fit; and what FeatureMapWriter raises.
        """
        self._require_open()
        self.markers()
        if not extract.is_done(self.run):
            if isinstance(loader, Iterator):
                raise InputError("The loader is an iterator, which can be read only once. Pass a DataLoader or a list.")
            store_maps(self.run, markers.epochs(self.run), model, features, loader, labels, Progress(quiet=quiet))
        return FeatureMapDataset(self.run.features)

    def close(self) -> None:
        """Unlock the folder."""
        self._is_open = False
        self._lock.close()

    def __enter__(self) -> "ConvergenceRecorder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()

    def _require_open(self) -> None:
        if not self._is_open:
            raise InputError(f"This recorder of {self.run} is closed. Open a new one to continue.")

    def _drop_from(self, epoch: int) -> None:
        """Forget an epoch and all later ones, and what was made from them."""
        last = (markers.load(self.run).markers or [epoch])[-1] if self.run.markers_json.exists() else epoch
        if last >= epoch:
            if any(stage.is_begun(self.run) for stage in from_stage(markers) if stage.costly):
                raise InputError(
                    f"Epoch {epoch} of {self.run} cannot be recorded again: feature maps were made from it or later "
                    f"ones. Record into another folder, or remove {self.run.features} and what was fitted to it."
                )
            undo(self.run, markers)
        warnings.warn(
            f"Epoch {epoch} is recorded again: of {self.run} the weights from this epoch to epoch {self.epochs} are "
            "removed.",
            RuntimeWarning,
            stacklevel=3,
        )
        dropped, self._epochs = self._epochs[epoch - 1 :], self._epochs[: epoch - 1]
        write_epochs(self.run.losses_csv, self._epochs)
        for row in dropped:
            self.run.weights_of(row.epoch).unlink(missing_ok=True)

    def _replace_maturity(self, epoch: int, rows: list[ModuleMaturity]) -> None:
        """Let `rows` take the place of those of this epoch and of later ones."""
        kept = [row for row in self._maturity if row.epoch < epoch]
        if kept + rows != self._maturity:
            write_maturity(self.run.maturity_csv, kept + rows)
            self._maturity = kept + rows

    def _renew_markers(self) -> None:
        """A further epoch may bring markers, but does not change those there are."""
        if self.run.markers_json.exists():
            if markers.load(self.run).converged:
                self.markers()
            else:
                self.run.markers_json.unlink()


def _lock(folder: Path) -> files.FolderLock:
    try:
        return files.FolderLock(folder)
    except FmcefastError as error:
        raise FmcefastError(
            f"Another recorder or fmcefast process is using {folder}. Close it (recorder.close()), or name another "
            "folder."
        ) from error
