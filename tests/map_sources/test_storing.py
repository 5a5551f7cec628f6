"""Extraction in a CUDA graph, with a stand-in for it and on a GPU."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from fmcefast import FeatureMapDataset
from fmcefast.models.extractors import FinalMap
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.threads import using_threads
from fmcefast.stages.extract import extract
from fmcefast.stages.fit import fit
from fmcefast.stages.score import score


def extracted(run, **settings):
    """The maps of all phases, made anew."""
    shutil.rmtree(run.features)
    extract(RunFolder(run.path, replace(run.config, batch_size=10, **settings)), Progress(quiet=True))
    maps = FeatureMapDataset(run.features)
    return next(maps.batches(np.arange(maps.samples * maps.phases), 10_000))[0].clone()


def test_maps_made_in_a_graph_are_those_made_without(run, gpu):
    expected, found = extracted(run, graphs=False), extracted(run)
    assert (found == expected).all()
    (made,) = gpu.all
    assert made.replays == len(found) // 10 - 3


def test_the_backbone_runs_on_as_many_threads_as_it_is_worth(run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    used, maps = [], FinalMap.maps
    monkeypatch.setattr(
        FinalMap, "maps", lambda self, images: (used.append(torch.get_num_threads()), maps(self, images))[1]
    )
    with using_threads(4):
        extracted(run)
        extraction = run.history.entries()[-1]
        assert extraction.stage == "extract" and extraction.hardware == "cpu, 1 thread, fp32"
        score(run, Progress(quiet=True), reference=True)
        fit.remove(run)
        fit(RunFolder(run.path, replace(run.config, store="recompute")), Progress(quiet=True))
        assert torch.get_num_threads() == 4
    assert used.count(4) == 3  # once for each command, to count its multiply-adds
    assert used.count(1) == len(used) - 3 > 30


@pytest.mark.gpu
def test_a_graph_goes_on_with_the_weights_of_every_phase(run):
    expected, found = extracted(run, graphs=False).float(), extracted(run).float()
    assert (found - expected).norm() <= 1e-2 * expected.norm()
