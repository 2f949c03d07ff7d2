"""Run the slow test groups one after the other, each with its own time budget.

A group that must run and ran nothing fails the run; so does one that overran its budget.
"""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Group(NamedTuple):
    """One pytest marker."""

    marker: str
    minutes: int
    must_run: bool = True
    note: str = ""


GROUPS = (
    Group("browser", 15),
    Group("full", 30),
    Group("oracle", 20),
    Group("compile", 10, must_run=False, note="arrives with the Triton kernels"),
)


def main() -> int:
    """Run every group; 0 when all passed."""
    fetch = [sys.executable, "tests/oracle/fetch.py"]
    subprocess.run(fetch, cwd=ROOT, check=True)
    failed = [group.marker for group in GROUPS if not run(group)]
    print("slow groups:", f"FAILED {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


def run(group: Group) -> bool:
    """Run one group and judge it."""
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", group.marker]
        command += [f"--junitxml={report}", "--durations=5"]
        environment = os.environ | {"GPTOSS_REQUIRE_ORACLE": "1"}
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, timeout=group.minutes * 60)
        except subprocess.TimeoutExpired:
            print(f"{group.marker}: stopped, over its budget of {group.minutes} minutes")
            return False
        ran = executed(report)
    spent = (time.monotonic() - started) / 60
    print(f"{group.marker}: {ran} tests in {spent:.1f} of {group.minutes} minutes {group.note}")
    if done.returncode == 5 or ran == 0:
        return not group.must_run
    return done.returncode == 0


def executed(report: Path) -> int:
    """Tests that ran, skipped ones left out."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


if __name__ == "__main__":
    sys.exit(main())
