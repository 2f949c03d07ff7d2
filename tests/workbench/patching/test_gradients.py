"""Gradient estimates: exact where the model is linear, complete on a path, close on nano."""

import numpy as np
import pytest
import torch

from gptoss_workbench.patching import (
    activation_patching,
    attribution_patching,
    integrated_gradients,
    logit_difference,
)
from gptoss_workbench.patching.gradients import FIXED

METRIC = logit_difference(7, 9)


def prompts(batch=1):
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(3, 250, (batch, 9), generator=draw)
    corrupted = clean.clone()
    corrupted[:, 2:4] = torch.randint(3, 250, (batch, 2), generator=draw)
    return clean, corrupted


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_attributions_are_exact_where_the_metric_is_linear(small, direction):
    """With the final norm's scale held, the last layer's writes reach the logits linearly."""
    clean, corrupted = prompts(batch=2)
    options = {
        "sites": ("mlp_out", "resid_post", "expert_out", "expert", "expert_post"),
        "layers": [1], "positions": [3, -1], "experts": range(8), "neurons": [5],
        "direction": direction,
    }  # fmt: skip
    with small.hooks([("ln_final.hook_scale", lambda scale, hook: torch.ones_like(scale))]):
        true = activation_patching(small, clean, corrupted, metric=METRIC, **options)
        found = attribution_patching(small, clean, corrupted, metric=METRIC, **options)
    np.testing.assert_allclose(found.value, true.value, atol=1e-4, rtol=1e-4)
    assert np.nanmax(np.abs(true.value - true.value[0])) > 0.1
    real = activation_patching(small, clean, corrupted, metric=METRIC, **options)
    other = attribution_patching(small, clean, corrupted, metric=METRIC, **options)
    assert np.nanmax(np.abs(real.value - other.value)) > 1e-3


def test_every_node_has_an_attribution(small):
    clean, corrupted = prompts()
    sites = ("resid_pre", "resid_mid", "attn_out", "z", "q", "k", "v", "pattern")
    found = attribution_patching(small, clean, corrupted, metric=METRIC, sites=sites)
    there = [np.abs(found.where(site=site).effect).max() > 0 for site in sites]
    assert all(there) and FIXED in found.notes


def test_integrated_gradients_are_complete_where_routing_cannot_jump(make_model):
    """All experts chosen: the model is smooth, so attributions sum to the true effect."""
    model = make_model(
        num_hidden_layers=2, layer_types=("sliding_attention", "full_attention"),
        num_local_experts=4, num_experts_per_tok=4,
    )  # fmt: skip
    clean, corrupted = prompts(batch=2)
    options = {"metric": METRIC, "sites": ("resid_pre", "z"), "layers": [0, 1]}
    nodes = integrated_gradients(model, clean, corrupted, steps=24, **options).completeness
    embed = integrated_gradients(
        model, clean, corrupted, steps=24, path="input", **options
    ).completeness
    one = integrated_gradients(model, clean, corrupted, steps=1, **options).completeness
    for table in (nodes, embed):
        assert np.abs(table["gap"]).max() < 0.02 * np.abs(table["true"]).max()
    assert np.abs(one["gap"]).max() > 4 * np.abs(nodes["gap"]).max()


def test_a_cell_of_the_input_path_is_the_node_times_the_mean_gradient(small):
    clean, corrupted = prompts()
    found = integrated_gradients(
        small, clean, corrupted, metric=METRIC, sites="resid_pre", layers=[0], path="input", steps=5
    )
    nodes = integrated_gradients(
        small, clean, corrupted, metric=METRIC, sites="resid_pre", layers=[0], steps=5
    )
    np.testing.assert_allclose(found.value, nodes.value, atol=1e-5)


def test_on_nano_integrated_gradients_follow_patching_more_closely(nano32, corrupted_definition):
    clean, corrupted, metric, place, _ = corrupted_definition
    options = {"metric": metric, "sites": ("resid_pre", "mlp_out"), "positions": [place, -2, -1]}
    true = activation_patching(nano32, clean, corrupted, **options).effect
    once = attribution_patching(nano32, clean, corrupted, **options).effect
    along = integrated_gradients(nano32, clean, corrupted, steps=8, **options).effect
    fit = [float(np.corrcoef(true, each)[0, 1]) for each in (once, along)]
    assert fit[1] > fit[0] and fit[1] > 0.8


def test_a_metric_without_a_gradient_is_refused(small):
    clean, corrupted = prompts()
    with pytest.raises(ValueError, match="no gradient"):
        attribution_patching(
            small,
            clean,
            corrupted,
            metric=lambda logits: float(logits.detach()[0, -1, 3]),
            sites="resid_pre",
        )


@pytest.mark.parametrize("options", [{"steps": 0}, {"path": "curve"}])
def test_a_path_that_does_not_exist_is_refused(small, options):
    clean, corrupted = prompts()
    with pytest.raises(ValueError, match="steps is 1 or more"):
        integrated_gradients(small, clean, corrupted, metric=METRIC, **options)
