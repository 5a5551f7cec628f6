"""The wheel as pip builds it from these sources, used from a folder where nothing else of the project lies."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fmcefast

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run([*build, f"-Cbuild-dir={folder}/build"], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed, script, *arguments):
    # An editable install of a developer's must not step in front of the wheel.
    prelude = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]; "
        f"sys.path.insert(0, {str(installed)!r}); "
    )
    command = [sys.executable, "-c", prelude + script, *arguments]
    return subprocess.run(command, cwd=installed.parent, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_it_holds_the_package_and_nothing_else(installed):
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    package = {name for name in files if not name.startswith("fmcefast-")}
    assert all(name.startswith("fmcefast/") for name in package)
    assert {
        "fmcefast/kernels/cqi/loops.py",
        "fmcefast/bench/suites/head.py",
        "fmcefast/bench/tools/results.py",
        "fmcefast/py.typed",
        "fmcefast/_core.pyi",
        "fmcefast/report/templates/run.html.j2",
        "fmcefast/report/templates/sections/convergence.html.j2",
        "fmcefast/report/templates/page.css",
        "fmcefast/report/templates/chart.js",
    } <= package
    assert any(name.startswith("fmcefast/_core.") and name.endswith((".so", ".pyd")) for name in package)
    unwanted = ("csrc", "/test", "__pycache__", "bench/results", "RESULTS", "documents", "tools/templates", "readme")
    assert not any(part in name for name in package for part in unwanted)
    assert any(name.endswith("licenses/LICENSE") for name in files)
    metadata = next(installed.glob("fmcefast-*.dist-info/METADATA")).read_text()
    assert f"\nVersion: {fmcefast.__version__}\n" in metadata


@pytest.mark.slow
def test_it_works_where_it_is_unpacked(installed, falling_losses, tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("\n".join(map(repr, falling_losses.tolist())))
    script = (
        "import fmcefast, numpy as np; from fmcefast import FeatureMapWriter, FeatureMapDataset\n"
        "print(fmcefast.__file__)\n"
        f"with FeatureMapWriter({str(tmp_path / 'f')!r}, shape=(1, 1, 4), samples=2, epochs=[1], labels=[0, 1]) as w:\n"
        "    w.write(1, np.ones((2, 1, 1, 4), np.float32))\n"
        f"print(float(FeatureMapDataset({str(tmp_path / 'f')!r})[1][0].sum()))\n"
    )
    where, total = run(installed, script).split()
    assert Path(where).is_relative_to(installed) and total == "4.0"
    words = ["markers", str(log), "--mu", "1e-2", "--json"]
    markers = json.loads(run(installed, "from fmcefast.cli import main; main()", *words))
    assert markers["status"] == "converged"


def test_the_source_folder_says_how_to_install_it(tmp_path):
    (tmp_path / "fmcefast").symlink_to(ROOT / "fmcefast")
    script = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; import fmcefast"
    done = subprocess.run([sys.executable, "-S", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "compiled core is missing" in done.stderr and "pip install ." in done.stderr
