"""A pytest plugin that runs the ordinary parity tests on compiled PTX, in place of the interpreter.

    PYTHONPATH=kernels/verify/triton python -m pytest -p on_ptx --ptx-target=sm_80 \\
        tests/kernels/triton/test_rms_norm.py

Every launch is compiled for the target and emulated on the CPU; see `ptx_machine`.
"""

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # read when triton is first imported, next

import offline
import ptx_faults
import ptx_machine
import pytest

from gptoss_kernels.triton import tiles


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ptx-target", required=True, help="whose PTX is run, e.g. sm_80")
    parser.addoption("--ptx-tiles", choices=("target", "interpreter"), default="target")
    parser.addoption("--ptx-warps", choices=("together", "forward", "backward"), default="backward")
    parser.addoption("--ptx-copies", choices=("late", "early"), default="late")
    parser.addoption("--ptx-fault", choices=tuple(ptx_faults.FAULTS), help="the tests should fail")


@pytest.fixture(autouse=True, scope="session")
def kernels_on_ptx(request: pytest.FixtureRequest):
    def option(name: str) -> Any:
        return request.config.getoption(name)

    how = ptx_machine.Run(option("--ptx-warps"), option("--ptx-copies"))
    with pytest.MonkeyPatch.context() as patch:
        if option("--ptx-tiles") == "interpreter":
            patch.setattr(tiles, "architecture", lambda device=None: "interpreter")
        changed = ptx_faults.FAULTS.get(option("--ptx-fault"), str)
        with offline.executing(option("--ptx-target"), how, changed) as launches:
            yield
    request.config.stash[LAUNCHES] = len(launches)


LAUNCHES = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    count, target = config.stash.get(LAUNCHES, 0), config.getoption("--ptx-target")
    terminalreporter.write_line(f"{count} launches ran on the PTX of {target}")
