"""The lens against whole rows of logits, on every backend that is here."""

import pytest
import torch

from gptoss_kernels import lens as plain
from gptoss_kernels.backend import available, select

VOCAB, LAYERS, ROWS = 257, 2, 7
TARGETS = torch.tensor([0, 49, 50, 256, -1, 120, 7])


@pytest.fixture(params=available("cpu"))
def lens(request, monkeypatch):
    """The backend's lens; the plain one in tiles of 50 tokens, three rows at a time."""
    monkeypatch.setattr(plain, "WIDTH", 50)
    monkeypatch.setattr(plain, "LOGITS", 50 * LAYERS * 3)
    return select(request.param).lens


def draw():
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(LAYERS, ROWS, 96, generator=drawn)
    final = torch.randn(ROWS, 96, generator=drawn)
    return x, final, torch.randn(VOCAB, 96, generator=drawn).bfloat16()


def test_it_says_what_whole_rows_of_logits_say(lens):
    x, final, weight = draw()
    seen = lens(x, weight, k=6, targets=TARGETS, final=final)
    logits = x.double() @ weight.double().T
    log_p, log_f = logits.log_softmax(-1), (final.double() @ weight.double().T).log_softmax(-1)
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    top = logits.topk(6)
    assert torch.equal(seen.tokens, top.indices)
    torch.testing.assert_close(seen.logits, top.values, **close)
    torch.testing.assert_close(seen.log_sum_exp, logits.logsumexp(-1), **close)
    torch.testing.assert_close(seen.entropy, -(log_p.exp() * log_p).sum(-1), **close)
    torch.testing.assert_close(seen.kl, (log_f.exp() * (log_f - log_p)).sum(-1), **close)
    has, own = TARGETS >= 0, logits[..., TARGETS.clamp_min(0)].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(seen.target_logit[:, has], own[:, has], **close)
    assert torch.equal(seen.rank[:, has], (logits > own[..., None]).sum(-1)[:, has])
    assert seen.target_logit[:, ~has].isnan().all() and (seen.rank[:, ~has] == -1).all()


def test_without_a_final_residual_there_is_no_kl(lens):
    x, _, weight = draw()
    assert lens(x, weight).kl.isnan().all()


def test_what_cannot_be_read_out_is_refused(lens):
    x, _, weight = draw()
    with pytest.raises(ValueError, match="k between 1 and 257, the vocabulary; got 258"):
        lens(x, weight, k=258)
    with pytest.raises(ValueError, match=r"residuals \[layer, row, 96\]; got \(7, 96\)"):
        lens(x[0], weight)
    with pytest.raises(ValueError, match="tokens below 257; got 257"):
        lens(x, weight, targets=torch.full((ROWS,), VOCAB))
