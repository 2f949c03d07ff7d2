"""Triton's lens against whole rows of logits, and its bits against those of `linear`."""

import pytest
import torch

from gptoss_kernels.triton import lens as module
from gptoss_kernels.triton.lens import lens
from gptoss_kernels.triton.linear import linear

VOCAB, LAYERS, ROWS = 131, 2, 5
TARGETS = torch.tensor([0, 49, -1, 130, 64])


@pytest.fixture(autouse=True)
def stretches(monkeypatch):
    """Two stretches, of two tiles and of one."""
    monkeypatch.setattr(module, "TILES", 2)


def draw(dtype=torch.float32, layers=LAYERS):
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(layers, ROWS, 31, generator=drawn)
    final = torch.randn(ROWS, 31, generator=drawn)
    return x.to(dtype), final.to(dtype), torch.randn(VOCAB, 31, generator=drawn).bfloat16()


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_it_says_what_whole_rows_of_logits_say(dtype, weight_dtype):
    x, final, weight = draw(dtype)
    weight = weight.to(weight_dtype)
    seen = lens(x, weight, k=3, targets=TARGETS, final=final)
    logits = x.double() @ weight.double().T
    log_p, log_f = logits.log_softmax(-1), (final.double() @ weight.double().T).log_softmax(-1)
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    top = logits.topk(3)
    assert torch.equal(seen.tokens, top.indices)
    torch.testing.assert_close(seen.logits, top.values, **close)
    torch.testing.assert_close(seen.log_sum_exp, logits.logsumexp(-1), **close)
    torch.testing.assert_close(seen.entropy, -(log_p.exp() * log_p).sum(-1), **close)
    torch.testing.assert_close(seen.kl, (log_f.exp() * (log_f - log_p)).sum(-1), **close)
    has, own = TARGETS >= 0, logits[..., TARGETS.clamp_min(0)].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(seen.target_logit[:, has], own[:, has], **close)
    assert torch.equal(seen.rank[:, has], (logits > own[..., None]).sum(-1)[:, has])
    assert seen.target_logit[:, ~has].isnan().all() and (seen.rank[:, ~has] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_logits_are_those_of_a_projection_to_the_bit(dtype):
    x, final, weight = draw(dtype)
    logits = linear(x, weight, dtype=torch.float32)
    seen = lens(x, weight, k=4, targets=TARGETS.clamp_min(0), final=final)
    assert torch.equal(seen.logits, logits.topk(4).values)
    own = logits[..., TARGETS.clamp_min(0)].diagonal(dim1=1, dim2=2)
    assert torch.equal(seen.target_logit, own)


def test_of_equal_logits_the_lower_token_leads_and_none_is_ahead():
    weight = torch.ones(VOCAB, 31).bfloat16()
    weight[100] = 0
    seen = lens(torch.ones(1, ROWS, 31), weight, k=5, targets=torch.full((ROWS,), 120))
    assert torch.equal(seen.tokens[0], torch.arange(5).expand(ROWS, 5))
    assert (seen.rank == 0).all()
    weight[[130, 30, 31, 99]] = 2
    seen = lens(torch.ones(1, 1, 31), weight, k=6, targets=torch.tensor([99]))
    assert seen.tokens[0, 0].tolist() == [30, 31, 99, 130, 0, 1]
    assert seen.rank.item() == 0


def test_more_tokens_than_a_kernel_keeps():
    x, _, weight = draw()
    few, many = lens(x, weight, k=3), lens(x, weight, k=VOCAB)
    assert torch.equal(many.tokens[..., :3], few.tokens)
    assert torch.equal(many.logits[..., :3], few.logits)
    assert torch.equal(many.entropy, few.entropy)
    assert torch.equal(many.tokens.sort(-1).values[1, 3], torch.arange(VOCAB))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_company_changes_nothing(dtype, monkeypatch):
    x, final, weight = draw(dtype)
    whole = lens(x, weight, k=2, targets=TARGETS, final=final)
    alone = lens(x[1:, 3:4], weight, k=2, targets=TARGETS[3:4], final=final[3:4])
    monkeypatch.setattr(module, "COLUMNS", 4)
    chunks = lens(x, weight, k=2, targets=TARGETS, final=final)
    for name in whole._fields:
        one = getattr(whole, name)[1, 3]
        assert torch.equal(getattr(alone, name)[0, 0], one), name
        assert torch.equal(getattr(chunks, name)[1, 3], one), name


def test_what_is_not_asked_for_changes_no_other_bit():
    x, final, weight = draw()
    whole, bare = lens(x, weight, k=2, targets=TARGETS, final=final), lens(x, weight, k=2)
    for name in ("tokens", "logits", "log_sum_exp", "entropy"):
        assert torch.equal(getattr(whole, name), getattr(bare, name)), name
    assert bare.kl.isnan().all() and bare.target_logit.isnan().all() and (bare.rank == -1).all()


def test_more_layers_than_a_tile_holds_are_compared():
    x, final, weight = draw(layers=17)
    x, final = x[:, :2], final[:2]
    many, few = lens(x, weight, k=1, final=final), lens(x[16:], weight, k=1, final=final)
    assert torch.equal(many.kl[16:], few.kl) and torch.equal(many.tokens[16:], few.tokens)


def test_without_rows_there_is_nothing_to_say():
    x, final, weight = draw()
    assert lens(x[:, :0], weight, final=final[:0]).tokens.shape == (LAYERS, 0, 5)


def test_what_cannot_be_read_out_is_refused():
    x, final, weight = draw()
    with pytest.raises(ValueError, match="k between 1 and 131, the vocabulary; got 132"):
        lens(x, weight, k=132)
    with pytest.raises(ValueError, match=r"residuals \[layer, row, 31\]; got \(5, 31\)"):
        lens(x[0], weight)
    with pytest.raises(ValueError, match="tokens below 131; got 131"):
        lens(x, weight, targets=torch.full((ROWS,), VOCAB))
    with pytest.raises(ValueError, match=r"expected final \(5, 31\); got \(4, 31\)"):
        lens(x, weight, final=final[:4])
