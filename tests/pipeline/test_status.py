"""Where runs stand: every state of every stage, what comes next, and runs that are damaged or in use."""

import json
import os
import shutil
from dataclasses import asdict, replace

import pytest

from fmcefast.features.manifest import Manifest
from fmcefast.files import FolderLock, is_locked
from fmcefast.finetuning.cell import Cell, Init
from fmcefast.finetuning.sweep_csv import write_table
from fmcefast.models.fmce_net import FMCENet
from fmcefast.pipeline.change import open_run
from fmcefast.pipeline.stages import STAGES, extract, fit, markers
from fmcefast.pipeline.status import status, status_of_runs
from fmcefast.progress import Progress
from fmcefast.run.epochs import Epoch, FinetuningEpoch, read_epochs, write_epochs
from fmcefast.run.folder import RunFolder, read_run

ON_REQUEST = ("score", "other-runs", "finetune", "sweep", "cam")
LATER = 4e9  # a time of modification after all others


def quiet():
    return Progress(quiet=True)


def row(run, name, module=None):
    (found,) = [row for row in status(run).rows if (row.stage, row.module) == (name, module)]
    return found


def state(run, name):
    """(state, detail) of a stage."""
    found = row(run, name)
    assert status(run).stages[name] == found.state
    return found.state, found.detail


