"""Looking into Triton's attention: scores, patterns and sinks, whole or a few rows, and edits."""

import pytest
import torch

from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.attention import attention as reference
from gptoss_kernels.triton.attention import attention, rows

PAD = -1
LOWEST = torch.finfo(torch.float32).min
DTYPES = (torch.float32, torch.bfloat16)


def draw(tokens, kv_heads, group, d_head, *, batch=2, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(batch, tokens, kv_heads * group, d_head, generator=g)
    k, v = torch.randn(2, batch, tokens, kv_heads, d_head, generator=g)
    sinks = torch.randn(kv_heads * group, generator=g)
    return q.to(dtype), k.to(dtype), v.to(dtype), sinks.to(dtype)


def ragged(tokens):
    """The first row padded left, the second right."""
    pad = tokens // 4
    left = (torch.arange(tokens) - pad).clamp_min(PAD)
    right = torch.arange(tokens)
    return torch.stack([left, torch.where(right < tokens - pad, right, PAD)])


class Seen:
    """Taps that keep everything they are shown."""

    def __init__(self, *names):
        self.values, names = {}, names or AttentionTap._fields
        self.tap = AttentionTap(**{name: self.keeper(name) for name in names})

    def keeper(self, name):
        def keep(x):
            self.values[name] = x.clone()
            return x

        return keep


def apart(found, wanted):
    return float((found.double() - wanted).norm() / wanted.double().norm().clamp_min(1e-30))


# ---- what is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("shape", [(11, 2, 3, 10), (70, 1, 4, 64)])
def test_equals_the_reference(shape, window, dtype):
    inputs, at = draw(*shape, dtype=dtype), ragged(shape[0])
    ours, theirs = Seen(), Seen()
    attention(*inputs, at, at, window=window, tap=ours.tap)
    reference(*inputs, at, at, window=window, tap=theirs.tap)
    hidden = theirs.values["scores"] == LOWEST
    assert torch.equal(ours.values["scores"] == LOWEST, hidden)
    assert (ours.values["pattern"][hidden] == 0).all()
    for name in AttentionTap._fields:
        found, wanted = ours.values[name], theirs.values[name]
        if name == "scores":
            found, wanted = found[~hidden], wanted[~hidden]
        assert found.dtype == torch.float32
        assert apart(found, wanted) <= 1e-5, name


def test_a_row_of_the_pattern_and_its_sink_sum_to_1():
    inputs, at, seen = draw(70, 1, 4, 64, dtype=torch.bfloat16), ragged(70), Seen()
    attention(*inputs, at, at, tap=seen.tap)
    total = seen.values["pattern"].sum(-1) + seen.values["sink"]
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=3e-6)


def test_a_query_that_sees_nothing_has_a_sink_of_1():
    at, seen = ragged(11), Seen()
    attention(*draw(11, 2, 3, 10), at, at, tap=seen.tap)
    assert (seen.values["sink"].transpose(1, 2)[at < 0] == 1).all()
    assert (seen.values["pattern"].transpose(1, 2)[at < 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 16])
def test_looking_changes_nothing(window, dtype):
    inputs, at = draw(70, 1, 2, 16, dtype=dtype), ragged(70)
    plain = attention(*inputs, at, at, window=window)
    leaves = [x.clone().requires_grad_() for x in inputs]
    for names in (("sink",), ("pattern",), ("scores",), AttentionTap._fields):
        for each in (inputs, leaves):
            found = attention(*each, at, at, window=window, tap=Seen(*names).tap)
            assert torch.equal(found, plain)
    with torch.inference_mode():
        assert torch.equal(attention(*inputs, at, at, window=window, tap=Seen().tap), plain)


def test_every_tap_shows_the_same_bits_whichever_others_look():
    inputs, at = draw(40, 2, 2, 16), ragged(40)
    every = Seen()
    attention(*inputs, at, at, window=9, tap=every.tap)
    for name in AttentionTap._fields:
        alone = Seen(name)
        attention(*inputs, at, at, window=9, tap=alone.tap)
        assert torch.equal(alone.values[name], every.values[name])


def test_padding_changes_no_row_of_a_pattern():
    q, k, v, sinks = draw(50, 1, 2, 16, batch=1)
    at, alone, padded = torch.arange(50)[None], Seen(), Seen()
    attention(q, k, v, sinks, at, at, tap=alone.tap)
    q, k, v = (torch.cat([torch.full_like(x[:, :7], torch.nan), x], 1) for x in (q, k, v))
    at = torch.cat([torch.full((1, 7), PAD), at], 1)
    attention(q, k, v, sinks, at, at, tap=padded.tap)
    assert torch.equal(padded.values["pattern"][:, :, 7:, 7:], alone.values["pattern"])
    assert torch.equal(padded.values["sink"][:, :, 7:], alone.values["sink"])


