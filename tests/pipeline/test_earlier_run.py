"""A run of an earlier version is read by all verbs, and nothing of it is made again.

tests/pipeline/earlier_run was left by these commands before stages became objects:

    fmcefast run runs/earlier --data-root /data --backbone timm:test_efficientnet --subset 40 --image-size 32 \
        --batch-size 20 --epochs 5 --no-until-converged --mu 9 --window 2 --start 4 --phases 2 --fmce-epochs 2 \
        --amp off --keep markers
    fmcefast score runs/earlier --reference
    fmcefast extract runs/earlier --module blocks.2
    fmcefast fit runs/earlier --module blocks.2
    fmcefast sweep runs/earlier --rafs 0.5 --seeds 1
"""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("timm")


@pytest.fixture
def earlier(tmp_path):
    shutil.copytree(Path(__file__).with_name("earlier_run"), tmp_path / "runs" / "earlier")
    return tmp_path / "runs" / "earlier"


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["markers"],
        ["extract"],
        ["extract", "--module", "blocks.2"],
        ["fit"],
        ["fit", "--module", "blocks.2"],
        ["score", "--reference"],
        ["finetune", "--raf", "0.5"],
        ["sweep", "--rafs", "0.5", "--seeds", "1"],
        ["plan"],
        ["verify"],
    ],
    ids=" ".join,
)
def test_a_verb_reads_an_earlier_run(earlier, fmcefast, words):
    before = contents(earlier)
    code, out, err = fmcefast(words[0], earlier, *words[1:], "--json")
    assert code == 0, err
    assert json.loads(out)
    changed = {path for path, content in contents(earlier).items() if before.get(path) != content}
    assert changed <= {earlier / "score.json"} if words[0] == "score" else not changed
    assert before.keys() == contents(earlier).keys()


def test_a_whole_run_is_found_done(earlier, fmcefast):
    before = contents(earlier)
    code, out, err = fmcefast("run", earlier, "--json")
    assert code == 0, err
    results = json.loads(out)
    assert list(results) == ["run", "train", "markers", "extract", "fit", "report"]
    assert results["fit"] == json.loads((earlier / "fit.json").read_text())
    assert results["markers"] == json.loads((earlier / "markers.json").read_text())
    after = contents(earlier)
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(earlier).parts[0] for path in after.keys() - before.keys()} == {"figures", "report.html"}


def test_its_history_and_report_are_read(earlier, fmcefast):
    code, _, err = fmcefast("report", earlier)
    assert code == 0, err
    page = (earlier / "report.html").read_text()
    assert "713 images/s" in page and "1,576 maps/s" in page and ">blocks.2</td>" in page
    assert "Training under the FMCE-Net" in page and "Maturity" in page
