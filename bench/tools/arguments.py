"""The command line that all suites share."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


class SuiteParser(argparse.ArgumentParser):
    """A parser for one suite, with the arguments that every suite takes."""

    def __init__(self, suite: str, description: str | None):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(f"fmcefast bench {suite}", description=description, formatter_class=formatter)
        self.add_argument(
            "--results", type=Path, default=Path("bench-results"), metavar="FOLDER", help="folder for JSON and figures"
        )
        self.add_argument("--commit", default=None, help="commit of fmcefast to record; detected in a clone")
        self.add_argument(
            "--json", action="store_true", help="print one JSON object, and nothing else, on standard output"
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        arguments = super().parse_args(args, namespace)
        if arguments.json:
            sys.stdout = sys.stderr  # progress must not mix with the result
        return arguments
