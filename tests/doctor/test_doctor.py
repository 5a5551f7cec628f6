"""What `fmcefast doctor` finds, against what the system says of itself, and with parts that are missing or broken."""

import ctypes
import importlib
import json
import logging
import mmap
import os
import subprocess
import sys
import tomllib
import warnings
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from fmcefast import __version__, _core, cli
from fmcefast.data.loaders import choose
from fmcefast.doctor import examination, machine
from fmcefast.doctor.examination import doctor
from fmcefast.doctor.packages import find_misfits
from fmcefast.doctor.result import Cpu, Disk, DoctorResult, Gpu, Package, StageChoice
from fmcefast.kernels.fmce_head.triton_head import TritonHead
from fmcefast.losses import implementation
from fmcefast.runtime.device import amp_type, describe, precision_name

ROOT = Path(__file__).resolve().parents[2]
WRONG = RuntimeError("operator torchvision::nms does not exist")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `fmcefast doctor` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fmcefast", "doctor", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def versions(monkeypatch):
    """Change the versions that are installed; None is not installed."""
    real, changed = metadata.version, {}

    def version(name):
        if changed.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return changed.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    return changed


@pytest.fixture
def broken(tmp_path):
    """Run `python -m fmcefast doctor --json` with a package that cannot be imported: (exit code, found)."""

    def call(name):
        package = tmp_path / "path" / name / "__init__.py"
        package.parent.mkdir(parents=True)
        package.write_text(f"raise {WRONG!r}\n")
        done = subprocess.run(
            [sys.executable, "-m", "fmcefast", "doctor", "--json"],
            cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "path")},
        )  # fmt: skip
        assert done.stderr == ""
        return done.returncode, read(done.stdout)

    return call


def read(text):
    """A DoctorResult from its JSON."""
    content = json.loads(text)
    for name, kind in (("gpus", Gpu), ("packages", Package), ("stages", StageChoice)):
        content[name] = [kind(**each) for each in content[name]]
    return DoctorResult(**{**content, "cpu": Cpu(**content["cpu"]), "disk": Disk(**content["disk"])})


def stage(found, name):
    return next(each for each in found.stages if each.stage == name)


def package(found, name):
    return next(each for each in found.packages if each.name == name)


def test_the_processor_is_that_of_the_kernel(tmp_path):
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    of_kernel = dict(line.split("\t: ", 1) for line in reversed(lines) if "\t: " in line)
    of_kernel = {name.strip(): text for name, text in of_kernel.items()}
    found = doctor(tmp_path).cpu
    assert found.model == of_kernel["model name"].strip()
    assert found.cores == int(subprocess.check_output(["nproc"], env={**os.environ, "OMP_NUM_THREADS": ""}))
    names = {"avx512f": "AVX-512", "f16c": "F16C", "avx512_bf16": "AVX512_BF16", "amx_tile": "AMX"}
    assert found.instructions == [name for flag, name in names.items() if flag in of_kernel["flags"].split()]


def test_the_versions_are_those_of_pip_and_the_minimums_those_of_the_project(tmp_path):
    found = doctor(tmp_path)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = dict(line.partition(";")[0].split(">=") for line in project["dependencies"])
    assert package(found, "fmcefast").version == metadata.version("fmcefast") == __version__
    assert package(found, "python").version == sys.version.split()[0]
    for name in ("torch", "torchvision", "triton", "numba"):
        assert package(found, name) == Package(name, metadata.version(name), f">={asked[name]}", None)
    [dali] = [each for each in found.packages if "dali" in each.name]
    assert dali.needs == f">={asked['nvidia-dali-cuda130']}" and dali.version == metadata.version(dali.name)


