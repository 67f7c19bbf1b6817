"""`python -m benchmarks.realstudy --out FOLDER [--quick]`"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything counts the cores

from benchmarks.realstudy import page
from benchmarks.realstudy.design import FULL, QUICK
from benchmarks.realstudy.measure import tables
from benchmarks.realstudy.run import Run


def main(arguments: list[str] | None = None) -> int:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.realstudy", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--quick", action="store_true", help="a size for tests: the figures mean nothing")
    parser.add_argument("--save", action="store_true", help="write docs/study.md, its tables and its figures")
    given = parser.parse_args(arguments)
    if given.quick and given.save:
        parser.error("--save is for the study in full: what --quick measures means nothing")
    extent = QUICK if given.quick else FULL
    Run(given.out, extent).run()
    page.save(tables(given.out, extent), given.out / "page")
    if given.save:
        page.publish(given.out / "page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