def snapshot(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def finish(cell):
    losses = [FinetuningEpoch(n, 1 / n, 0.5, 1e-3, 1.0, 1 / n, None, 2.5) for n in range(1, cell.epochs + 1)]
    write_epochs(cell.place.losses_csv, losses)
    cell.finish()


def begin(run, rafs, seeds):
    """Cells of a table, none of them trained."""
    cells = [Cell(run, raf, seed, 6, run.fmce_net) for seed in seeds for raf in rafs]
    for cell in cells:
        with cell.locked():
            cell.begin(force=False)
    return cells


def test_a_run_up_to_its_fit(run):
    run = read_run(run.path)
    before = snapshot(run.path)
    found = status(run)
    assert snapshot(run.path) == before
    done = {"train": "done", "markers": "done", "extract": "done", "fit": "done"}
    assert found.stages == {**done, **dict.fromkeys((*ON_REQUEST, "report"), "missing")}
    assert list(found.stages) == [stage.name for stage in STAGES]
    assert [row.detail for row in found.rows[:3]] == [
        "8 epochs", "converged at epoch 6", "300 feature maps (3 phases)"
    ]  # fmt: skip
    assert (found.epochs, found.planned, found.converged_at) == (8, 8, 6)
    assert found.top1 == read_epochs(run.losses_csv)[-1].top1 and found.accuracy == fit.load(run).accuracy
    assert found.next == f"fmcefast report {run.path}" and not found.in_use and found.problem is None
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert found.bytes == sum(path.stat().st_size for path in files)
    assert found.worked_at.timestamp() == int(max(path.stat().st_mtime for path in files))
    assert row(run, "extract").bytes == sum(path.stat().st_size for path in run.features.iterdir())


def test_a_training_that_is_not_finished(run):
    run.config_yaml.write_text(run.config_yaml.read_text().replace("epochs: 8\n", "epochs: 12\n", 1))
    run = read_run(run.path)
    assert run.config.epochs == 12 and state(run, "train") == ("partial", "8 of 12 epochs")
    assert status(run).next == f"fmcefast train {run.path}"
    assert status(run).explain().splitlines()[1].split()[:2] == ["train", "partial"]


def test_a_run_that_has_only_its_configuration(tmp_path):
    run = open_run(tmp_path / "my runs" / "new", {}, create=True)
    found = status(run)
    assert set(found.stages.values()) == {"missing"} and found.next == f"fmcefast train '{run.path}'"
    assert found.epochs == 0 and found.top1 is None and found.accuracy is None


def test_a_run_that_has_not_converged_is_told_the_mu(run):
    run = open_run(run.path, {"mu": 1e-9}, force=True)
    assert not markers(run, quiet()).converged
    found = status(run)
    assert state(run, "markers") == ("done", "not converged")
    assert state(run, "fit") == ("missing", "the loss has not converged") and "above mu = 1e-09" in found.advice
    command, mu = found.next.rsplit(maxsplit=1)
    assert command == f"fmcefast run {run.path} --mu"
    assert markers(open_run(run.path, {"mu": float(mu)}), quiet()).converged


def test_an_extraction_that_is_not_finished(run):
    fit.remove(run)
    manifest = Manifest.read(run.features)
    manifest.phases[2].shards.clear()
    manifest.write(run.features)
    assert state(run, "extract") == ("partial", "200 feature maps (2 of 3 phases)")
    assert status(run).next == f"fmcefast extract {run.path}"
    extract.remove(run)
    assert state(run, "extract") == ("missing", None) and status(run).next == f"fmcefast extract {run.path}"
    recomputing = open_run(run.path, {"store": "recompute"})
    assert state(recomputing, "extract") == ("missing", "the maps are recomputed")
    assert status(recomputing).next == f"fmcefast fit {run.path}"


def test_maps_that_nobody_needs_any_more_are_not_asked_for(run):
    extract.remove(run)
    assert state(run, "extract") == ("missing", "FMCE-Net is fitted, and nothing else reads the maps")
    assert status(run).next == f"fmcefast report {run.path}"


def test_markers_of_other_epochs_make_everything_after_them_stale(run):
    content = json.loads(run.markers_json.read_text())
    content["markers"][0] -= 1
    run.markers_json.write_text(json.dumps(content))
    assert state(run, "markers") == ("stale", "losses.csv and config.yaml give other markers now")
    assert state(run, "extract")[0] == state(run, "fit")[0] == "stale"
    first, *others = map(str, content["markers"])
    had, have = (" ".join([epoch, *others]) for epoch in (str(int(first) + 1), first))
    assert state(run, "extract")[1] == f"of the epochs {had}, and the markers are {have}"
    assert status(run).next == f"fmcefast markers {run.path}"
    content = {**content, "epochs": 7, "markers": [4, 5, 6]}
    run.markers_json.write_text(json.dumps(content))
    assert state(run, "markers") == ("stale", "made from 7 epochs, and there are 8")
    markers(run, quiet())
    assert state(run, "markers")[0] == state(run, "extract")[0] == state(run, "fit")[0] == "done"


def test_a_fit_of_other_phases_is_stale(run):
    content = json.loads(run.fit_json.read_text())
    content["confusion"] = [[1, 0], [0, 1]]
    run.fit_json.write_text(json.dumps(content))
    assert state(run, "fit") == ("stale", "of 2 phases, and there are 3")
    assert status(run).next == f"fmcefast fit {run.path} --force"


def test_scores_are_of_all_epochs_and_of_this_fmce_net(run):
    score = {"weights": "", "fmcs": 2.0, "std": 0.1, "distribution": [0, 1, 0], "confidence": 0.5, "top1": 0.5}
    content = {"model": "", "module": None, "phases": 3, "images": 25, "checkpoints": [], "spearman": None}
    content |= {"spearman_from_e1": None, "calibration_error": None}

    def write(epochs):
        content["reference"] = [{**score, "epoch": epoch} for epoch in range(1, epochs + 1)]
        run.score_json.write_text(json.dumps(content))

    write(8)
    run.test_runs_json.write_text("[]")
    assert state(run, "score") == ("done", "8 epochs scored") and state(run, "other-runs")[0] == "done"
    write(7)
    assert state(run, "score") == ("stale", "without 1 epoch of 8")
    write(8)
    os.utime(run.fmce_net, (LATER, LATER))
    assert state(run, "score") == ("stale", "score.json is older than fmce_net.safetensors")
    assert state(run, "other-runs") == ("stale", "test-runs.json is older than fmce_net.safetensors")
    assert status(run).next == f"fmcefast score {run.path} --reference"


def test_a_report_is_stale_when_what_it_shows_is_newer(run):
    run.report_html.write_text("page")
    assert state(run, "report") == ("done", None) and status(run).next is None
    assert status(run).explain().endswith("\nnext: nothing")
    os.utime(run.losses_csv, (LATER, LATER))
    assert state(run, "report") == ("stale", "older than losses.csv")
    assert status(run).next == f"fmcefast report {run.path}"


def test_a_sweep_that_is_not_finished_is_continued_as_it_was_begun(run):
    cells = begin(run, (1.0, 0.8), (0, 1))
    finish(cells[0])
    assert state(run, "finetune") == ("partial", "1 of 4 fine-tunings finished")
    assert state(run, "sweep") == ("partial", "1 of 4 cells finished")
    assert status(run).next == f"fmcefast sweep {run.path} --rafs 1,0.8 --seeds 2"
    for cell in cells[1:]:
        finish(cell)
    assert state(run, "sweep") == ("missing", None)  # these might be fine-tunings one by one
    write_table(run)
    assert state(run, "finetune")[0] == "done" and state(run, "sweep") == ("done", "4 cells")
    (other,) = begin(run, (0.5,), (7,))
    assert state(run, "sweep") == ("done", "4 cells")
    assert status(run).next == f"fmcefast finetune {run.path} --raf 0.5 --seed 7"
    finish(other)
    assert state(run, "sweep") == ("stale", "sweep.csv lists 4 of 5 finished cells")
    assert status(run).next == f"fmcefast sweep {run.path} --rafs 1 --seeds 1"


def test_fine_tuning_that_no_command_can_continue_is_passed_over(run, tmp_path):
    """Weights to start from are known by checksum alone; and a seed may be smaller than that of the run."""
    later = RunFolder(run.path, replace(run.config, seed=5))
    cell = Cell(later, 0.8, 2, 6, run.fmce_net, init=Init(tmp_path / "old.safetensors", "0badcafe"))
    with cell.locked():
        cell.begin(force=False)
    assert state(run, "finetune") == ("partial", "0 of 1 fine-tunings finished")
    assert status(run).next == f"fmcefast report {run.path}" and status(run).advice is None
    begin(later, (1.0, 0.8), (2,))
    assert state(later, "sweep")[0] == "missing" and status(later).next.endswith("--raf 1 --seed 2")


def test_fine_tuning_under_another_fmce_net_is_stale(run):
    for cell in begin(run, (1.0, 0.8), (0,)):
        finish(cell)
    FMCENet(1024, 1, phases=3).save_pretrained(run.fmce_net)
    assert state(run, "finetune") == ("stale", "2 of 2 under another FMCE-Net or other settings")
    assert status(run).next == f"fmcefast finetune {run.path} --raf 1 --seed 0 --force"


def test_modules_have_rows_of_their_own(run):
    shutil.copytree(run.features, run.modules / "stage2" / "features")
    assert row(run, "extract", "stage2").state == "done"
    assert [each.name for each in status(run).rows][2:5] == ["extract", "extract stage2", "fit"]
    manifest = Manifest.read(run.view("stage2").features)
    manifest.phases[0].shards.clear()
    manifest.write(run.view("stage2").features)
    assert row(run, "extract", "stage2").state == "partial" and state(run, "extract")[0] == "done"
    assert status(run).next == f"fmcefast extract {run.path} --module stage2"


def test_a_recorded_run_goes_on_in_its_own_loop(tmp_path):
    run = open_run(tmp_path / "run", {"data": "recorded", "phases": 2, "mu": 9.0, "window": 1}, create=True)
    assert status(run).next is None and "ConvergenceRecorder" in status(run).advice
    write_epochs(run.losses_csv, [Epoch(n, 1 / n, float("nan"), float("nan"), 1.0) for n in range(1, 5)])
    assert state(run, "train") == ("done", "4 epochs") and status(run).next == f"fmcefast markers {run.path}"
    found = status(run)
    assert found.top1 is None and found.planned is None
    json.dumps(asdict(found), allow_nan=False)


def test_learning_alone_asks_for_no_training(tmp_path):
    run = open_run(tmp_path / "run", {}, create=True)
    trainings = run.path / "learn" / "cache"
    trainings.mkdir(parents=True)
    for seed in (0, 1):
        (trainings / f"plain-seed-{seed}-batch-64.json").write_text("{}")
    assert (row(run, "learn cache").state, row(run, "learn cache").detail) == ("partial", "2 trainings")
    assert status(run).next == f"fmcefast report {run.path}"
    (run.path / "learn" / "fgsm.json").write_text("{")
    assert row(run, "learn fgsm").damaged and "is damaged" in row(run, "learn fgsm").detail


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("losses.csv", {"train", "markers"}),
        ("markers.json", {"markers"}),
        ("features/manifest.json", {"extract"}),
        ("features/score-02-000.npy", {"extract"}),
        ("fit.json", {"fit"}),
        ("fmce_net.safetensors", {"fit"}),
        ("score.json", {"score"}),
        ("test-runs.json", {"other-runs"}),
        ("finetune/raf-0.80-seed-0/cell.json", {"finetune", "sweep"}),
        ("sweep.csv", {"sweep"}),
        ("cam.json", {"cam"}),
    ],
)
def test_a_damaged_file_is_named_and_stops_nothing(run, name, stages):
    for cell in begin(run, (0.8,), (0,)):
        finish(cell)
    path = run.path / name
    for content in (b"", b"nonsense\n", b"[0]", b"{}", b"null", bytes(range(256))):
        if name == "test-runs.json" and content == b"{}":
            continue  # no other runs
        path.write_bytes(content)
        found = status(run)
        assert {row.stage for row in found.rows if row.damaged} == stages, content
        assert all("damaged" in row.detail for row in found.rows if row.damaged)
        assert found.next == f"fmcefast verify {run.path}"
        assert {found.stages[name] for name in stages} == {"partial"}
    path.unlink()
    path.mkdir()
    assert {row.stage for row in status(run).rows if row.damaged} == stages


