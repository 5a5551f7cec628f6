"""The benchmarks as a user starts them, with sizes that measure nothing."""

import importlib
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fmcefast.bench import SUITES
from fmcefast.bench.suites import all as every
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.results import row
from fmcefast.cli import cli
from fmcefast.errors import InputError


def bench(*words, cwd, code=0):
    command = [sys.executable, "-P", "-m", "fmcefast", "bench", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done


def test_the_help_lists_every_suite():
    shown = CliRunner().invoke(cli, ["bench"]).output
    assert all(f"  {name}" in shown for name in SUITES) and shown == CliRunner().invoke(cli, ["bench", "--help"]).output


def test_suites_that_are_not_there_or_lack_a_package_are_refused(monkeypatch):
    def invoke(*words):
        CliRunner().invoke(cli, ["bench", *words], catch_exceptions=False, standalone_mode=False)

    with pytest.raises(InputError, match=r"Unknown suite 'haed'\. Did you mean 'head'"):
        invoke("haed")
    monkeypatch.setitem(sys.modules, "fmcefast.bench.suites.head", None)
    with pytest.raises(InputError, match="bench head needs"):
        invoke("head")


def test_rows_hold_numpys_percentiles(rng):
    values = rng.random(11).tolist()
    made = row("name", values, "s", fact=1)
    percentiles = made["p20"], made["value"], made["p80"]
    np.testing.assert_allclose(percentiles, np.percentile(values, [20, 50, 80]))
    assert (made["n"], made["fact"]) == (11, 1)
    alone = row("name", [2.0], "s")
    assert (alone["p20"], alone["value"], alone["p80"], alone["n"]) == (2, 2, 2, 1)


def test_one_suite_leaves_its_result_and_says_it_as_json(tmp_path):
    done = bench("head", "--batch", 2, "--channels", 16, "--rounds", 2, "--json", "--commit", "abc", cwd=tmp_path)
    printed, written = json.loads(done.stdout), json.loads((tmp_path / "bench-results" / "head.json").read_text())
    assert printed == written and printed["suite"] == "head" and printed["commit"] == "abc"
    assert printed["versions"]["torch"] == torch.__version__.partition("+")[0] and printed["hardware"]
    assert {"name", "value", "unit", "p20", "p80", "n", "ratio"} <= printed["rows"][1].keys()


@pytest.mark.slow
def test_all_suites_work_and_go_on_where_they_ended(tmp_path):
    results = tmp_path / "bench-results"
    words = ["all", "--quick", "--only", "head", "reader", "decode", "ral-step"]
    first = bench(*words, "--minutes", 0.9, cwd=tmp_path)  # each piece is expected to take a minute
    assert first.stdout.count("not yet") == 3 and "left out: give --jpegs, --small or --mnist" in first.stdout
    assert not list(results.glob("*.json"))
    bench("all", "--quick", "--only", "head", cwd=tmp_path)
    assert (results / "head.json").exists() and not (results / "reader.json").exists()
    before = (results / "head.json").stat().st_mtime_ns
    (results / "reader.failed.txt").write_text("as if it had failed")
    second = bench(*words, cwd=tmp_path, code=1)
    assert "Some pieces failed" in second.stderr and not (results / "reader.json").exists()
    third = bench(*words, "--again", "--json", cwd=tmp_path)
    printed = json.loads(third.stdout)
    assert printed["pieces"]["reader"] == "done" and not (results / "reader.failed.txt").exists()
    assert {result["suite"] for result in printed["results"]} == {"head", "reader", "ral-step"}
    assert (results / "head.json").stat().st_mtime_ns == before


def test_a_piece_that_fails_leaves_what_it_said_and_the_others_go_on(fmcefast, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = fmcefast("bench", "all", "--quick", "--only", "decode", "head", "--jpegs", "empty")
    assert code == 1 and "holds no JPEG" in (tmp_path / "bench-results" / "decode.failed.txt").read_text()
    assert (tmp_path / "bench-results" / "head.json").exists() and "see bench-results/*.failed.txt" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_sizes_for_a_gpu_need_one(fmcefast, tmp_path):
    code, _, err = fmcefast("bench", "all", "--gpu")
    assert code == 2 and "--gpu needs an NVIDIA GPU" in err and "fmcefast doctor" in err
    (tmp_path / "wheels").mkdir()
    code, _, err = fmcefast("bench", "all", "--wheels", "wheels")
    assert code == 2 and "wheels holds no wheels" in err


def test_what_is_worth_most_on_a_gpu_comes_first_and_fits_into_its_time():
    pieces = every.pieces_of(every.parser().parse_args(["--gpu", "--mnist", "a"]))
    first = [piece.suite for piece in pieces].index("decode")
    assert {piece.suite for piece in pieces[:first]} == {"gpu-tests", "ral-step", "train", "head", "start"}
    assert sum(piece.minutes for piece in pieces[:first]) <= 8 and pieces[first].minutes <= 4


def test_what_a_gpu_is_to_measure_names_arguments_that_exist(monkeypatch):
    """Nobody may find a misspelt flag on a rented machine."""
    arguments = every.parser().parse_args(["--jpegs", "a", "--small", "b", "--mnist", "c"])
    for gpu, quick in ((True, False), (False, True), (False, False)):
        arguments.gpu, arguments.quick = gpu, quick
        for piece in every.pieces_of(arguments):
            module = importlib.import_module(f"fmcefast.bench.{SUITES[piece.suite][0]}")
            parsed = []

            def stop(self, args=None, namespace=None, parsed=parsed):
                parsed.append(super(SuiteParser, self).parse_args(args, namespace))
                raise InterruptedError

            with monkeypatch.context() as patch:
                patch.setattr(SuiteParser, "parse_args", stop)
                with pytest.raises(InterruptedError):
                    module.main([*shlex.split(piece.words), "--json"])
            assert parsed
