"""Pruned checkpoints: valid, loaded by transformers, and equal to banning what was dropped."""

from random import Random

import numpy as np
import pytest
import torch

import gptoss_workbench as wb
from gptoss_hooks.edits import ban
from gptoss_workbench.nano import PLANTED_LAYER, expert_group, sample
from gptoss_workbench.prune import PrunedTensors, prune_experts
from gptoss_workbench.routing.collect import trace_routing
from gptoss_workbench.routing.per_prompt import prompt_counts
from gptoss_workbench.routing.scored_loss import scored_loss, scored_places
from gptoss_workbench.table import Table

KEEP = {0: [0, 2, 5, 7], 1: [1, 2, 3, 4], 2: [0, 1, 6, 7], 3: [3, 4, 5, 6]}


@pytest.fixture
def pruned(tiny, tmp_path):
    return prune_experts(tiny, tmp_path / "small", keep=KEEP)


def banned(model, tokens, pruned):
    """Logits of the whole model with the dropped experts banned."""
    edits = [ban(list(experts), layers=layer) for layer, experts in enumerate(pruned.dropped)]
    with torch.no_grad():
        return model(tokens, edits=edits)


def test_it_loads_and_equals_banning_the_dropped_experts(tiny, pruned, tokens):
    small = wb.load(pruned.folder, dtype=torch.float32)
    assert small.config.num_local_experts == 4
    torch.testing.assert_close(small(tokens), banned(tiny, tokens, pruned))
    assert not torch.allclose(small(tokens), tiny(tokens), atol=1e-3)


def test_transformers_loads_it_and_gives_the_same_logits(pruned, tokens):
    from transformers import GptOssForCausalLM, Mxfp4Config

    theirs = GptOssForCausalLM.from_pretrained(
        pruned.folder,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()
    ours = wb.load(pruned.folder, dtype=torch.float32)(tokens)
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert (ours - expected).abs().max() < 1e-4 * expected.std()


def test_numbers_are_kept_beside_the_checkpoint(tiny, pruned):
    assert pruned.kept[2] == (0, 1, 6, 7)
    assert pruned.dropped[2] == (2, 3, 4, 5)
    new = wb.load(pruned.folder).checkpoint_tensors()
    old = tiny.checkpoint_tensors()
    for name in ("router.weight", "router.bias", "experts.down_proj_scales"):
        full = f"model.layers.2.mlp.{name}"
        assert torch.equal(new[full], old[full][[0, 1, 6, 7]])


def test_keeping_all_changes_nothing(tiny, tmp_path, tokens):
    same = prune_experts(tiny, tmp_path / "same", keep=range(8))
    loaded = wb.load(same.folder, dtype=torch.float32, backend=tiny.backend)
    assert torch.equal(loaded(tokens), tiny(tokens))


def test_the_best_by_score_are_kept(tiny, tmp_path):
    grid = np.random.default_rng(0).random((4, 8))
    columns = {"layer": np.repeat(range(4), 8), "expert": np.tile(range(8), 4)}
    table = Table(columns | {"saliency": grid.ravel()}, "", "").rows(slice(None, None, -1))
    pruned = prune_experts(tiny, tmp_path / "best", n=3, scores=table)
    assert pruned.kept == tuple(tuple(sorted(np.argsort(-row)[:3].tolist())) for row in grid)


def test_fewer_experts_than_k_are_all_given_and_it_is_said(tiny, tmp_path):
    with pytest.warns(UserWarning, match="1 experts are left but a token is given 2"):
        pruned = prune_experts(tiny, tmp_path / "one", keep=[3])
    assert pruned.config.num_experts_per_tok == 1
    assert wb.load(pruned.folder).config.num_experts_per_tok == 1


def test_tensors_are_cut_when_asked_for(tiny):
    cut = PrunedTensors(tiny.checkpoint_tensors(), [[0, 1]] * 4)
    assert cut["model.layers.0.mlp.router.bias"].shape == (2,)
    whole = cut["model.embed_tokens.weight"]
    assert whole.data_ptr() == tiny.checkpoint_tensors()["model.embed_tokens.weight"].data_ptr()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"keep": {0: [1], 1: [1, 2], 2: [1], 3: [1]}}, "same number"),
        ({"keep": {0: [1]}}, "every layer"),
        ({"keep": [8]}, "experts are 0 to 7"),
        ({"keep": []}, "at least 1"),
        ({}, "give keep="),
        ({"n": 2}, "give keep="),
        ({"n": 9, "scores": np.zeros((4, 8))}, "n is 1 to 8"),
        ({"n": 2, "scores": np.zeros((4, 7))}, "each of 4 layers and 8"),
    ],
)
def test_impossible_requests_say_what_is_expected(tiny, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        prune_experts(tiny, tmp_path / "no", **more)


@pytest.mark.parametrize(("dropped", "spared"), [("en", "de"), ("de", "en")])
def test_dropping_a_languages_experts_raises_its_loss_alone(tmp_path, dropped, spared):
    """nano's planted layer loses one language; other layers lose what the other hardly uses."""
    nano = wb.load(dtype=torch.float32)
    texts, labels = spoken((dropped, spared), n=4)
    routing = trace_routing(nano, texts, labels=labels, progress=False)
    frequency = selection_frequency(routing.where(label=spared))
    frequency[PLANTED_LAYER, list(expert_group(dropped))] = -1
    pruned = prune_experts(nano, tmp_path / "m", n=12, scores=frequency)
    small = wb.load(pruned.folder, dtype=torch.float32)
    rise = {}
    for lang in (dropped, spared):
        batch = nano.read(
            [text for text, label in zip(texts, labels, strict=True) if label == lang]
        )
        places = scored_places(nano, batch, ("analysis", "final"))
        before, after = (scored_loss(model, batch, places) for model in (nano, small))
        rise[lang] = after - before
    assert rise[dropped] > 1
    assert rise[spared] < 0.3


def spoken(langs, n):
    rng, labels = Random(0), [lang for _ in range(n) for lang in langs]
    drawn = [sample(rng, task="vars", lang=lang, effort="medium", n=3) for lang in labels]
    return [each.text() for each in drawn], labels


def selection_frequency(routing):
    counts = prompt_counts(routing)
    return counts.sums.sum(0) / counts.tokens.sum()