def test_a_run_in_use_is_left_alone(run):
    assert not is_locked(run.path) and not status(run).in_use
    with FolderLock(run.path):
        before = snapshot(run.path)
        found = status(run)
        assert is_locked(run.path) and found.in_use and found.next is None and found.stages["fit"] == "done"
        assert found.explain().endswith("next: wait, another process is using the run")
        assert snapshot(run.path) == before
    assert not is_locked(run.path) and not is_locked(run.path / "absent")


def test_all_runs_the_last_one_worked_on_first(runs):
    for name, config in (("broken", "epochs: many\n"), ("lost", None)):
        (runs / name).mkdir()
        (runs / name / "losses.csv").write_text("epoch,loss\n")
        if config:
            (runs / name / "config.yaml").write_text(config)
    open_run(runs / ("a-run-with-a-very-long-name-" * 5), {"data": f"folder:{runs}", "backbone": "x" * 60}, create=True)
    (runs / "notes").mkdir()
    ages = {"seed-1": 50, "broken": 40, "seed-0": 30, "lost": 20}
    for name, age in ages.items():
        for path in (runs / name).rglob("*"):
            os.utime(path, (10**9 - age, 10**9 - age))
    found = status_of_runs(runs)
    names = [run.run.rpartition("/")[2] for run in found.runs]
    assert names[0].startswith("a-run-with") and names[1:] == ["lost", "seed-0", "broken", "seed-1"]
    assert "not a run folder" in found.runs[1].problem and "config.yaml is damaged" in found.runs[3].problem
    lines = found.explain().splitlines()
    assert len(lines) == 6 and lines[0].split()[-1] == "next" and lines[3].split() == [
        "seed-0", "digits", "shufflenet_v2_x0_5", "8", "6", f"{found.runs[2].top1:.4f}",
        f"{found.runs[2].accuracy:.4f}", *lines[3].split()[7:9], "report",
    ]  # fmt: skip
    assert max(len(line) for line, run in zip(lines[1:], found.runs, strict=True) if run.problem is None) <= 100
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["runs"][2]["next"] == found.runs[2].next