def test_the_disk_can_do_what_the_system_lets_us_do(tmp_path):
    descriptor = os.open(tmp_path / "direct", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    try:
        direct = os.write(descriptor, mmap.mmap(-1, 4096)) == 4096
    except OSError:
        direct = False
    os.close(descriptor)
    (tmp_path / "direct").unlink()
    ring = ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(120))  # io_uring_setup
    if ring >= 0:
        os.close(ring)
    disk = doctor(tmp_path / "not" / "yet").disk
    assert (disk.folder, disk.direct, disk.io_uring) == (str(tmp_path), direct, ring >= 0)
    stat = os.statvfs(tmp_path)
    assert abs(disk.free - stat.f_bavail * stat.f_frsize) < 1e9  # others write as well
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(command):
    found = doctor(Path("/proc"))
    assert found.disk.direct is None and found.disk.io_uring is None
    [problem] = found.problems
    assert "Nothing can be written in /proc" in problem and "name another folder" in problem
    assert stage(found, "extract").uses is None and stage(found, "train").uses
    code, out, err = command("/proc/none")
    assert (code, err) == (1, "") and "/proc," in out and "cannot be written" in out and problem[:30] in out


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_train_and_fit_are_said_to_compute_as_they_do(has_bf16, precision, no_gpu, tmp_path, monkeypatch, cpu):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_bf16)
    dense, depthwise = (torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=groups)) for groups in (1, 8))
    dense, depthwise = (precision_name(amp_type("auto", cpu, network)) for network in (dense, depthwise))
    assert (dense, depthwise) == (precision, "fp32")
    found = doctor(tmp_path)
    as_told_by_runs = describe(cpu, amp_type("auto", cpu))
    of_depthwise = "" if depthwise == dense else f" ({depthwise} for depthwise convolutions)"
    assert as_told_by_runs.endswith(dense)
    assert stage(found, "train").uses.startswith(f"{as_told_by_runs}{of_depthwise}; ")
    assert stage(found, "fit").uses.startswith(f"{as_told_by_runs}; ")
    for name in ("train", "fit"):
        assert stage(found, name).why.startswith("the CPU has bf16" if has_bf16 else "the CPU has no bf16")
    assert ("AVX512_BF16" in found.cpu.instructions) == has_bf16


def test_markers_take_the_cores_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 7})
    found = doctor(tmp_path)
    assert stage(found, "markers").uses == "Numba, 3 threads" and found.cpu.cores == 3


def test_extract_is_said_to_write_as_the_core_does(tmp_path, monkeypatch):
    as_it_is = stage(doctor(tmp_path), "extract").uses
    assert as_it_is.endswith(f"float16 by {_core.float16_conversions()[0]}")
    pool, shard = _core.WritePool, _core.ShardWriter
    monkeypatch.setattr(_core, "WritePool", lambda memory, threads, use_uring: pool(memory, threads, use_uring=False))
    monkeypatch.setattr(_core, "ShardWriter", lambda *arguments: shard(*arguments, direct=False))
    found = doctor(tmp_path)
    assert stage(found, "extract").uses.startswith("writes on threads, through the page cache, ")
    assert "no io_uring, no O_DIRECT" in found.explain() and found.usable


def test_the_loss_is_said_to_be_computed_as_it_is(no_gpu, tmp_path, monkeypatch, caplog):
    level = logging.getLogger("fmcefast").level
    assert stage(doctor(tmp_path), "loss") == StageChoice(
        "loss", "Winograd's algebra in PyTorch", "the maps are on a cpu"
    )

    def fail(*arguments, **settings):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(implementation, "triton_obstacle", lambda *arguments, **settings: None)
    monkeypatch.setattr(TritonHead, "__call__", fail)
    found = doctor(tmp_path)
    assert stage(found, "loss").uses == "PyTorch" and found.usable
    assert [note for note in found.notes if "no C compiler" in note]
    assert not caplog.records and logging.getLogger("fmcefast").level == level  # the trial is not logged


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")
def test_the_loss_is_said_to_be_computed_by_triton(tmp_path, monkeypatch):
    monkeypatch.setattr(implementation, "triton_obstacle", lambda *arguments, **settings: None)
    assert stage(doctor(tmp_path), "loss").uses == "Triton kernels"


