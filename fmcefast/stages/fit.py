"""Train FMCE-Net on the FMCS-Dataset and measure it on held-out feature maps ([FMCE] IV-E and V-C)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from fmcefast import files
from fmcefast.errors import FmcefastError, InputError
from fmcefast.evaluation.feature_maps import TRAIN_PART, predict, split_maps, to_device
from fmcefast.evaluation.metrics import Metrics, measure
from fmcefast.features.loader import FeatureMapLoader
from fmcefast.features.manifest import FILE, Manifest
from fmcefast.map_sources.choice import check_maps, open_maps
from fmcefast.map_sources.sizes import fits_in_memory
from fmcefast.models.fmce_net import FMCENet
from fmcefast.models.weights import check_safetensors
from fmcefast.progress import Progress, Task, format_seconds
from fmcefast.run.folder import RunFolder
from fmcefast.run.resume import TrainingState, load_state, state_facts
from fmcefast.runtime.adam import fused_adam, moments, obstacle_to_graphs
from fmcefast.runtime.device import amp_type, autocast, describe, on_device, pick_device
from fmcefast.runtime.graphed_call import GraphedCall
from fmcefast.stages.markers import markers
from fmcefast.stages.rates import Rates
from fmcefast.stages.stage import Cost, Stage, problem


class Fit(Stage[Metrics]):
    """Leaves fmce_net.safetensors and fit.json."""

    name = "fit"
    costly = True

    def outputs(self, run: RunFolder) -> list[Path]:
        return [path for view in run.views() for path in (view.fmce_net, view.fmce_net_resume, view.fit_json)]

    def is_done(self, run: RunFolder) -> bool:
        return run.fit_json.exists() and run.fmce_net.exists()

    def require_inputs(self, run: RunFolder) -> None:
        markers.epochs(run)

    def reason_to_skip(self, run: RunFolder, *, quick: bool = False) -> str | None:
        return None if markers.load(run).converged else "the loss has not converged"

    def check(self, run: RunFolder, *, resumes: bool) -> None:
        if not resumes:
            check_maps(run)

    def run(self, run: RunFolder, progress: Progress) -> Metrics:
        """Train with Adam and cross-entropy on three quarters of the maps and test on the rest; continue after the last
        finished epoch.

        Raises NotConvergedError without markers, InputError when the maps are neither stored nor can be recomputed.
        """
        epochs = markers.epochs(run)
        config = run.config
        device = pick_device()
        dtype = amp_type(config.amp, device)
        maps = open_maps(run, epochs, device, dtype, progress)
        train_rows, test_rows = split_maps(maps.samples, maps.phases, config.split, config.seed)
        loader = FeatureMapLoader(maps, train_rows, batch_size=config.fmce_batch_size, seed=config.seed)

        torch.manual_seed(config.seed)
        channels, height, width = maps.shape
        net = on_device(FMCENet(channels, (height, width), maps.phases), device)
        optimizer = fused_adam(net.parameters(), config.fmce_lr, device)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        first_epoch = state_facts(run.fmce_net_resume)["epoch"] + 1
        if first_epoch > 1:
            load_state(run.fmce_net_resume, net, optimizer, scaler)
        graph = GraphedCall(
            device, "FMCE-Net's training step", wanted=config.graphs, obstacle=obstacle_to_graphs(scaler)
        )

        def step(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            with autocast(device, dtype):
                logits = net(inputs)
            loss = functional.cross_entropy(logits.float(), targets)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return loss.detach()

        def changed() -> list[Sequence[torch.Tensor]]:
            return [list(net.parameters()), *moments(optimizer)]

        with (
            run.recording(self.name) as entry,
            progress.task("fit", total=len(train_rows) * (config.fmce_epochs + 1 - first_epoch), unit="maps") as task,
        ):
            entry.hardware, entry.unit = describe(device, dtype), "maps"
            for epoch in range(first_epoch, config.fmce_epochs + 1):
                loader.start(epoch)
                total = torch.zeros((), dtype=torch.float64, device=device)
                for batch, batch_targets in loader:
                    inputs, targets = to_device(batch, batch_targets, device)
                    total += graph(step, inputs, targets, changes=changed) * len(inputs)
                    task.advance(len(inputs), note=f"epoch {epoch} of {config.fmce_epochs}")
                mean_loss = float(total) / len(train_rows)
                if not np.isfinite(mean_loss):
                    raise FmcefastError(
                        f"FMCE-Net's loss is not finite in epoch {epoch}. Use a smaller `fmce_lr`, or "
                        "`dtype=float32` if extraction reported values too large for float16."
                    )
                TrainingState.capture(epoch, net, optimizer, scaler).write(run.fmce_net_resume)
                entry.rate = round(task.rate, 1)
                progress.line(_epoch_line(epoch, config.fmce_epochs, mean_loss, task))
            predicted = predict(net, maps, test_rows, config.fmce_batch_size, device, dtype)

        true = test_rows // maps.samples
        metrics = measure(true, predicted, maps.phases, config.split, len(train_rows), config.fmce_epochs)
        net.cpu().save_pretrained(run.fmce_net)
        files.write_json(run.fit_json, asdict(metrics))
        run.fmce_net_resume.unlink(missing_ok=True)
        return metrics

    def load(self, run: RunFolder) -> Metrics:
        remedy = f"Make it again: fmcefast fit {run.argument} --force"
        try:
            return files.read_json(run.fit_json, lambda content: Metrics(**content), remedy)
        except FileNotFoundError as error:
            raise _not_fitted(run) from error

    def fmce_net(self, run: RunFolder) -> FMCENet:
        """The FMCE-Net of a run and module. Raises InputError when it is missing or damaged."""
        if not run.fmce_net.exists():
            raise _not_fitted(run)
        return FMCENet.from_pretrained(run.fmce_net)

    def reason_to_redo(self, run: RunFolder) -> str | None:
        """By the number of phases, and by the store where there is one: no file says of which epochs the maps were."""
        if not run.fit_json.exists():
            return None
        phases, epochs = len(self.load(run).confusion), markers.epochs(run)
        if phases != len(epochs):
            return f"of {phases} phases, and there are {len(epochs)}"
        if (run.features / FILE).exists() and Manifest.read(run.features).epochs != epochs:
            return "of feature maps that are not those of the markers"
        return None

    def explain(self, run: RunFolder) -> str | None:
        if self.is_done(run):
            check_safetensors(run.fmce_net)
            return f"FMCE-Net (accuracy {self.load(run).accuracy:.4f})"
        epochs = state_facts(run.fmce_net_resume)["epoch"]
        return f"{epochs} of {run.config.fmce_epochs} epochs of FMCE-Net" if epochs else None

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        for view in run.views():
            for path in (view.fmce_net, view.fmce_net_resume):
                if path.exists():
                    yield from problem(check_safetensors, path)
            if view.fit_json.exists():
                yield from problem(self.load, view)

    def cost(self, run: RunFolder, images: int, rates: Rates) -> Cost:
        if self.is_done(run):
            return Cost(self.name, "done")
        config = run.config
        maps = int(TRAIN_PART * config.phases * images)
        rate, text = rates.measured(self.name, rates.fit)
        seconds = config.fmce_epochs * maps / rate
        if config.store == "recompute":
            extraction_rate, extraction_text = rates.measured("extract", rates.forward)
            once = fits_in_memory(run, images, rates.device)
            seconds += (config.phases * images if once else config.fmce_epochs * maps) / extraction_rate
            text += f", recomputed {'once' if once else 'in every epoch'} at {extraction_text}"
        return Cost(self.name, f"{config.fmce_epochs} epochs of {maps:,} maps", seconds, rates=text)


fit = Fit()


def _not_fitted(run: RunFolder) -> InputError:
    of_module = f" of {run.module}" if run.module else ""
    return InputError(f"{run} has no FMCE-Net{of_module} yet. Make one: fmcefast fit {run.argument}")


def _epoch_line(epoch: int, epochs: int, loss: float, task: Task) -> str:
    return (
        f"fit: epoch {epoch} of {epochs}  loss {loss:.4f}  {task.rate:,.0f} maps/s  "
        f"{format_seconds(task.seconds_left)} left"
    )
