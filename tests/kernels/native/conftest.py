"""What the proofs on other instruction sets share: tools of `kernels/verify/native`, run once."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from gptoss_kernels.native import library

ROOT = Path(__file__).parents[3]
VERIFY = ROOT / "kernels" / "verify" / "native"
FAST = "not (browser or full or oracle or compile or gpu or weights)"

MISSING = library.reason()
collect_ignore_glob = ["test_[!b]*.py"] if MISSING else []
"""Without the compiled library only its building is tested; in CI it must be there."""
if MISSING and os.environ.get("CI"):
    raise pytest.UsageError(f"native kernels cannot be tested: {MISSING}")


def pytest_terminal_summary(terminalreporter) -> None:
    if MISSING:
        terminalreporter.write_line(f"native kernels were not tested: {MISSING}")


@pytest.fixture(params=() if MISSING else library.isas())
def isa(request):
    """Each instruction set that this build has and this CPU runs, forced in turn."""
    with library.using(request.param):
        yield request.param


class Recording(NamedTuple):
    """Kernel calls of the parity tests, and what they left behind on the portable lanes."""

    calls: Path
    results: Path


@pytest.fixture(scope="session")
def verify() -> Callable[[str], ModuleType]:
    """verify(name): a module of `kernels/verify/native`."""

    def module(name: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(VERIFY))
            return import_module(name)

    return module


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A folder that keeps compiled objects for all tests of a run."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="session")
def need(verify) -> Callable:
    """need(target): skip where its tools are missing; in CI they must be there."""

    def check(target) -> None:
        why = verify("compiled").missing(target)
        if why and os.environ.get("CI"):
            pytest.fail(why)
        if why:
            pytest.skip(why)

    return check


@pytest.fixture(scope="session")
def parity(verify) -> Callable[..., str]:
    """parity(package, isa, *options): run the parity tests on a copy of the package."""
    run = verify("compiled").run

    def tests(package: Path, isa: str, *options: str) -> str:
        paths = os.pathsep.join((str(package), str(VERIFY)))
        environment = os.environ | {"PYTHONPATH": paths, "GPTOSS_NATIVE_ISA": isa}
        places = ["tests/kernels/native", str(VERIFY / "fuzz.py")]
        others = [f"--ignore={places[0]}/test_{name}.py" for name in ("build", "library", "pool")]
        command = [sys.executable, "-m", "pytest", "-q", "-m", FAST, *places, *others, *options]
        return run(command, cwd=ROOT, env=environment)

    return tests


@pytest.fixture(scope="session")
def recording(verify, built, parity, tmp_path_factory) -> Recording:
    """Every kernel call that the parity tests make, but for those on what lanes may take for 0."""
    compiled, folder = verify("compiled"), tmp_path_factory.mktemp("recording")
    parity(compiled.package(built, compiled.PORTABLE), "portable", "-p", "record",
           f"--record={folder}", "-k", "not denormal_dense")  # fmt: skip
    return Recording(folder / "calls", folder / "results")


@pytest.fixture(scope="session")
def sample(verify, recording, tmp_path_factory) -> Recording:
    """A few of the recorded calls of each kernel."""
    calls, folder = verify("calls"), tmp_path_factory.mktemp("sample")
    few = Recording(folder / "calls", folder / "results")
    with recording.calls.open("rb") as made, recording.results.open("rb") as left:
        pairs = list(calls.first(24, calls.read_results(left, calls.read_calls(made))))
    few.calls.write_bytes(b"".join(calls.write_call(call) for call, _ in pairs))
    few.results.write_bytes(b"".join(calls.write_result(result) for _, result in pairs))
    return few