@pytest.mark.parametrize("window", [None, 9])
def test_chosen_rows_have_the_bits_of_the_whole_pattern(window):
    inputs, at, seen = draw(70, 2, 2, 16), ragged(70), Seen("pattern")
    attention(*inputs, at, at, window=window, tap=seen.tap)
    queries = torch.tensor([69, 0, 33])
    found = rows(*inputs[:2], inputs[3], at, at, queries, window=window)
    assert torch.equal(found, seen.values["pattern"][:, :, queries])


def test_chosen_rows_have_gradients():
    q, k, _, sinks = draw(20, 2, 2, 16)
    at, queries, found = ragged(20), torch.tensor([17, 9]), []
    for ours in (True, False):
        leaves = [x.clone().requires_grad_() for x in (q, k, sinks)]
        seen = {}
        if ours:
            shown = rows(*leaves, at, at, queries)
        else:
            tap = AttentionTap(pattern=lambda x, seen=seen: seen.setdefault("pattern", x))
            reference(leaves[0], leaves[1], torch.zeros_like(k), leaves[2], at, at, tap=tap)
            shown = seen["pattern"][:, :, queries]
        found.append(torch.autograd.grad(shown.square().sum(), leaves))
    for mine, theirs in zip(*found, strict=True):
        assert apart(mine, theirs) <= 1e-4


# ---- edits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("name", ["scores", "pattern"])
def test_an_edit_is_used_as_the_reference_uses_it(name, window):
    """Hidden keys and padding included, which become visible."""
    inputs, at = draw(40, 2, 2, 32), ragged(40)
    change = torch.randn(2, 4, 40, 40, generator=torch.Generator().manual_seed(5))
    ours, theirs = Seen(), Seen()
    for body, seen in ((attention, ours), (reference, theirs)):
        show = {each: seen.keeper(each) for each in ("pattern", "sink")}
        show[name] = lambda x: torch.where(change > 1, change, x)
        seen.values["z"] = body(*inputs, at, at, window=window, tap=AttentionTap(**show))
    for key in theirs.values:
        assert apart(ours.values[key], theirs.values[key]) <= 1e-5, key


def test_edits_of_scores_and_pattern_are_used_together():
    inputs, at = draw(40, 2, 2, 32), ragged(40)
    tap = AttentionTap(lambda x: x * 0.5, lambda x: x + 0.25, lambda x: x)
    found, wanted = (body(*inputs, at, at, tap=tap) for body in (attention, reference))
    assert apart(found, wanted) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["scores", "pattern"])
def test_rows_that_an_edit_leaves_alone_keep_their_bits(name, dtype):
    inputs, at = draw(40, 2, 2, 32, dtype=dtype), ragged(40)
    plain, before = attention(*inputs, at, at), Seen()
    attention(*inputs, at, at, tap=before.tap)

    def silence(x):
        x[:, 3] = 0
        x[:, :, 20] = 0
        return x

    after = Seen()
    show = {each: after.keeper(each) for each in ("sink", "pattern")} | {name: silence}
    z = attention(*inputs, at, at, tap=AttentionTap(**show))
    alone = [i for i in range(40) if i != 20]
    assert torch.equal(z[:, alone, :3], plain[:, alone, :3])
    assert not torch.equal(z[:, 20, :3], plain[:, 20, :3])
    if name == "pattern":
        assert (z[:, :, 3] == 0).all()
        return
    for key in ("sink", "pattern"):
        shown, old = after.values[key][:, :3], before.values[key][:, :3]
        assert torch.equal(shown[:, :, alone], old[:, :, alone])
        assert not torch.equal(shown[:, :, 20], old[:, :, 20])


def test_an_edit_of_nothing_keeps_all_bits():
    inputs, at = draw(40, 2, 2, 16), ragged(40)
    tap = AttentionTap(scores=torch.clone, pattern=torch.clone)
    assert torch.equal(attention(*inputs, at, at, tap=tap), attention(*inputs, at, at))


def test_a_tap_of_another_shape_is_refused():
    inputs, at = draw(11, 2, 3, 10), ragged(11)
    with pytest.raises(ValueError, match=r"a tap returns what it was shown, \(2, 6, 11, 11\)"):
        attention(*inputs, at, at, tap=AttentionTap(pattern=lambda x: x[:, :1]))
