"""Attention: grouped queries, a window that counts the query itself, sinks without a value."""

import math
from inspect import unwrap

import pytest
import torch

from gptoss_kernels import attention as kernel
from gptoss_kernels.attention import AttentionTap, attention

HEADS, KV_HEADS, D_HEAD = 6, 2, 10
PAD = -1


def draw(n_query=11, n_key=11, seed=0, batch=2):
    g = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(batch, n_query, HEADS, D_HEAD, generator=g)
    k, v = torch.randn(2, batch, n_key, KV_HEADS, D_HEAD, generator=g)
    return q, k, v, torch.randn(HEADS, generator=g)


def places(*rows):
    return torch.tensor(rows)


FULL = torch.arange(11).expand(2, -1)
RAGGED = places([PAD, PAD, *range(9)], [*range(8), PAD, PAD, PAD])


def by_hand(q, k, v, sinks, query_pos, key_pos, window=None):
    """One query, one head, one key at a time, in float64."""
    z = torch.zeros(*q.shape, dtype=torch.float64)
    pattern = torch.zeros(q.shape[0], HEADS, q.shape[1], k.shape[1], dtype=torch.float64)
    sink = torch.zeros(q.shape[0], HEADS, q.shape[1], dtype=torch.float64)
    for b, i, h in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        at, group = int(query_pos[b, i]), h // (HEADS // KV_HEADS)
        seen = {}
        for j, key in enumerate(key_pos[b].tolist()):
            if key >= 0 and key <= at and (window is None or at - key < window):
                seen[j] = float(q[b, i, h].double() @ k[b, j, group].double()) / math.sqrt(D_HEAD)
        total = sum(map(math.exp, seen.values())) + math.exp(sinks[h])
        sink[b, h, i] = math.exp(sinks[h]) / total
        for j, score in seen.items():
            pattern[b, h, i, j] = math.exp(score) / total
            z[b, i, h] += pattern[b, h, i, j] * v[b, j, group].double()
    return z, pattern, sink


