"""Where feature maps come from, and extraction when room is short or maps are flawed."""

import dataclasses

import numpy as np
import pytest
import torch

from fmcefast import FeatureMapDataset, files
from fmcefast.convergence.markers import find_markers
from fmcefast.data.sources import load_source
from fmcefast.errors import DiskFullError, FmcefastError
from fmcefast.map_sources import choice, sizes, storing
from fmcefast.map_sources.in_memory import MapsInMemory
from fmcefast.map_sources.recomputed import RecomputedMaps
from fmcefast.models.backbones import make_backbone
from fmcefast.progress import Progress
from fmcefast.run.config import resolve
from fmcefast.run.folder import RunFolder
from fmcefast.stages.extract import extract
from fmcefast.stages.markers import markers

SMALL = {"subset": 60, "image_size": 32, "batch_size": 20, "epochs": 4, "until_converged": False}


@pytest.fixture
def extracted(tmp_path):
    """A run that has markers, whose store needs 2 * (60 * 4096 + 4096) bytes."""
    config = resolve({**SMALL, "phases": 2, "backbone": "shufflenet_v2_x0_5", "image_size": 64, "mu": 10.0})
    run = RunFolder(tmp_path / "run", config)
    run.weights.mkdir(parents=True)
    found = find_markers(np.geomspace(2, 1e-3, 30), mu=10.0, phases=2)
    files.write_json(run.markers_json, dataclasses.asdict(found))
    source = load_source(config.data, subset=config.subset)
    for epoch in found.markers:
        make_backbone(config.backbone, len(source.classes)).save(run.weights_of(epoch))
    return run


def quiet():
    return Progress(quiet=True)


def epochs_of(run):
    return markers.load(run).markers


def test_extraction_that_cannot_fit_is_refused_before_it_starts(extracted, monkeypatch):
    need = 2 * (60 * 2 * 2 * 1024 * 2 + 4096)
    monkeypatch.setattr(choice, "free_disk", lambda views: need - 1)
    monkeypatch.setattr(storing, "free_disk", lambda views: need - 1)
    with pytest.raises(DiskFullError, match=r"need 991 kB, but the disk has 991 kB free.*--store recompute"):
        extract(extracted, quiet())
    assert not extracted.features.exists()
    assert choice.recomputes_maps(extracted)
    monkeypatch.setattr(storing, "free_disk", lambda views: need)
    assert extract(extracted, quiet()).bytes == need
    assert not choice.recomputes_maps(extracted)


def test_what_auto_chooses_and_why(extracted, monkeypatch, cpu):
    extract(extracted, quiet())
    assert choice.choose_store(extracted, cpu).store == "memory"
    monkeypatch.setattr(choice, "free_memory", lambda device: 1000)
    for disk, recomputed, expected in [(500.0, 400.0, "disk"), (300.0, 400.0, "recompute")]:
        monkeypatch.setattr(choice, "_disk_rate", lambda dataset, size, rate=disk: rate)
        monkeypatch.setattr(choice, "_extraction_rate", lambda run, rate=recomputed: rate)
        store, why = choice.choose_store(extracted, cpu)
        assert store == expected
        assert f"the disk gives {disk:.0f} maps/s, the backbones 400" in why and "1 kB of free memory" in why
    monkeypatch.setattr(choice, "_extraction_rate", lambda run: None)
    assert choice.choose_store(extracted, cpu).store == "disk"
    asked = RunFolder(extracted.path, dataclasses.replace(extracted.config, store="recompute"))
    assert choice.choose_store(asked, cpu) == ("recompute", "as requested")


def test_maps_that_are_not_stored_are_made_once_where_memory_holds_them(extracted, monkeypatch, cpu):
    asked = RunFolder(extracted.path, dataclasses.replace(extracted.config, store="recompute"))
    size = 2 * 60 * 2 * 2 * 1024 * 2
    for free, kind in [(size / sizes.PART_OF_MEMORY + 1, MapsInMemory), (size, RecomputedMaps)]:
        monkeypatch.setattr(sizes, "free_memory", lambda device, free=free: free)
        assert type(choice.open_maps(asked, epochs_of(asked), cpu, None, quiet())) is kind


def test_memory_is_not_filled_with_maps_that_are_read_once(extracted, cpu):
    asked = RunFolder(extracted.path, dataclasses.replace(extracted.config, store="recompute"))
    assert type(choice.open_maps(asked, epochs_of(asked), cpu, None, quiet(), read_once=True)) is RecomputedMaps
    extract(extracted, quiet())
    for read_once, kind in [(False, MapsInMemory), (True, FeatureMapDataset)]:
        assert type(choice.open_maps(extracted, epochs_of(extracted), cpu, None, quiet(), read_once)) is kind


def test_the_disk_rate_is_measured(extracted):
    extract(extracted, quiet())
    assert choice._disk_rate(FeatureMapDataset(extracted.features), 16) > 0


def test_strict_extraction_stops_at_maps_that_are_not_finite(extracted):
    epoch = markers.load(extracted).markers[1]
    backbone = make_backbone(extracted.config.backbone, 10)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(1e38)  # which overflows in the first sum
    backbone.save(extracted.weights_of(epoch))
    strict = RunFolder(extracted.path, dataclasses.replace(extracted.config, strict=True))
    with pytest.raises(FmcefastError, match=r"phase 2 .* NaN or infinite"):
        extract(strict, quiet())
    assert extract(extracted, quiet()).not_finite == 60 * 2 * 2 * 1024
