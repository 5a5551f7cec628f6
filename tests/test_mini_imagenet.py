"""bench/mini_imagenet.py, whole, on a release of the same layout that is small enough."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "mini_imagenet.py"
CLASSES = {"train": ("n01", "n02"), "val": ("n03",), "test": ("n04",)}
SETTINGS = "{image_size: 32, batch_size: 8, mu: 9, start: 7, phases: 2, fmce_epochs: 1, amp: 'off', workers: 1}"


@pytest.fixture
def release(tmp_path, rng):
    images = tmp_path / "data" / "mini-imagenet" / "images"
    images.mkdir(parents=True)
    for part, classes in CLASSES.items():
        with (images.parent / f"{part}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["filename", "label"])
            for label, name in enumerate(classes):
                for number in range(20):
                    pixels = rng.integers(0, 90, (36, 30 + number, 3), dtype=np.uint8)
                    pixels[..., label] += 120
                    Image.fromarray(pixels).save(images / f"{name}{number:08}.jpg")
                    table.writerow([f"{name}{number:08}.jpg", name])
    return tmp_path / "data"


def test_the_reproduction_runs_whole_and_goes_on_where_it_was(release, tmp_path):
    (tmp_path / "small.yaml").write_text(SETTINGS)
    words = ["--data-root", release, "--config", tmp_path / "small.yaml", "--rafs", "1", "0.5", "--backbones",
             "shufflenet_v2_x1_0=8", "shufflenet_v2_x0_5=8"]  # fmt: skip

    def start():
        done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done, json.loads((tmp_path / "runs" / "mini-imagenet" / "mini-imagenet.json").read_text())

    done, result = start()
    assert "plan: " in done.stdout and "memory" in done.stdout
    rows = {row["name"]: row for row in result["rows"]}
    for name in ("shufflenet_v2_x1_0", "shufflenet_v2_x0_5"):
        first = tmp_path / "runs" / "mini-imagenet" / f"{name}-seed-0"
        split = json.loads((first / "split.json").read_text())
        assert len(split["train"]) == 64 and len(split["test"]) == 16 and len(split["classes"]) == 4
        assert rows[f"{name}, seed 1: FMCE-Net accuracy, own maps"]["markers"][-1] == 7
        assert 0 <= rows[f"{name}: FMCE-Net accuracy, maps of the other seed"]["value"] <= 1
        # RAF 1 is the original run until E_K, with other files only.
        original, repeated = (
            (place / "losses.csv").read_text().splitlines()[1:8]
            for place in (first, first / "finetune" / "raf-1.00-seed-0")
        )
        assert [line.split(",")[:4] for line in original] == [line.split(",")[:4] for line in repeated]
        other = (first / "finetune" / "raf-0.50-seed-0" / "losses.csv").read_text().splitlines()
        assert len(other) == 8 and other[1].split(",")[1] != original[0].split(",")[1]
    again, repeated = start()
    assert "epoch   1" not in again.stderr and repeated["rows"] == result["rows"]
