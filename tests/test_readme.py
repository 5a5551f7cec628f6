"""The measured figures in README.md and bench/RESULTS.md are those in bench/results."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from fmcefast import FMCENet

ROOT = Path(__file__).resolve().parents[1]
SCRIPT, RESULTS = ROOT / "bench" / "tools" / "documents.py", ROOT / "bench" / "results"
README, PAGE = ROOT / "README.md", ROOT / "bench" / "RESULTS.md"
FP32_HEAD = "1024 channels, N = 64, float32, forward and backward: fmcefast"


@pytest.fixture(scope="module")
def documents():
    spec = importlib.util.spec_from_file_location("documents", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(tmp_path):
    """The results of a CPU, to be changed."""
    for path in RESULTS.glob("*.json"):
        if "-cuda" not in path.name and not path.name.startswith("reproduce-"):
            shutil.copy(path, tmp_path)
    return tmp_path


def change(results, file, edit, to=None):
    content = json.loads((results / f"{file}.json").read_text())
    edit(content)
    (results / f"{to or file}.json").write_text(json.dumps(content))


def row_of(content, name):
    return next(row for row in content["rows"] if row["name"] == name)


def page_of(documents, results):
    return documents.render("results.md.j2", results)


def test_the_documents_say_what_was_measured(documents):
    readme, remedy = README.read_text("utf-8"), "is stale: run python bench/tools/documents.py"
    assert readme == documents.with_table(readme, documents.render("readme.md.j2", RESULTS)), f"README.md {remedy}"
    assert PAGE.read_text("utf-8") == page_of(documents, RESULTS), f"bench/RESULTS.md {remedy}"


def test_every_link_of_the_documents_leads_to_a_file():
    documents = [README, PAGE, *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    for document in documents:
        text = re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert "://" in link or (document.parent / link).exists(), f"{document.name}: {link}"


def examples_of(document):
    return re.findall(r"```python\n(.*?)```", document.read_text("utf-8"), re.DOTALL)


def test_the_examples_work(falling_losses, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    FMCENet(1024).save_pretrained("fmce_net.safetensors")
    given = {
        "losses": falling_losses,
        "labels": [3, 1, 4],
        "maps_of": lambda epoch, first, rows: [torch.full((rows, 1024, 7, 7), float(epoch))],
        "logits": torch.zeros(2, 10, requires_grad=True),
        "target": torch.tensor([3, 1]),
        "feature_map": torch.rand(2, 1024, 7, 7, requires_grad=True),
    }
    (store,) = examples_of(ROOT / "docs" / "feature-store.md")
    exec(store, used := dict(given))
    assert "converged at epoch" in capsys.readouterr().out
    assert used["maps"].shape == (30, 1024, 7, 7) and used["logits"].shape == (30, 10)
    loss = next(example for example in examples_of(ROOT / "docs" / "your-loop.md") if "raf=" in example)
    exec(loss, dict(given))
    assert given["logits"].grad.abs().sum() > 0 and given["feature_map"].grad.abs().sum() > 0
    (markers,) = examples_of(README)
    exec(markers, dict(given))
    assert capsys.readouterr().out.count("converged at epoch") == 2
    (reading,) = examples_of(ROOT / "docs" / "formats.md")
    exec(reading, used := {})
    assert used["maps"].shape == (3, 7, 7, 1024) and used["phase"]["score"] == 10


def test_a_changed_figure_changes_the_table_of_the_readme(documents, results):
    before = documents.render("readme.md.j2", results)
    change(results, "head", lambda content: row_of(content, FP32_HEAD).update(value=61.64))
    assert " 61.6 ms " in documents.render("readme.md.j2", results) != before


def test_a_changed_figure_changes_the_section(documents, results):
    before = page_of(documents, results)
    shown = documents.significant(row_of(json.loads((results / "head.json").read_text()), FP32_HEAD)["value"])
    change(results, "head", lambda content: row_of(content, FP32_HEAD).update(value=61.64))
    assert page_of(documents, results) == before.replace(f" {shown} ms ", " 61.6 ms ") != before


def test_a_missing_row_or_field_or_file_is_named(documents, results):
    name = "JPEGs: DALI alone"
    change(results, "decode", lambda content: row_of(content, name).update(name="other"))
    with pytest.raises(documents.MissingResultError, match=f"decode.json, rows: there is no '{name}'"):
        page_of(documents, results)
    change(results, "decode", lambda content: row_of(content, "other").update(name=name))
    change(results, "extract", lambda content: row_of(content, "extract: fmcefast").pop("part_of_bare"))
    with pytest.raises(documents.MissingResultError, match="extract: fmcefast: there is no 'part_of_bare'"):
        page_of(documents, results)
    (results / "cqi.json").unlink()
    with pytest.raises(documents.MissingResultError, match="bench/results: there is no 'cqi'"):
        page_of(documents, results)


def test_every_row_of_a_table_must_have_its_peer(documents, results):
    change(results, "head", lambda content: content.update(rows=content["rows"][:3]))
    with pytest.raises(documents.MissingResultError, match=r"head.json, rows: there is no '\.\.\., forward and back"):
        page_of(documents, results)


def test_without_a_gpu_the_section_says_so_and_calls_predictions_by_their_name(documents, results):
    text = " ".join(page_of(documents, results).split())
    assert text.count("On a GPU this has not been measured.") == 3
    assert "Decoding on a GPU has not been measured." in text
    assert "The prediction, by counting operations, is" in text and "Reproductions" not in text


def test_results_of_a_gpu_come_into_tables_of_their_own(documents, results):
    before = page_of(documents, results)
    gpu = "NVIDIA X100; Some(R) Processor, 16 threads"

    def of_gpu(file, to, edit=lambda content: None):
        def moved(content):
            content.update(hardware=gpu, date="2027-01-02")
            edit(content)

        change(results, file, moved, to)

    def compile_as_well(content):
        for row in content["rows"]:
            row["name"] = row["name"].replace("float32", "float16").replace("N = 64", "N = 256")
        for row in [row for row in content["rows"] if row["name"].endswith("fmcefast")]:
            row["ratio"]["compiled"] = 1.25
            content["rows"].append({**row, "name": row["name"].replace("fmcefast", "compiled"), "value": 0.12345})

    def large_jpegs_without_dali(content):
        content["rows"] = [row for row in content["rows"] if row["name"] == "JPEGs: fmcefast, torchvision"]

    def reproduced(content):
        settings = {"data": "mnist", "recipe": None, "backbone": "resnet50", "image_size": 64, "epochs": 9}
        row = {
            "name": "top-1",
            "value": 0.91,
            "std": 0.02,
            "paper": 0.9927,
            "markers": [3, 5],
            "paper_markers": [7, 12],
            "unit": "fraction",
        }
        content.update(rows=[row], complete=False, settings=settings | {"subset": 500})

    of_gpu("head", "head-cuda", compile_as_well)
    of_gpu("decode", "decode-cuda", large_jpegs_without_dali)
    for backbone in ("resnet50", "shufflenet_v2_x1_0"):
        for suite in ("train", "ral-step"):
            of_gpu(
                f"{suite}-shufflenet_v2_x1_0",
                f"{suite}-cuda-{backbone}",
                lambda c, b=backbone: c.update(backbone=b),
            )
    of_gpu("extract", "reproduce-cuda-mnist-s", reproduced)
    section = page_of(documents, results)
    text = " ".join(section.split())
    assert "GPU this has not" not in text and "GPU has not" not in text and "prediction" not in text
    assert re.search(r"and on NVIDIA X100 with Some Processor, 16 threads, torch [\d.]+ and [\d.]+, 2027-01-02\.", text)
    assert re.search(
        r"\| 1024 channels, N = 256, float16 \| [\d.]+ ms \| 0\.123 ms \| .* ms \| .*x, compiled 1\.2x \|", section
    )
    assert re.search(r"\| ImageNet's JPEGs, random crop to 224 px \| [\d,]+ \|  \|  \|  \|  \|  \|", section)
    for backbone in ("resnet50", "shufflenet_v2_x1_0"):
        for suite in ("train", "ral-step"):
            caption = f"`{backbone}`, {'96' if suite == 'train' else '224'} px, batches of 64, NVIDIA X100"
            assert f"{caption} (`{suite}-cuda-{backbone}.json`, medians of" in text
    assert (
        "`reproduce-cuda-mnist-s.json`: 500 images of mnist, resnet50, 64 px, 9 epochs, on NVIDIA X100; not fin" in text
    )
    assert "| top-1 | 0.9100 ± 0.0200 | 0.9927 |" in section and "| E_1..E_K | 3 5 | 7 12 |" in section
    assert section.count("\n|---") == before.count("\n|---") + 7 and section.count("CIFAR-10 as JPEGs") == 1


def test_headings_and_pictures_stand_alone(documents, results):
    blocks = page_of(documents, results).strip("\n").split("\n\n")
    for block in blocks:
        if "## " in block or "![" in block:
            assert re.fullmatch(r"## [^#\n]+|!\[[^]\n]+\]\([^)\n]+\)", block), block
    assert {block for block in blocks if block.startswith("## ")} >= {"## Whole runs", "## The head as a loss"}


def test_tables_are_whole(documents, results):
    for block in page_of(documents, results).split("\n\n"):
        if "\n|" in block:
            heading, *rows = block.splitlines()
            assert {row.count("|") for row in rows} == {heading.count("|")} and not any("\n" in row for row in rows)


def test_only_the_table_between_the_markers_is_replaced(documents):
    text = f"# A\n\n## Measured\n\n{documents.BEGIN}\n\nold\n\n| a |\n{documents.END}\n\n## Limits\n"
    assert documents.with_table(text, "new\n") == text.replace("old\n\n| a |\n", "new\n\n")
    with pytest.raises(ValueError, match="no place for the measured table"):
        documents.with_table(text.replace(documents.END, ""), "new\n")


@pytest.mark.parametrize("stale", ["README", "PAGE"])
def test_check_refuses_a_stale_document_and_writing_makes_it_fresh(documents, tmp_path, monkeypatch, stale):
    texts = {name: getattr(documents, name).read_text("utf-8") for name in ("README", "PAGE")}
    for name, text in texts.items():
        path = tmp_path / getattr(documents, name).name
        path.write_text(re.sub(r"\d ms", "0 us", text) if name == stale else text, "utf-8")
        monkeypatch.setattr(documents, name, path)
    name = getattr(documents, stale).name
    monkeypatch.setattr(sys, "argv", ["documents.py", "--check"])
    with pytest.raises(SystemExit, match=rf"{name} differs from bench/results: run python bench/tools/documents\.py"):
        documents.main()
    assert getattr(documents, stale).read_text("utf-8") != texts[stale], "--check must not write"
    monkeypatch.setattr(sys, "argv", ["documents.py"])
    documents.main()
    assert {name: getattr(documents, name).read_text("utf-8") for name in texts} == texts
    monkeypatch.setattr(sys, "argv", ["documents.py", "--check"])
    documents.main()
