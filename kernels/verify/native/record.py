"""A pytest plugin that records every kernel call of a run: `pytest -p record --record FOLDER`.

A buffer is what the tensor whose `data_ptr` the caller asked for covers, no byte more: replayed
under a sanitizer, a kernel that reads beyond it is caught. Calls seen before are not written again.
"""

import ctypes
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import calls
import pytest
import torch
from torch import Tensor

from gptoss_kernels.native import library


class _Recording:
    """The open files, and the tensors whose address was asked for since the last call."""

    def __init__(self, calls_file: BinaryIO, results_file: BinaryIO) -> None:
        self.calls, self.results = calls_file, results_file
        self.tensors: dict[int, Tensor] = {}
        self.known: set[bytes] = set()


class _Arguments:
    """The arguments of one call, with a number for each buffer they point to."""

    def __init__(self, tensors: dict[int, Tensor]) -> None:
        self.tensors = tensors
        self.numbers: dict[int, int] = {}

    def written(self, value, kind) -> bytes:
        if value is None:
            return calls.NULL
        if hasattr(value, "_obj"):
            return self._struct(value._obj)
        if kind is ctypes.c_void_p:
            return calls.address(self._number(value))
        if kind in (ctypes.c_float, ctypes.c_double):
            return calls.real(value)
        return calls.whole(value)

    def memory(self) -> list[calls.Buffer]:
        tensors = [self.tensors[address] for address in self.numbers]
        return [calls.Buffer(each.dtype, _bytes(each)) for each in tensors]

    def _struct(self, fields: ctypes.Structure) -> bytes:
        buffers = {}
        for name, kind in fields._fields_:  # pyright: ignore[reportAssignmentType]
            value = getattr(fields, name)
            if kind is ctypes.c_void_p and value:
                buffers[getattr(type(fields), name).offset] = self._number(value)
        return calls.fields(bytes(fields), buffers)

    def _number(self, address: int) -> int:
        if address not in self.tensors:
            raise LookupError("record: a kernel got an address that no tensor's data_ptr() gave")
        return self.numbers.setdefault(address, len(self.numbers))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, required=True, help="folder for calls and results")


@pytest.fixture(autouse=True, scope="session")
def recorded_kernels(request: pytest.FixtureRequest):
    folder: Path = request.config.getoption("--record")  # pyright: ignore[reportAssignmentType]
    with (
        (folder / "calls").open("wb") as calls_file,
        (folder / "results").open("wb") as results_file,
        pytest.MonkeyPatch.context() as patch,
    ):
        recording = _Recording(calls_file, results_file)
        patch.setattr(Tensor, "data_ptr", _watched(Tensor.data_ptr, recording))
        patch.setattr(library, "_table", _recorded(library._table, recording))
        patch.setattr(library._Open, "kernels", None)
        yield


def _watched(data_ptr: Callable, recording: _Recording) -> Callable:
    def watched(tensor: Tensor) -> int:
        address = data_ptr(tensor)
        recording.tensors[address] = tensor
        return address

    return watched


def _recorded(table: Callable, recording: _Recording) -> Callable:
    def recorded(isa: str) -> SimpleNamespace:
        found = table(isa)
        for name, kinds in library.KERNELS.items():
            setattr(found, name, _recorded_kernel(name, kinds, getattr(found, name), recording))
        return found

    return recorded


def _recorded_kernel(name: str, kinds, kernel: Callable, recording: _Recording) -> Callable:
    def call(*values):
        arguments = _Arguments(recording.tensors)
        written = [arguments.written(*each) for each in zip(values, kinds, strict=True)]
        before = arguments.memory()
        status = kernel(*values) or 0
        _write(calls.Call(name, before, written), status, arguments.memory(), recording)
        recording.tensors = {}
        return status

    return call


def _write(call: calls.Call, status: int, memory: list, recording: _Recording) -> None:
    data = calls.write_call(call)
    key = hashlib.sha256(data).digest()
    if key in recording.known:
        return
    recording.known.add(key)
    changed = {
        number: now.data
        for number, (was, now) in enumerate(zip(call.buffers, memory, strict=True))
        if was.data != now.data
    }
    recording.calls.write(data)
    recording.results.write(calls.write_result(calls.Result(status, changed)))


def _bytes(tensor: Tensor) -> bytes:
    """The memory from a tensor's first element to its last."""
    if not tensor.numel():
        return b""
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return ctypes.string_at(torch._C.TensorBase.data_ptr(tensor), (reach + 1) * tensor.itemsize)