class Seen:
    """A tap that keeps everything it is shown."""

    def __init__(self):
        self.values = {}

    @property
    def tap(self):
        return AttentionTap(*(self.keeper(name) for name in AttentionTap._fields))

    def keeper(self, name):
        def keep(x):
            self.values[name] = x
            return x

        return keep


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("positions", [FULL, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("window", [None, 1, 3, 11, 128])
def test_equals_float64_loops(window, positions):
    inputs, seen = draw(), Seen()
    z, pattern, sink = by_hand(*inputs, positions, positions, window)
    found = attention(*inputs, positions, positions, window=window, tap=seen.tap)
    close(found, z)
    close(seen.values["pattern"], pattern)
    close(seen.values["sink"], sink)
    assert torch.equal(found, attention(*inputs, positions, positions, window=window))


def test_queries_may_continue_earlier_keys():
    q, k, v, sinks = draw(n_query=3, n_key=11)
    query_pos, key_pos = places([8, 9, 10], [5, 6, 7]), RAGGED.clone()
    key_pos[0] = torch.arange(11)
    z, _, _ = by_hand(q, k, v, sinks, query_pos, key_pos, 4)
    close(attention(q, k, v, sinks, query_pos, key_pos, window=4), z)


def test_a_row_of_the_pattern_and_its_sink_sum_to_1():
    seen = Seen()
    attention(*draw(), FULL, FULL, window=5, tap=seen.tap)
    total = seen.values["pattern"].sum(-1) + seen.values["sink"]
    torch.testing.assert_close(total, torch.ones_like(total))
    assert (seen.values["sink"] > 0).all()


def test_a_window_of_128_sees_128_keys_its_own_included():
    q, k, v, sinks = draw(n_query=1, n_key=140, batch=1)
    seen = Seen()
    keys = torch.arange(140)[None]
    attention(q, k, v, sinks, places([139]), keys, window=128, tap=seen.tap)
    visible = seen.values["pattern"][0, 0, 0] > 0
    assert visible.nonzero().flatten().tolist() == list(range(12, 140))


def test_a_query_that_sees_nothing_gives_0_and_its_sink_1():
    inputs, seen = draw(), Seen()
    z = attention(*inputs, RAGGED, RAGGED, tap=seen.tap)
    padding = RAGGED < 0
    assert (z[padding] == 0).all()
    assert (seen.values["sink"].transpose(1, 2)[padding] == 1).all()
    assert (seen.values["pattern"].transpose(1, 2)[padding] == 0).all()


def test_hidden_scores_hold_the_minimum():
    seen = Seen()
    attention(*draw(), FULL, FULL, tap=seen.tap)
    hidden = FULL[0][None] > FULL[0][:, None]
    lowest = torch.finfo(torch.float32).min
    assert torch.equal(seen.values["scores"][0, 0] == lowest, hidden)


def test_what_padding_holds_does_not_matter():
    q, k, v, sinks = draw()
    z = attention(q, k, v, sinks, RAGGED, RAGGED)
    k, v = (x.masked_fill((RAGGED < 0)[..., None, None], 1e4) for x in (k, v))
    assert torch.equal(attention(q, k, v, sinks, RAGGED, RAGGED), z)


def test_large_scores_and_sinks_do_not_overflow():
    q, k, v, sinks = draw()
    for scale, sink in ((1e3, 0.0), (1.0, 3e4), (1.0, -3e4)):
        assert attention(scale * q, k, v, sinks + sink, FULL, FULL).isfinite().all()


def test_tiles_give_what_one_tile_gives(monkeypatch):
    inputs = draw()
    whole = attention(*inputs, RAGGED, RAGGED, window=5)
    monkeypatch.setattr(kernel, "TILE", 4 * 2 * HEADS * 11)
    seen = Seen()
    torch.testing.assert_close(attention(*inputs, RAGGED, RAGGED, window=5), whole)
    observed = attention(*inputs, RAGGED, RAGGED, window=5, tap=seen.tap)
    assert torch.equal(observed, attention(*inputs, RAGGED, RAGGED, window=5))
    assert seen.values["pattern"].shape == (2, HEADS, 11, 11)
    assert seen.values["sink"].shape == (2, HEADS, 11)


def test_edited_scores_and_patterns_are_used():
    q, k, v, sinks = draw()
    only_self = torch.eye(11).expand(2, HEADS, -1, -1)
    z = attention(q, k, v, sinks, FULL, FULL, tap=AttentionTap(pattern=lambda _: only_self))
    torch.testing.assert_close(z, v.repeat_interleave(HEADS // KV_HEADS, 2))
    doubled = attention(q, k, v, sinks, FULL, FULL, tap=AttentionTap(scores=lambda s: 2 * s))
    torch.testing.assert_close(doubled, attention(2 * q, k, v, sinks, FULL, FULL))


def test_gradients_equal_float64_autograd():
    q, k, v, sinks = draw()
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    ours = [x.clone().requires_grad_() for x in (q, k, v, sinks)]
    (attention(*ours, FULL, FULL, window=4) * grad).sum().backward()
    exact = [x.double().requires_grad_() for x in (q, k, v, sinks)]
    keys, values = (x.repeat_interleave(HEADS // KV_HEADS, 2) for x in exact[1:3])
    scores = torch.einsum("bqhd,bkhd->bhqk", exact[0], keys) / math.sqrt(D_HEAD)
    apart = FULL[0][:, None] - FULL[0][None]
    scores = scores.masked_fill((apart < 0) | (apart >= 4), -math.inf)
    column = exact[3][None, :, None, None].expand(2, -1, 11, 1)
    pattern = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    (torch.einsum("bhqk,bkhd->bqhd", pattern, values) * grad.double()).sum().backward()
    for found, expected in zip(ours, exact, strict=True):
        close(found.grad, expected.grad)


def test_heads_that_do_not_divide_are_refused():
    q, k, v, sinks = draw()
    with pytest.raises(ValueError, match="5 query heads over 2 key/value heads"):
        unwrap(attention)(q[:, :, :5], k, v, sinks[:5], FULL, FULL)
