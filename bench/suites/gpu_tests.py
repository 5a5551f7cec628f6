r"""The tests that need a GPU, from the clone: fmcefast gives the same there as on a CPU.

    fmcefast bench gpu-tests                # in the clone

Leaves gpu-tests-cuda.json with what passed, what did not and the slowest ones. Exits with 1 when a test failed or none
could run.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import installed
from fmcefast.bench.tools.results import publish, row
from fmcefast.doctor.machine import count_cores
from fmcefast.errors import InputError


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("gpu-tests", __doc__)
    parser.add_argument("--tests", type=Path, default=Path("tests"), help="the clone's folder of tests")
    processes = min(8, count_cores())
    parser.add_argument("--processes", type=int, default=processes, help="that share the GPU, with pytest-xdist")
    arguments = parser.parse_args(argv)
    files = [path for path in sorted(arguments.tests.rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    if not files:
        raise InputError(f"{arguments.tests} holds no tests that need a GPU. Start it in fmcefast's clone, or: --tests")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest = [sys.executable, "-P", "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}"]
        side_by_side = ["-n", str(arguments.processes), "--dist", "worksteal"] if installed("xdist") else []
        subprocess.run([*pytest, *side_by_side, *map(str, files)], stdout=sys.stderr)
        suites = ElementTree.parse(report).getroot().iter("testsuite") if report.exists() else []
        cases = [case for suite in suites for case in suite.iter("testcase")]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    counts = {"passed": len(cases) - len(failed) - len(skipped), "failed": len(failed), "skipped": len(skipped)}
    rows = [row(f"tests that need a GPU: {name}", [count], "tests") for name, count in counts.items()]
    rows.append(row("tests that need a GPU: time", [time.monotonic() - began], "s"))
    slowest = sorted(cases, key=lambda case: -seconds_of(case))[:10]
    facts = {"failed": [*map(name_of, failed)], "slowest": {name_of(case): seconds_of(case) for case in slowest}}
    publish(arguments, "gpu-tests", rows, **facts)
    if failed or not counts["passed"]:
        raise SystemExit(1)


def name_of(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}.{case.get('name')}"


def seconds_of(case: ElementTree.Element) -> float:
    return float(case.get("time", 0))


if __name__ == "__main__":
    main()
