"""What the compile gate judges: a call at gpt-oss's true shapes, and the useful work in it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from devices import FITTED

DECODING = {"sm_80": 3.6, "sm_90": 4.6}
"""`most` for decoding MXFP4: beyond it the integer units are slower than the memory."""
ATTENDING = {"sm_80": 2400, "sm_90": 2400}
"""`most` for attention."""


class Case(NamedTuple):
    """One call whose kernels are compiled for a target, and what its main loop does there."""

    name: str
    """e.g. "attention, prefill of 512"; unique over all files"""
    kernel: str
    """the `@triton.jit` function whose main loop is judged"""
    call: Callable[[], object]
    """the operation at true shapes on CPU tensors; nothing runs, so `torch.empty` will do"""
    flop: float = 0
    """useful FLOP of one turn of the main loop of one program (of all of it if there is none)"""
    nbytes: float = 0
    """bytes that turn must read from memory"""
    weights: int = 0
    """MXFP4 weights decoded in it"""
    scores: int = 0
    """attention scores computed in it"""
    turns: int = 1
    """turns of the source's loop that the compiled loop holds, if it is unrolled"""
    most: Mapping[str, float] = {}
    """for a target, the most instructions: of lanes per weight, of warps per 64 × 64 scores"""
    arch: Mapping[str, Mapping[str, Any]] = {}
    """for a target (as in `devices.TARGETS`), what differs there: {"sm_90": {"flop": ...}}"""

    def on(self, target: str) -> "Case":
        """The case as it is for `target`."""
        return self._replace(**self.arch.get(FITTED.get(target, target), {}))


def collect() -> tuple[Case, ...]:
    """The cases of every file in `cases/`, in order of file name."""
    files = sorted(Path(__file__).with_name("cases").glob("[!_]*.py"))
    found = tuple(case for file in files for case in import_module(f"cases.{file.stem}").CASES)
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"cases: these names are used twice: {', '.join(twice)}")
    return found
