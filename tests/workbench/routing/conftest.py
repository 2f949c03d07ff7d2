"""What the tests of expert metrics share: hand-made traces, and nano's planted layer."""

from collections.abc import Sequence
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gptoss_workbench.nano import LANGUAGES, PLANTED_LAYER, expert_group, sample
from gptoss_workbench.routing import Record, RoutingTrace


@pytest.fixture(scope="session")
def nano32():
    """gpt-oss-nano in float32."""
    import gptoss_workbench

    return gptoss_workbench.load(dtype=torch.float32)


@pytest.fixture(scope="session")
def texts_of():
    """texts_of("de", "en", n=8): (texts, labels), so many samples with a chain of thought each."""

    def make(*langs: str, n: int = 8, task: str = "vars", size: int = 3, seed: int = 0):
        rng = Random(seed)
        labels = [lang for _ in range(n) for lang in langs or LANGUAGES]
        drawn = [sample(rng, task=task, lang=lang, effort="medium", n=size) for lang in labels]
        return [each.text() for each in drawn], labels

    return make


@pytest.fixture(scope="session")
def routing_of():
    """routing_of(model, texts, labels): the expert choices of whole texts, norms and peaks kept."""

    def make(model, texts: Sequence[str], labels: Sequence[str] = ()):
        from gptoss_workbench.routing.collect import trace_routing

        return trace_routing(
            model, texts, labels=labels or None, keep=("norms", "peaks"), progress=False
        )

    return make


@pytest.fixture(scope="session")
def by_hand():
    """by_hand(experts [token, layer, k], prompt=..., n_experts=...): an exact trace."""

    def make(experts, *, n_experts: int, prompt=None, token=None, weights=None, labels=(), **more):
        experts = np.asarray(experts, np.int16)
        n, _, k = experts.shape
        zeros = np.zeros(n, np.uint8)
        record = Record(
            prompt=np.asarray(np.arange(n) if prompt is None else prompt, np.int32),
            pos=np.arange(n, dtype=np.int32),
            token=np.asarray(np.zeros(n) if token is None else token, np.int32),
            role=zeros, channel=zeros, part=zeros + 2,
            message=zeros.astype(np.int16), sentence=zeros.astype(np.int16),
            experts=experts,
            weights=np.full(experts.shape, 1 / k, np.float32) if weights is None else weights,
            **more,
        )  # fmt: skip
        return RoutingTrace.from_record(record, n_experts=n_experts, labels=labels)

    return make


@pytest.fixture(scope="session")
def planted():
    """planted.layer, planted.group("de"): nano's taught router."""
    return SimpleNamespace(layer=PLANTED_LAYER, group=lambda lang: set(expert_group(lang)))


@pytest.fixture(scope="session")
def routed(nano, texts_of):
    """24 samples, six a language, routed with margins and router logits; labels are languages."""
    from gptoss_workbench.routing import trace_routing

    texts, labels = texts_of(n=6)
    return trace_routing(
        nano, texts, labels=labels, keep=("margins", "logits"), max_tokens=80, progress=False
    )


@pytest.fixture(scope="session")
def taught(routed):
    """The tokens of `routed` in a language: nano's planted router was taught on these."""
    return routed.where(voice=["user", "analysis", "commentary", "final"])
