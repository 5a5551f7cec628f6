"""`fmcefast bench reproduce`, whole, on a release of Mini-ImageNet's layout and on CIFAR-10 as files, both small."""

import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

CLASSES = {"train": ("n01", "n02"), "val": ("n03",), "test": ("n04",)}
SETTINGS = (
    "{image_size: 32, batch_size: 8, epochs: 8, mu: 9, start: 7, phases: 2, fmce_epochs: 1, amp: 'off', workers: 1, "
    "backbone: shufflenet_v2_x0_5}"
)


BENCH = [sys.executable, "-P", "-m", "fmcefast", "bench"]


def bench(*words, cwd):
    return subprocess.run([*BENCH, *map(str, words)], capture_output=True, text=True, cwd=cwd)


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


@pytest.fixture
def jpegs(tmp_path, rng):
    for part, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "cifar" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "cifar"


@pytest.mark.slow
def test_mini_imagenet_runs_whole_and_goes_on_where_it_was(release, tmp_path):
    (tmp_path / "small.yaml").write_text(SETTINGS)
    given = ["--data-root", release, "--config", "small.yaml", "--rafs", "1", "0.5", "--seeds", "1"]
    planned = bench("mini-imagenet", *given, "--plan", cwd=tmp_path)
    assert planned.returncode == 0 and "memory" in planned.stdout, planned.stderr
    assert "in all, with 2 runs and 2 trainings under RAFs of each row" in planned.stdout
    assert "mini-imagenet-r-small, seed 0" in planned.stdout and "mini-imagenet-s-small, seed 0" in planned.stdout
    name = "mini-imagenet-s-small"
    done = bench("reproduce", "mini-imagenet-s", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bench-results" / f"reproduce-{name}.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert result["complete"] and result["settings"]["image_size"] == 32
    assert str(tmp_path) not in json.dumps(result["settings"])
    first = tmp_path / "runs" / "reproduce" / name / "seed-0"
    split = json.loads((first / "split.json").read_text())
    assert len(split["train"]) == 64 and len(split["test"]) == 16 and len(split["classes"]) == 4
    markers = rows["mu of what follows"]["markers"]
    assert markers == json.loads((first / "markers.json").read_text())["markers"] and markers[-1] == 7
    fits = [json.loads((first / f"fit-{split}.json").read_text()) for split in ("map", "image")]
    assert [each["split"] for each in fits] == ["map", "image"]
    of_map, of_image = (rows[f"FMCE-Net accuracy, split by {split}"] for split in ("map", "image"))
    assert (of_map["value"], of_map["paper"], of_image["value"]) == (fits[0]["accuracy"], 0.9987, fits[1]["accuracy"])
    assert json.loads((first / "fit.json").read_text()) == fits[1]
    assert 0 <= rows["FMCE-Net accuracy on the second seed"]["value"] <= 1
    # RAF 1 is the original run until E_K, with other files only.
    again_at = first / "finetune" / "raf-1.00-seed-0"
    original, repeated = ((place / "losses.csv").read_text().splitlines()[1:8] for place in (first, again_at))
    assert [line.split(",")[:4] for line in original] == [line.split(",")[:4] for line in repeated]
    other = (first / "finetune" / "raf-0.50-seed-0" / "losses.csv").read_text().splitlines()
    assert len(other) == 8 and other[1].split(",")[1] != original[0].split(",")[1]
    kept = {path.name for path in (tmp_path / "bench-results" / f"reproduce-{name}").iterdir()}
    assert {"losses.csv", "markers.json", "sweep.csv", "convergence.png", "rafs-run.png"} <= kept
    again = bench("reproduce", "mini-imagenet-s", *given, cwd=tmp_path)
    assert "epoch   1" not in again.stderr
    assert json.loads((tmp_path / "bench-results" / f"reproduce-{name}.json").read_text()) == result


@pytest.mark.slow
def test_cifar_10_as_files_is_trained_as_cifar_10_and_stops_when_the_time_is_up(jpegs, tmp_path):
    settings = SETTINGS.replace("epochs: 8", "epochs: 5000").replace("start: 7", "until_converged: false")
    (tmp_path / "long.yaml").write_text(settings)
    words = ["reproduce", "cifar10-s", "--jpegs", jpegs, "--config", "long.yaml"]
    table = tmp_path / "bench-results" / "reproduce-cifar10-s-long" / "losses.csv"
    minutes, epochs = 0.2, 0
    while epochs < 1:  # a busy machine needs longer until the first epoch ends
        minutes *= 2
        done = bench(*words, "--minutes", minutes, "--json", cwd=tmp_path)
        assert done.returncode == 0 and "The time is up. The same command goes on." in done.stderr, done.stderr
        epochs = len(table.read_text().splitlines()) - 1 if table.exists() else 0
    result = json.loads(done.stdout)
    assert not result["complete"] and result["rows"] == []
    config = (tmp_path / "runs" / "reproduce" / "cifar10-s-long" / "seed-0" / "config.yaml").read_text()
    assert "recipe: cifar10" in config and "loader: resident" in config
    with subprocess.Popen([*BENCH, *map(str, words)], stderr=subprocess.PIPE, text=True, cwd=tmp_path) as again:
        assert any(f"continuing after epoch {epochs}" in line for line in again.stderr)
        again.send_signal(signal.SIGKILL)
    refused = bench("reproduce", "mnist-s", "--jpegs", jpegs, cwd=tmp_path)
    assert refused.returncode == 2 and "--jpegs is for the rows of CIFAR-10" in refused.stderr
