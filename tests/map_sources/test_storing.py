"""Extraction in a CUDA graph, with a stand-in for it and on a GPU."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from fmcefast import FeatureMapDataset
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.stages.extract import extract


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


@pytest.mark.gpu
def test_a_graph_goes_on_with_the_weights_of_every_phase(run):
    expected, found = extracted(run, graphs=False).float(), extracted(run).float()
    assert (found - expected).norm() <= 1e-2 * expected.norm()