def test_the_verb(fmcefast, runs, tmp_path):
    code, out, err = fmcefast("status")
    assert (code, err) == (0, "") and [line.split()[0] for line in out.splitlines()] == ["run", "seed-1", "seed-0"]
    assert fmcefast("status", "runs") == (code, out, err)
    code, out, err = fmcefast("status", "--json")
    assert (code, err) == (0, "") and len(json.loads(out)["runs"]) == 2
    code, out, err = fmcefast("status", "runs/seed-0", "--json")
    assert json.loads(out)["stages"]["train"] == "done" and json.loads(out)["next"] == "fmcefast report runs/seed-0"
    code, out, err = fmcefast("status", "runs/seed-0")
    assert (code, err) == (0, "") and out.splitlines()[-1] == "next: fmcefast report runs/seed-0"
    code, out, err = fmcefast("status", "absent")
    assert (code, out) == (2, "") and "absent is not a run folder" in err
    shutil.rmtree(runs)
    assert fmcefast("status") == (0, "There is no run under runs/ yet. Make one: fmcefast run\n", "")
    assert json.loads(fmcefast("status", "--json")[1]) == {"folder": "runs", "runs": []}


def test_every_command_that_is_named_exists(run):
    """A stage that is never the next one by itself still names a command that takes these flags."""
    from fmcefast.cli import cli

    run.test_runs_json.write_text("[]")
    for stage in STAGES:
        for redo in (False, True):
            command = stage.command(RunFolder(run.path, run.config), redo=redo)
            if command is not None:
                _, verb, *words = command.split()
                flags = {flag for parameter in cli.commands[verb].params for flag in parameter.opts}
                assert {word for word in words if word.startswith("--")} <= flags, command
