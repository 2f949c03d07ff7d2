"""What all tests share: one thread, no network, small models that are left as they were found."""

import ipaddress
import os
import socket
import sys
from dataclasses import replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("TRITON_INTERPRET", "1")
"""Read when triton is first imported: here its kernels run in its interpreter. What is compiled for
real targets is compiled in other processes."""


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Connections beyond this machine fail, so a test that passes here passes offline."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise OSError(f"tests run without a network; refused to connect to {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session")
def dense() -> ModuleType:
    """`dense.py`, the independent model that edits and gradients are compared with."""
    spec = spec_from_file_location("dense", Path(__file__).with_name("dense.py"))
    assert spec and spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _tensors(config):
    from gptoss_workbench.checkpoint.synthetic import random_tensors

    return random_tensors(config, 0)


@cache
def _model(dtype, backend, changes):
    from gptoss_workbench.checkpoint.synthetic import TINY
    from gptoss_workbench.model import GptOss

    config = replace(TINY, **dict(changes))
    return GptOss(config, _tensors(config), dtype=dtype, backend=backend)


@pytest.fixture
def make_model():
    """make_model(dtype, backend, **config changes): a random model, left as it was found."""
    used = []

    def make(dtype=torch.float32, backend=None, **changes):
        model = _model(dtype, backend, tuple(changes.items()))
        used.append(model)
        return model

    yield make
    for model in used:
        assert not [name for name, point in model.hook_dict.items() if point.observed]


@pytest.fixture
def tiny(make_model):
    """Four layers in float32, hidden width 64, expert width 96, a window of 8."""
    return make_model()


@pytest.fixture
def small(make_model):
    """Two layers of `tiny`, one of them sliding."""
    return make_model(num_hidden_layers=2, layer_types=("sliding_attention", "full_attention"))


@pytest.fixture
def tiny_bf16(make_model):
    return make_model(torch.bfloat16)


@pytest.fixture(scope="session")
def nano():
    """gpt-oss-nano, the embedded model."""
    import gptoss_workbench

    return gptoss_workbench.load()


@pytest.fixture
def tokens():
    """Two rows of 13 tokens: longer than the window."""
    return torch.randint(3, 256, (2, 13), generator=torch.Generator().manual_seed(0))
