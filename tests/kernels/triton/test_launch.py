"""How kernels are started: on the device that holds the tensors."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gptoss_kernels.triton.launch import launch


class Kernel:
    """Stands for a compiled kernel; keeps what it was started with."""

    def __init__(self):
        self.started = []

    def __getitem__(self, grid):
        return lambda *args, **meta: self.started.append((grid, args))


@pytest.fixture
def entered(monkeypatch):
    """The devices that were made the current one."""
    found = []
    monkeypatch.setattr(torch.cuda, "device", lambda each: found.append(each) or nullcontext())
    return found


def test_a_kernel_starts_on_the_gpu_of_its_tensors(entered):
    kernel = Kernel()
    with FakeTensorMode():
        launch(kernel, (2,), None, torch.empty(3, device="cuda:1"), 3)
    assert len(kernel.started) == 1 and entered == [torch.device("cuda", 1)]


def test_on_a_cpu_no_gpu_is_asked_for(entered):
    kernel = Kernel()
    launch(kernel, (2,), torch.empty(3), 3)
    launch(kernel, (0, 2), torch.empty(0), 0)
    assert [grid for grid, _ in kernel.started] == [(2,)] and entered == []
