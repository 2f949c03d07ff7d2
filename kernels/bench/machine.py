"""What benchmarks share: which machine this is, and one CSV of results for each."""

import csv
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """System, architecture and processor, fit for a file name."""
    parts = (platform.system(), platform.machine(), processor())
    return "-".join(parts).replace(" ", "_")


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def instructions() -> str:
    """The processor's instruction sets, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line.split(":", 1)[1].strip()
    return ""


def store(
    name: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, on: str | None = None
) -> Path:
    """Write results/<name>-<machine>.csv; `on` names the machine where it is not this CPU."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{on or machine()}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path
