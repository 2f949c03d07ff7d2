"""Parity tests share one module, `oracle.py`, as a fixture: tests are no package.

Each of them runs on every backend that is here.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import jaxtyping
import pytest

from gptoss_kernels import backend as kernels


@pytest.fixture(scope="module", params=kernels.available("cpu"))
def backend(request):
    """The one backend that models without a wish take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "available", lambda device="cpu": (request.param,))
        yield request.param


@pytest.fixture(scope="module")
def oracle(backend) -> ModuleType:
    """transformers' gpt-oss and how far a model is from it."""
    spec = spec_from_file_location("parity_oracle", Path(__file__).with_name("oracle.py"))
    assert spec and spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, scope="module")
def shapes_unchecked():
    """Checking every call's shapes takes longer than the models; all other tests do it."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
