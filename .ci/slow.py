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


GROUPS = (
    Group("compile", 35),
    Group("browser", 10),
    Group("oracle", 10),
    Group("full", 20),
)


class Outcome(NamedTuple):
    """What one group's report says."""

    passed: int
    failed: int
    good: bool


def main() -> int:
    """Run every group; 0 when all passed."""
    fetch = [sys.executable, "tests/oracle/fetch.py"]
    subprocess.run(fetch, cwd=ROOT, check=True)
    outcomes = {group.marker: run(group) for group in GROUPS}
    bad = [marker for marker, outcome in outcomes.items() if not outcome.good]
    print("slow groups:", f"FAILED {', '.join(bad)}" if bad else "all good")
    passed = sum(outcome.passed for outcome in outcomes.values())
    print(f"{passed} passed, {sum(outcome.failed for outcome in outcomes.values())} failed")
    return 1 if bad else 0


def run(group: Group) -> Outcome:
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
            return Outcome(0, 1, good=False)
        passed, failed = counts(report)
    spent = (time.monotonic() - started) / 60
    ran = f"{passed} passed, {failed} failed in {spent:.1f} of {group.minutes} minutes"
    print(f"{group.marker}: {ran}", flush=True)
    return Outcome(passed, failed, good=passed + failed > 0 and done.returncode == 0)


def counts(report: Path) -> tuple[int, int]:
    """Tests that passed, and that failed or broke; skipped ones are neither."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    failed = sum(int(s.get("failures", 0)) + int(s.get("errors", 0)) for s in suites)
    ran = sum(int(s.get("tests", 0)) - int(s.get("skipped", 0)) for s in suites)
    return ran - failed, failed


if __name__ == "__main__":
    sys.exit(main())
