"""The native lens says of tiles what the whole row of logits says."""

import pytest
import torch

from gptoss_kernels.native import lens as module
from gptoss_kernels.native.lens import Lens
from gptoss_kernels.native.linear import linear

VOCAB = 257
TARGETS = torch.tensor([0, 49, 50, 256, -1, 120, 7])


@pytest.fixture(params=[50, 4096])
def width(request, monkeypatch):
    monkeypatch.setattr(module, "WIDTH", request.param)
    monkeypatch.setattr(module, "ROWS", 3)


def lens(x, weight, **options) -> Lens:
    """Of one layer."""
    return Lens(*(column[0] for column in module.lens(x[None], weight, **options)))


def draw(rows=7, d_model=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, final = torch.randn(2, rows, d_model, generator=g)
    return x, final, torch.randn(VOCAB, d_model, generator=g).bfloat16()


def test_equals_the_whole_logits(isa, width):
    x, final, weight = draw()
    seen = lens(x, weight, k=6, targets=TARGETS, final=final)
    logits, ends = linear(x, weight), linear(final, weight).log_softmax(-1)
    log_p, top, has = logits.log_softmax(-1), logits.topk(6), TARGETS >= 0
    assert torch.equal(seen.tokens, top.indices) and torch.equal(seen.logits, top.values)
    torch.testing.assert_close(seen.log_sum_exp, logits.logsumexp(-1))
    torch.testing.assert_close(seen.entropy, -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.kl, (ends.exp() * (ends - log_p)).sum(-1), rtol=1e-5, atol=1e-5)
    own = logits.gather(-1, TARGETS.clamp_min(0)[:, None])
    assert torch.equal(seen.target_logit[has], own[has, 0])
    assert torch.equal(seen.rank[has], (logits > own).sum(-1)[has])
    assert seen.target_logit[~has].isnan().all() and (seen.rank[~has] == -1).all()


def test_a_row_does_not_depend_on_its_company(isa, width):
    x, final, weight = draw()
    whole = lens(x, weight, targets=TARGETS, final=final)
    alone = lens(x[3:4], weight, targets=TARGETS[3:4], final=final[3:4])
    for one, all_rows in zip(alone, whole, strict=True):
        assert torch.equal(one[0], all_rows[3])


def test_the_most_likely_token_has_rank_0(isa, width):
    x, _, weight = draw(rows=20)
    first = lens(x, weight, k=1)
    again = lens(x, weight, k=1, targets=first.tokens[:, 0])
    assert (again.rank == 0).all() and torch.equal(again.target_logit, first.logits[:, 0])


def test_of_equal_logits_the_lower_token_leads(isa, width):
    x, _, weight = draw()
    weight[200] = weight[100] = weight[3]
    tokens = lens(x, weight, k=VOCAB).tokens
    at = [(tokens == token).nonzero()[:, 1] for token in (3, 100, 200)]
    assert (at[0] < at[1]).all() and (at[1] < at[2]).all()


def test_without_a_final_residual_there_is_no_kl():
    x, _, weight = draw()
    assert lens(x, weight).kl.isnan().all()


def test_no_rows_give_empty_results():
    _, _, weight = draw()
    assert lens(torch.empty(0, 64), weight, k=3).tokens.shape == (0, 3)


@pytest.mark.parametrize("k", [0, VOCAB + 1])
def test_k_beyond_the_vocabulary_is_refused(k):
    x, _, weight = draw()
    with pytest.raises(ValueError, match="expected k between 1 and 257"):
        lens(x, weight, k=k)


def test_a_target_beyond_the_vocabulary_is_refused():
    x, _, weight = draw()
    with pytest.raises(ValueError, match="tokens below 257; got 257"):
        lens(x, weight, targets=torch.full((7,), VOCAB))