def test_a_missing_dali_is_noted(no_gpu, tmp_path, monkeypatch, versions):
    dali = next(each.name for each in doctor(tmp_path).packages if "dali" in each.name)
    for name in ("nvidia.dali", "fmcefast.data.loaders.dali"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    versions[dali] = None
    others = [each for each in metadata.distributions() if "dali" not in each.metadata["Name"]]
    monkeypatch.setattr(metadata, "distributions", lambda: others)
    monkeypatch.setattr("torch.version.cuda", "12.8")
    choose._dali_is_missing.cache_clear()
    try:
        versions["nvidia-dali-cuda120"] = None
        found = doctor(tmp_path)
    finally:
        choose._dali_is_missing.cache_clear()
    assert "image files by torchvision, images in arrays by resident" in stage(found, "train").uses
    assert stage(found, "train").why.endswith("files: decoded on the CPU")
    assert "nvidia-dali-cuda120 is not installed: pip install -U nvidia-dali-cuda120" in found.notes
    assert package(found, "nvidia-dali-cuda120").version is None and found.usable


def test_a_torch_that_is_too_old(tmp_path, versions, command):
    versions["torch"] = "2.9.1+cu128"
    found = doctor(tmp_path)
    problem = "torch 2.9.1+cu128 is too old, fmcefast needs >=2.11: pip install -U torch torchvision"
    assert found.problems == [problem] and not found.usable
    code, out, err = command()
    assert (code, err) == (1, "") and problem in out and "does not run here" in out
    for build in ("2.11.0a0+git", "not a version"):
        versions["torch"] = build
        assert doctor(tmp_path).usable


def test_another_package_that_is_missing(tmp_path, versions):
    assert "pillow" not in [each.name for each in doctor(tmp_path).packages]
    versions["pillow"] = None
    found = doctor(tmp_path)
    assert found.problems == ["pillow is not installed: pip install -U pillow"]
    assert package(found, "pillow").trouble == found.problems[0]


def test_versions_that_are_not_made_for_each_other(tmp_path, monkeypatch):
    real = metadata.requires
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch (==2.9.1)"] if name == "torchvision" else real(name))
    found = doctor(tmp_path)
    [note] = [note for note in found.notes if note.startswith("torchvision ")]
    assert f"is made for torch ==2.9.1, not {metadata.version('torch')}: pip install -U torch torchvision" in note


def test_a_dali_for_another_cuda(monkeypatch):
    packages = [Package("nvidia-dali-cuda130", "2.4.0", ">=2.0", None)]
    monkeypatch.setattr("torch.version.cuda", "12.8")
    assert find_misfits(packages, with_gpu=False) == []
    [note] = find_misfits(packages, with_gpu=True)
    assert note.endswith("pip install -U nvidia-dali-cuda120")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert find_misfits(packages, with_gpu=True) == []


def test_a_torchvision_that_does_not_fit(broken, tmp_path):
    code, found = broken("torchvision")
    assert code == 1
    [problem] = found.problems
    assert str(WRONG) in problem and "pip install -U --force-reinstall torch torchvision" in problem
    assert package(found, "torchvision") == Package("torchvision", metadata.version("torchvision"), ">=0.26", problem)
    assert [each.stage for each in found.stages if each.uses] == ["markers", "loss"]
    assert all(str(WRONG) in each.why for each in found.stages if each.uses is None)
    assert found.disk.direct is not None and found.disk.folder == str(tmp_path)


def test_a_torch_that_cannot_be_loaded(broken):
    code, found = broken("torch")
    assert code == 1 and found.memory is None and found.no_gpu
    of_torch = [problem for problem in found.problems if problem.startswith("torch ")]
    assert len(of_torch) == 1 and str(WRONG) in of_torch[0]
    assert [each.stage for each in found.stages if each.uses] == ["markers"]
    assert found.cpu.instructions == [name for name in _core.float16_conversions() if name != "portable"]


def driver_is_too_old():
    warnings.warn("The NVIDIA driver on your system is too old\n(found version 12020).", stacklevel=1)
    return False


@pytest.mark.parametrize(
    ("patched", "visible", "driver", "reason"),
    [
        ({"torch.version.cuda": None}, None, "580.1", "is built without CUDA"),
        ({}, "", "580.1", "CUDA_VISIBLE_DEVICES= hides it"),
        ({}, "-1", None, "CUDA_VISIBLE_DEVICES=-1 hides it"),
        ({"torch.cuda.is_available": driver_is_too_old}, None, "535.1", "driver on your system is too old (found"),
        ({}, "0", None, "no NVIDIA driver"),
        ({}, None, "580.1", "torch finds none"),
    ],
)
def test_why_there_is_no_gpu(patched, visible, driver, reason, no_gpu, tmp_path, monkeypatch):
    for name, value in {"torch.version.cuda": "13.0", **patched}.items():
        monkeypatch.setattr(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(examination, "find_driver", lambda: driver)
    found = doctor(tmp_path)
    assert reason in found.no_gpu and found.gpus == [] and found.jpeg_decoder is None and found.driver == driver
    [note] = [note for note in found.notes if note.startswith("No GPU is used")]
    assert note.partition(f"{found.no_gpu}: ")[2] and note in found.explain() and found.usable


def test_a_gpu_that_torch_cannot_compute_on(tmp_path, monkeypatch):
    def no_kernel(*arguments, **settings):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.ones", no_kernel)
    found = doctor(tmp_path)
    assert not found.usable and "no kernel image" in found.problems[0] and "CUDA_VISIBLE_DEVICES=" in found.problems[0]
    assert "torch cannot compute on it" in found.explain()


@pytest.mark.gpu
def test_the_gpus_are_those_of_the_driver(tmp_path):
    asked = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits"]
    rows = [row.split(", ") for row in subprocess.check_output(asked, text=True).splitlines()]
    found = doctor(tmp_path)
    assert [(gpu.name, gpu.capability) for gpu in found.gpus] == [(row[0], row[1]) for row in rows]
    assert all(abs(gpu.memory / 2**20 / int(row[2]) - 1) < 0.1 for gpu, row in zip(found.gpus, rows, strict=True))
    assert found.driver == rows[0][3] and found.no_gpu is None
    has_decoder = any(kind in rows[0][0] for kind in ("A100", "A30", "H100", "H200", "GB200"))
    with_nvjpeg = not found.jpeg_decoder.startswith("unknown")  # which DALI brings
    assert not has_decoder or not with_nvjpeg or found.jpeg_decoder.startswith("nvJPEG, ")
    assert rows[0][0] in stage(found, "train").uses and stage(found, "loss").uses == "Triton kernels"


@pytest.mark.parametrize(
    ("script", "driver"),
    [("echo 580.65.06; echo 580.65.06", "580.65.06"), ("echo NVIDIA-SMI has failed; exit 9", None), ("sleep 5", None)],
)
def test_the_driver_is_what_nvidia_smi_says(script, driver, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(machine, "_DRIVER_SECONDS", 1)
    assert machine.find_driver() == driver
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.find_driver() is None


@pytest.mark.parametrize(
    ("created", "engines", "expected"),
    [
        (0, 7, "nvJPEG, 7 x 5 cores"),
        (0, 0, "none on this GPU"),
        (7, 0, "none on this GPU"),
        (6, 0, "unknown, nvJPEG fails with status 6"),
    ],
)
def test_the_jpeg_hardware_is_what_nvjpeg_says(created, engines, expected, tmp_path, monkeypatch):
    """A library with the functions of nvjpeg.h."""
    calls = []

    class Library:
        def nvjpegCreateEx(self, backend, device, pinned, flags, handle):  # noqa: N802
            calls.append(("create", backend))
            handle._obj.value = 99
            return created

        def nvjpegGetHardwareDecoderInfo(self, handle, number, cores):  # noqa: N802
            number._obj.value, cores._obj.value = engines, 5
            return 0

        def nvjpegDestroy(self, handle):  # noqa: N802
            calls.append(("destroy", handle.value))

    monkeypatch.setattr(ctypes, "CDLL", lambda path: Library())
    assert machine.find_jpeg_decoder() == expected
    assert calls == [("create", 3), ("destroy", 99)][: 1 if created else 2]


def test_nvjpeg_that_cannot_be_asked(monkeypatch):
    def fail(path):
        raise OSError(f"{path}: undefined symbol")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert machine.find_jpeg_decoder().startswith("unknown, nvJPEG cannot be queried (OSError: ")
    monkeypatch.setitem(sys.modules, "nvidia", None)
    assert machine.find_jpeg_decoder().startswith("unknown, nvJPEG cannot be queried (ModuleNotFoundError: ")


def test_nvjpeg_that_is_not_there(tmp_path, monkeypatch):
    """Without DALI, NVIDIA's other packages are there and nvJPEG is not, unless the system has one."""
    monkeypatch.setattr(importlib.import_module("nvidia"), "__path__", [str(tmp_path), str(tmp_path / "gone")])
    monkeypatch.setattr(machine, "find_library", lambda name: None)
    assert machine.find_jpeg_decoder() == "unknown, nvJPEG is not installed; it comes with DALI"
    monkeypatch.setattr(machine, "find_library", lambda name: f"lib{name}.so.0")
    assert machine.find_jpeg_decoder().startswith("unknown, nvJPEG cannot be queried (OSError: libnvjpeg.so.0")
    (tmp_path / "cu13" / "lib").mkdir(parents=True)
    (tmp_path / "cu13" / "lib" / "libnvjpeg.so.13").touch()
    assert f"OSError: {tmp_path}/cu13/lib/libnvjpeg.so.13" in machine.find_jpeg_decoder()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")
def test_nvjpeg_without_a_gpu():
    assert machine.find_jpeg_decoder().startswith("unknown, ")


def test_the_json_has_the_facts_of_the_text(tmp_path, monkeypatch, command):
    found = doctor(tmp_path)
    with_gpus = replace(
        found,
        gpus=[Gpu("NVIDIA H200", 150_754_820_096, "9.0")] * 2,
        no_gpu=None,
        driver="580.65.06",
        jpeg_decoder="nvJPEG, 7 x 5 cores",
        notes=["a note"],
        problems=["a problem"],
    )
    for result in (found, with_gpus):
        monkeypatch.setattr(examination, "doctor", lambda folder, result=result: result)
        code, out, err = command("anywhere")
        assert (code, err) == (0 if result.usable else 1, "")
        code, as_json, err = command("anywhere", "--json")
        assert (code, err) == (0 if result.usable else 1, "") and as_json.count("\n") == 1
        assert read(as_json) == result and f"{read(as_json).explain()}\n" == out
        assert all(f"{each.name} " in out and f" {each.version} " in out for each in result.packages[2:])
        assert all(f"{each.uses} ({each.why})" in out for each in result.stages)
        assert all(f" {line}\n" in out for line in result.notes + result.problems)
    assert out.count("NVIDIA H200, 151 GB, compute capability 9.0\n") == 2
    assert " 580.65.06\n" in out and " nvJPEG, 7 x 5 cores\n" in out


def test_the_lines_are_aligned_and_a_healthy_machine_exits_with_0(command, tmp_path):
    code, out, err = command()
    *lines, last = out.splitlines()
    assert (code, err, last) == (0, "", "doctor: fmcefast runs here")
    start = lines[0].index(lines[0].split(maxsplit=1)[1])
    assert all(line[start - 1] == " " and line[start] != " " for line in lines)
    assert list(tmp_path.iterdir()) == []
    assert json.loads(command("--json")[1]).keys() == asdict(doctor(tmp_path)).keys()


def test_a_stage_that_cannot_be_imported(tmp_path, monkeypatch):
    """Something that it needs is installed and broken."""
    monkeypatch.setitem(sys.modules, "fmcefast.stages.fit", None)
    found = doctor(tmp_path)
    assert [each.stage for each in found.stages if each.uses is None] == ["fit"]
    [problem] = found.problems
    assert problem.startswith("fit cannot run: ModuleNotFoundError: ") and not found.usable
