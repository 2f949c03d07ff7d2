"""Saturation: 1 against itself, k / E against a random router, rising over nano's checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptoss_workbench.routing.saturation import saturation, saturation_sweep

STEPS = Path(__file__).parents[2] / "data" / "nano"


def random_router(by_hand, seed, n=4000, labels=()):
    experts = np.random.default_rng(seed).permuted(np.tile(np.arange(8), (n, 2, 1)), axis=-1)
    return by_hand(experts[..., :3], n_experts=8, prompt=np.arange(n) // 10, labels=labels)


def test_a_checkpoint_against_itself_reads_1_in_any_rank_order(by_hand):
    routing = random_router(by_hand, 0)
    record = routing.record()
    turned = replace(routing, shards=[lambda: record._replace(experts=record.experts[..., ::-1])])
    for other in (routing, turned):
        assert (saturation(other, routing)["share"] == 1).all()


def test_unrelated_routers_read_k_over_e(by_hand):
    table = saturation(random_router(by_hand, 1), random_router(by_hand, 2))
    assert (table["chance"] == 3 / 8).all()
    assert (np.abs(table["share"] - 3 / 8) < 0.02).all()
    assert ((table["low"] <= 3 / 8 + 0.005) & (table["high"] >= 3 / 8 - 0.005)).all()


def test_a_planted_share_of_changed_choices_is_exact(by_hand):
    final = by_hand([[[0, 1]]] * 8, n_experts=4)
    early = by_hand([[[0, 1]]] * 2 + [[[1, 2]]] * 4 + [[[2, 3]]] * 2, n_experts=4)
    assert saturation(early, final)["share"][0] == 0.5


def test_traces_may_be_cut_into_other_shards(by_hand):
    a, b = random_router(by_hand, 1, n=200), random_router(by_hand, 2, n=200)
    record = a.record()
    cuts = [slice(0, 70), slice(70, 80), slice(80, 200)]
    parts = [(lambda cut=cut: record.at(cut)) for cut in cuts]
    assert (saturation(replace(a, shards=parts), b)["share"] == saturation(a, b)["share"]).all()
    some = b.where(keep=lambda r: r.pos % 3 == 0)
    assert saturation(replace(a, shards=parts), some)["n"][0] == 67


def test_other_prompts_and_other_models_are_refused(by_hand):
    a, b = random_router(by_hand, 1, n=40), random_router(by_hand, 2, n=40)
    record = a.record()
    other = replace(a, shards=[lambda: record._replace(token=record.token + 1)])
    with pytest.raises(ValueError, match="other tokens"):
        saturation(other, b)
    with pytest.raises(ValueError, match=r"one trace only|other places"):
        saturation(random_router(by_hand, 1, n=30), b)
    with pytest.raises(ValueError, match="expected layers"):
        saturation(a.where(layer=0), b)


def test_groups_are_the_final_trace_s(by_hand):
    labels = ["a", "b"] * 2
    a, b = (random_router(by_hand, seed, n=40, labels=labels) for seed in (1, 1))
    table = saturation(a, b, by="label")
    assert table["group"].tolist() == ["a", "a", "b", "b"] and (table["share"] == 1).all()


def test_nano_saturates_over_its_checkpoints(nano, texts_of):
    import gptoss_workbench as wb
    from gptoss_workbench.routing import trace_routing

    texts, _ = texts_of(n=2)
    rows = [nano.tokenizer.encode(text)[:60] for text in texts]
    steps = sorted(STEPS.glob("step-*"))
    early = {
        int(step.name.split("-")[1]): trace_routing(wb.load(step), rows, progress=False)
        for step in (steps[0], steps[-1])
    }
    final = trace_routing(nano, rows, progress=False)
    table = saturation_sweep(early, final, headers=True)
    first, last = (table.where(step=step)["share"].mean() for step in early)
    assert table["chance"][0] == 0.25
    assert 0.2 < first < 0.6 and last > first + 0.2
