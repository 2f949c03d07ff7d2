"""Which column of the tables a device takes: its own generation's, whatever GPU is current."""

import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from gptoss_kernels.triton import tiles


def target(arch) -> GPUTarget:
    return GPUTarget("cuda" if isinstance(arch, int) else "hip", arch, 32)


@pytest.fixture
def machine(monkeypatch):
    """machine(arch, ...): GPUs 0, 1, ... of these architectures; the first is the current one."""

    def build(*archs):
        current = [0]

        @contextmanager
        def on(number):
            current.append(number)
            yield
            current.pop()

        driver = SimpleNamespace(get_current_target=lambda: target(archs[current[-1]]))
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)
        monkeypatch.setattr(torch.cuda, "device", on)
        monkeypatch.setattr(tiles, "interpreting", lambda: False)

    known = (tiles._of_gpu, tiles._nearest)
    for each in known:
        each.cache_clear()
    yield build
    for each in known:
        each.cache_clear()


def test_a_tensors_device_decides_not_the_current_one(machine):
    machine(90, 120)
    columns = [tiles.architecture(torch.device("cuda", i)) for i in (0, 1)]
    assert columns == ["sm_90", "sm_120"]
    assert tiles.architecture() == "sm_90"
    first, second = (tiles.tile("linear", 512, torch.device("cuda", i)) for i in (0, 1))
    assert first == tiles.choose("linear", 512, "sm_90") != second
    assert second == tiles.choose("linear", 512, "sm_120")


@pytest.mark.parametrize(
    "arch, column",
    [(80, "sm_80"), (86, "sm_80"), (89, "sm_80"), (103, "sm_100"), (121, "sm_120"),
     ("gfx942", "gfx942")],
)  # fmt: skip
def test_a_device_takes_the_column_of_its_generation(machine, arch, column):
    machine(arch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiles.architecture() == column


def test_an_old_gpu_is_refused(machine):
    machine(75)
    with pytest.raises(ValueError, match=r"compute capability 8.0; this GPU has 75"):
        tiles.architecture()


def test_of_amds_others_it_is_said_that_nothing_was_compiled_for_them(machine):
    machine("gfx950")
    with pytest.warns(RuntimeWarning, match=r"judged for gfx942 only; this one is gfx950"):
        assert tiles.architecture() == "gfx942"
