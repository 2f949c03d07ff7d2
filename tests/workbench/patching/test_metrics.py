"""Metrics: tokens by text or id, in words where they cannot be, and the same in effect tables."""

import numpy as np
import pytest
import torch

import gptoss_workbench as wb
from gptoss_workbench.effects import effect_table
from gptoss_workbench.patching import (
    activation_patching,
    attribution_patching,
    integrated_gradients,
    kl_divergence,
    log_prob,
    logit_difference,
    loss,
    path_patching,
)

CLEAN, CORRUPTED = "Given E is 7. Find E?", "Given E is 3. Find E?"
TEXTS = ["Given E is 7. B is 1. Find E?", CLEAN]
FEW = {"sites": "resid_pre", "layers": [1], "positions": [3, -1]}


def test_a_token_is_its_text_or_its_number(nano32):
    seven, three = (nano32.to_single_token(text) for text in (" 7", " 3"))
    pairs = [(" 7", " 3"), ([" 7"], torch.tensor([three])), (np.int64(seven), three)]
    metrics = [logit_difference(*pair) for pair in pairs]
    found = [
        activation_patching(nano32, CLEAN, CORRUPTED, metric=metric, **FEW) for metric in metrics
    ]
    for each in found[1:]:
        np.testing.assert_array_equal(each.value, found[0].value)
    logits = nano32(CLEAN)
    assert float(logit_difference(seven, three)(logits)) == pytest.approx(found[0].clean[0])


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (" 7 and", "tokens, not one"),
        (10**6, r"tokens are 0 to \d+ in this vocabulary; got 1000000"),
        (-1, "got -1"),
        (1.5, "a token is an id or text; got 1.5"),
        ([1, 2], "one for each of 1 rows"),
    ],
)
def test_a_token_that_is_none_is_told(nano32, token, message):
    with pytest.raises(ValueError, match=message):
        activation_patching(nano32, CLEAN, CORRUPTED, metric=log_prob(token), **FEW)


def test_text_needs_a_vocabulary(nano32):
    with pytest.raises(ValueError, match=r"model.to_single_token\(' 7'\)"):
        log_prob(" 7")(nano32(CLEAN))
    with pytest.raises(ValueError, match="got 999999"):
        log_prob(torch.tensor([999_999]))(nano32(CLEAN))


@pytest.mark.parametrize(
    "method", [activation_patching, attribution_patching, integrated_gradients, path_patching]
)
def test_runs_that_score_the_same_are_refused(nano32, method):
    more = {"receivers": "final"} if method is path_patching else {"sites": "resid_pre"}
    metric = logit_difference(" 7", " 3")
    with pytest.raises(ValueError, match=r"score the same .*nothing to restore"):
        method(nano32, CLEAN, CLEAN, metric=metric, **more)
    with pytest.raises(ValueError, match="no_number is nan on clean prompt 0"):

        def no_number(logits):
            return logits[:, -1, 7] * torch.nan

        method(nano32, CLEAN, CORRUPTED, metric=no_number, **more)


def test_a_metric_reads_no_place_that_a_prompt_lacks(nano32):
    with pytest.raises(ValueError, match="reads place -9, but a prompt has 8 tokens"):
        activation_patching(
            nano32, CLEAN, CORRUPTED, metric=logit_difference(" 7", " 3", position=-9), **FEW
        )


def test_metrics_of_patching_are_metrics_of_an_effect_table(nano32):
    edit = wb.scale("mlp_out", 0.5, layers=1)
    tokens = [nano32.to_tokens(text) for text in TEXTS]
    for metric in (
        log_prob(" 7"),
        log_prob([" 7", " 1"], position=-2),
        logit_difference([" 7", " 1"], [" 3", " 2"]),
    ):
        table = effect_table(
            nano32, edit, TEXTS, metric=metric, groups=["long", "short"], controls=0
        )
        for row, text in enumerate(tokens):
            own = metric._replace(
                tokens=tuple(t if isinstance(t, str) else t[row] for t in metric.tokens)
            )
            own = wb.patching.metrics.as_metric(own, nano32)
            base, edited = (float(own(nano32(text, edits=e).detach())) for e in ([], [edit]))
            assert table["base"][row] == pytest.approx(base, abs=1e-4)
            assert table["effect"][row] == pytest.approx(edited - base, abs=1e-4)
        assert np.ptp(table["base"]) > 1e-2  # rows in another order would be seen


def test_a_row_too_short_for_the_metric_is_told(nano32):
    with pytest.raises(ValueError, match="reads place -9, but a row has 8 tokens"):
        effect_table(
            nano32, wb.scale("mlp_out", 0.5), TEXTS, metric=log_prob(" 7", position=-9), controls=0
        )


def test_metrics_of_one_row_each_move_with_padding(nano32):
    batch = nano32.encode_batch(TEXTS)
    logits = nano32(batch.tokens, attention_mask=batch.mask)
    left = nano32.encode_batch(TEXTS, "left")
    moved = nano32(left.tokens, attention_mask=left.mask)
    for metric in (kl_divergence(moved[:, -2], position=-2), loss(left.tokens, mask=left.mask)):
        torch.testing.assert_close(
            metric(logits, batch.tokens, batch.mask), metric(moved), atol=1e-4, rtol=1e-4
        )
