"""Triton's attention: the reference's numbers, and bits that depend on a row alone."""

import pytest
import torch

from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.attention import attention as reference
from gptoss_kernels.triton.attention import AttentionEdits, attention
from gptoss_kernels.triton.attention_call import wide
from gptoss_kernels.triton.attention_places import FAR, find_places

PAD = -1
DTYPES = (torch.float32, torch.bfloat16)
SHAPES = [  # tokens, kv heads, heads a group, d_head
    (11, 2, 3, 10),
    (1, 3, 8, 64),
    (70, 1, 4, 64),
    (67, 2, 1, 80),
    (5, 1, 50, 7),
]


def draw(tokens, kv_heads, group, d_head, *, batch=2, keys=None, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(batch, tokens, kv_heads * group, d_head, generator=g)
    k, v = torch.randn(2, batch, keys or tokens, kv_heads, d_head, generator=g)
    sinks = torch.randn(kv_heads * group, generator=g)
    return q.to(dtype), k.to(dtype), v.to(dtype), sinks.to(dtype)


def full(tokens, batch=2):
    return torch.arange(tokens).expand(batch, -1)


def ragged(tokens):
    """The first row padded left, the second right."""
    pad = tokens // 4
    left = (torch.arange(tokens) - pad).clamp_min(PAD)
    right = torch.arange(tokens)
    return torch.stack([left, torch.where(right < tokens - pad, right, PAD)])


def apart(found, wanted):
    return float((found.double() - wanted).norm() / wanted.double().norm().clamp_min(1e-30))


# ---- the same numbers as the reference ----------------------------------------------------------


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape, window):
    inputs, at = draw(*shape), ragged(shape[0])
    found = attention(*inputs, at, at, window=window)
    assert found.dtype == torch.float32
    assert apart(found, reference(*inputs, at, at, window=window)) <= 1e-5


@pytest.mark.parametrize("window", [None, 100])
def test_one_query_over_many_keys_equals_the_reference(window):
    inputs = draw(1, 2, 8, 64, keys=300)
    query, keys = torch.tensor([[299], [250]]), full(300)
    found = attention(*inputs, query, keys, window=window)
    assert apart(found, reference(*inputs, query, keys, window=window)) <= 1e-5


def test_queries_may_lie_beyond_the_last_key():
    inputs, query = draw(3, 2, 3, 10, keys=40), torch.tensor([[41, 70, 38], [39, 500, PAD]])
    for window in (None, 30):
        found = attention(*inputs, query, full(40), window=window)
        assert apart(found, reference(*inputs, query, full(40), window=window)) <= 1e-5


def test_shares_of_bfloat16_are_rounded_to_bfloat16():
    inputs, at = draw(70, 1, 8, 64, dtype=torch.bfloat16), ragged(70)
    found, wanted = attention(*inputs, at, at), reference(*inputs, at, at)
    assert found.dtype == torch.bfloat16
    assert apart(found, wanted) < 3e-3  # 2^-9 a share, averaged


def test_mixed_dtypes_are_widened():
    q, k, v, sinks = draw(9, 2, 4, 32)
    wanted = reference(q, k.bfloat16(), v.bfloat16(), sinks, full(9), full(9))
    assert apart(attention(q, k.bfloat16(), v.bfloat16(), sinks, full(9), full(9)), wanted) <= 1e-5
    half = attention(q.half(), k.half(), v.half(), sinks, full(9), full(9))
    assert half.dtype == torch.float16


@pytest.mark.parametrize(("scale", "sink"), [(1e3, 0.0), (1e-20, 0.0), (1.0, 3e4), (1.0, -3e4)])
def test_extreme_scores_and_sinks(scale, sink):
    q, k, v, sinks = draw(20, 1, 8, 64)
    inputs = (scale * q, k, v, sinks + sink)
    found, wanted = attention(*inputs, full(20), full(20)), reference(*inputs, full(20), full(20))
    assert found.isfinite().all()
    assert apart(found, wanted) <= 2e-2  # scores of 10^4 are rounded to 10^-2


def test_a_query_that_sees_nothing_gives_0():
    at = ragged(11)
    assert (attention(*draw(11, 2, 3, 10), at, at)[at < 0] == 0).all()
    q, k, v, sinks = draw(3, 2, 3, 10)
    assert (attention(q, k[:, :0], v[:, :0], sinks, full(3), full(0)) == 0).all()


def test_no_queries_give_an_empty_result():
    q, k, v, sinks = draw(4, 2, 3, 10)
    assert attention(q[:, :0], k, v, sinks, full(0), full(4)).shape == (2, 0, 6, 10)


def test_wrong_shapes_are_refused():
    q, k, v, sinks = draw(4, 2, 3, 10)
    with pytest.raises(ValueError, match="5 query heads over 2 key/value heads"):
        attention(q[:, :, :5], k, v, sinks[:5], full(4), full(4))
    with pytest.raises(ValueError, match=r"expected key_pos \(2, 4\) on cpu; got \(2, 3\)"):
        attention(q, k, v, sinks, full(4), full(3))
    with pytest.raises(ValueError, match=r"expected v \(2, 4, 2, 10\)"):
        attention(q, k, v[:, :3], sinks, full(4), full(4))


# ---- bits that depend on a row alone ------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "dtype"), [(None, DTYPES[0]), (16, DTYPES[1]), (100, DTYPES[0])]
)
def test_padding_and_company_change_nothing(window, dtype):
    q, k, v, sinks = draw(110, 1, 2, 16, batch=1, dtype=dtype)
    alone = attention(q, k, v, sinks, full(110, 1), full(110, 1), window=window)
    for left in (3, 64):
        rows = slice(left, left + 110)
        at = torch.full((1, 180), PAD)
        at[:, rows] = torch.arange(110)
        q2, k2, v2, _ = draw(180, 1, 2, 16, batch=2, seed=left, dtype=dtype)
        q2[1, rows], k2[1, rows], v2[1, rows] = q[0], k[0], v[0]
        k2[1, :left], v2[1, :left] = torch.nan, torch.inf
        at = torch.cat([full(180, 1), at])
        assert torch.equal(attention(q2, k2, v2, sinks, at, at, window=window)[1, rows], alone[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "chunk"), [(None, 41), (100, 41), (16, 64), (100, 129)])
def test_chunks_over_a_trimmed_cache_equal_the_whole(chunk, window, dtype):
    q, k, v, sinks = draw(150, 1, 2, 16, batch=1, dtype=dtype)
    whole = attention(q, k, v, sinks, full(150, 1), full(150, 1), window=window)
    parts = []
    for start in range(0, 150, chunk):
        end = min(start + chunk, 150)
        kept = slice(0 if window is None else max(0, start - window + 1), end)
        places = torch.arange(start, end)[None], torch.arange(kept.start, end)[None]
        parts.append(
            attention(q[:, start:end], k[:, kept], v[:, kept], sinks, *places, window=window)
        )
    assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize(
    ("window", "dtype"), [(None, DTYPES[0]), (100, DTYPES[0]), (None, DTYPES[1])]
)
def test_one_token_at_a_time_equals_the_whole(window, dtype):
    """Few rows share their keys among programs where the whole prompt does not."""
    q, k, v, sinks = draw(140, 1, 2, 16, batch=1, dtype=dtype)
    whole = attention(q, k, v, sinks, full(140, 1), full(140, 1), window=window)
    for i in (0, 31, 63, 64, 128, 139):
        first = 0 if window is None else max(0, i - window + 1)
        seen = slice(first, i + 1)
        alone = attention(q[:, i : i + 1], k[:, seen], v[:, seen], sinks, torch.tensor([[i]]),
                          torch.arange(first, i + 1)[None], window=window)  # fmt: skip
        assert torch.equal(alone[:, 0], whole[:, i])


@pytest.mark.parametrize("window", [None, 40])
def test_the_order_of_keys_in_memory_changes_nothing(window):
    q, k, v, sinks = draw(90, 1, 4, 32)
    whole = attention(q, k, v, sinks, full(90), full(90), window=window)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    at = full(90)[:, order]
    found = attention(q, k[:, order], v[:, order], sinks, full(90), at, window=window)
    assert torch.equal(found, whole)


@pytest.mark.parametrize("window", [None, 16])
def test_padding_between_chunks_changes_nothing(window):
    """A ragged batch read in chunks leaves padding in the middle of its cache."""
    q, k, v, sinks = draw(80, 1, 2, 16, batch=1)
    whole = attention(q, k, v, sinks, full(80, 1), full(80, 1), window=window)
    at = torch.full((1, 120), PAD)
    real = torch.cat([torch.arange(10), torch.arange(25, 50), torch.arange(75, 120)])
    at[:, real] = torch.arange(80)
    k2, v2 = torch.full((2, 1, 120, 1, 16), torch.nan)
    k2[:, real], v2[:, real] = k, v
    assert torch.equal(attention(q, k2, v2, sinks, full(80, 1), at, window=window), whole)


def test_keys_with_gaps_and_shared_positions_are_all_seen():
    inputs = draw(6, 1, 2, 16, keys=30)
    at = torch.randint(0, 2000, (2, 30), generator=torch.Generator().manual_seed(1))
    at[:, ::4] = at[:, :1]
    at[1, 3:8] = PAD
    query = torch.tensor([[0, 100, 900, 1500, 1999, PAD]]).expand(2, -1)
    for window in (None, 700):
        found = attention(*inputs, query, at, window=window)
        assert apart(found, reference(*inputs, query, at, window=window)) <= 1e-5


def test_places_beyond_32_bits_are_reached(tmp_path):
    """Of a store of 2^31 values, in a file of which little exists."""
    q, k, v, sinks = draw(3, 1, 2, 16, batch=1)
    path, size = str(tmp_path / "store"), 2**31 + 16
    store = torch.from_file(path, shared=True, size=size, dtype=torch.bfloat16)
    far = store.as_strided((1, 3, 1, 16), (1, 2**30, 16, 1))
    far.copy_(k)
    assert wide(far) and not wide(k) and not wide(far[:, :1])
    inputs = (q.bfloat16(), far, v.bfloat16(), sinks)
    found = attention(*inputs, full(3, 1), full(3, 1))
    near = attention(q.bfloat16(), k.bfloat16(), *inputs[2:], full(3, 1), full(3, 1))
    assert torch.equal(found, near)


def test_keys_of_a_larger_store_are_read_in_place():
    q, k, v, sinks = draw(30, 2, 4, 32)
    store = torch.full((2, 2, 64, 2, 32), torch.nan)
    store[0, :, :30], store[1, :, :30] = k, v
    found = attention(q, store[0, :, :30], store[1, :, :30], sinks, full(30), full(30))
    assert torch.equal(found, attention(q, k, v, sinks, full(30), full(30)))
    beyond = torch.where(torch.arange(64) < 30, torch.arange(64), PAD).expand(2, -1)
    assert torch.equal(attention(q, store[0], store[1], sinks, full(30), beyond), found)


# ---- places -------------------------------------------------------------------------------------


def test_slots_begin_at_a_multiple_of_positions():
    at = torch.cat([torch.full((1, 5), PAD), torch.arange(70, 90)[None]], 1)
    place, position, bounds, _ = find_places(at, 64)
    assert bounds.tolist() == [[64, 6, 26, 1]]
    assert place[0, 6:26].tolist() == list(range(5, 25))
    assert position[0, 6:26].tolist() == list(range(70, 90))
    assert (position[0, :6] == FAR.value).all()


def test_padding_alone_has_no_slots():
    for n in (0, 3):
        bounds = find_places(torch.full((2, n), PAD), 64).bounds
        assert torch.equal(bounds[:, 1], bounds[:, 2])


# ---- edits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gain_scales_heads_and_leaves_the_others_as_they_are(dtype):
    inputs, at = draw(20, 2, 3, 16, dtype=dtype), ragged(20)
    plain, gain = attention(*inputs, at, at), torch.tensor([1.0, 0, 2, 1, 0.5, 1])
    found = attention(*inputs, at, at, edits=AttentionEdits(gain=gain))
    assert torch.equal(found, plain * gain[:, None].to(dtype))
    each = gain[None, :, None].repeat(2, 1, 20)
    each[1] = 1
    found = attention(*inputs, at, at, edits=AttentionEdits(gain=each))
    assert torch.equal(found[1], plain[1])
    assert (found[0, :, 1] == 0).all()


def test_a_gain_has_the_same_bits_where_keys_are_shared_among_programs():
    q, k, v, sinks = draw(200, 1, 4, 16)
    edits = AttentionEdits(gain=torch.tensor([1.0, 0, 2, 0.3]))
    whole = attention(q, k, v, sinks, full(200), full(200), edits=edits)
    query = torch.tensor([[199], [150]])
    q = torch.stack([q[0, 199:], q[1, 150:151]])
    found = attention(q, k, v, sinks, query, full(200), edits=edits)
    assert torch.equal(found[0, 0], whole[0, 199]) and torch.equal(found[1, 0], whole[1, 150])
    assert torch.equal(found, attention(q, k, v, sinks, query, full(200)) * edits.gain[:, None])


@pytest.mark.parametrize("window", [None, 9])
def test_hidden_keys_are_not_seen(window):
    inputs, at = draw(100, 2, 2, 16), ragged(100)
    hidden = torch.zeros(2, 100, dtype=torch.bool)
    hidden[0, [*range(27, 31), 32, 56, *range(60, 90)]] = True  # slots 2 to 5, 7, 31, 35 to 64
    wanted = reference(*inputs, at, at.masked_fill(hidden, PAD), window=window)
    each = hidden[:, None].repeat(1, 4, 1)
    for given in (hidden, each):
        edits = AttentionEdits(hidden=given)
        assert apart(attention(*inputs, at, at, window=window, edits=edits), wanted) <= 1e-5
    each[:, 1] = False
    found = attention(*inputs, at, at, window=window, edits=AttentionEdits(hidden=each))
    plain = attention(*inputs, at, at, window=window)
    assert torch.equal(found[:, :, 1], plain[:, :, 1])
    assert torch.equal(found[1], plain[1])
    assert apart(found[:, :, 2], wanted[:, :, 2]) <= 1e-5


def test_rows_of_the_pattern_are_replaced():
    inputs, at, queries = draw(40, 2, 2, 16), ragged(40), torch.tensor([3, 20])
    pattern = torch.rand(2, 4, 2, 40, generator=torch.Generator().manual_seed(1))
    edits = AttentionEdits(queries=queries, pattern=pattern)
    found, plain = attention(*inputs, at, at, edits=edits), attention(*inputs, at, at)
    wanted = torch.einsum("bhqk,bkhd->bqhd", pattern, inputs[2].repeat_interleave(2, 2))
    assert apart(found[:, queries], wanted) <= 1e-5
    others = [i for i in range(40) if i not in (3, 20)]
    assert torch.equal(found[:, others], plain[:, others])


def test_wrong_edits_are_refused():
    inputs = draw(4, 2, 3, 10)
    with pytest.raises(ValueError, match=r"expected a gain of \(6,\) or \(2, 6, 4\); got \(5,\)"):
        attention(*inputs, full(4), full(4), edits=AttentionEdits(gain=torch.ones(5)))
    edits = AttentionEdits(queries=torch.tensor([1]))
    with pytest.raises(ValueError, match=r"expected edits.pattern \(2, 6, 1, 4\); got None"):
        attention(*inputs, full(4), full(4), edits=edits)


@pytest.mark.parametrize("window", [None, 40])
def test_a_key_hidden_anywhere_is_hidden_only_there(window):
    """Tiles all of whose keys are seen go without a mask; one hidden key brings it back."""
    q, k, v, sinks = draw(150, 1, 2, 16, batch=1)
    plain = attention(q, k, v, sinks, full(150, 1), full(150, 1), window=window)
    for key in (0, 31, 32, 63, 100, 149):
        hidden = torch.zeros(1, 2, 150, dtype=torch.bool)
        hidden[:, 1, key] = True
        edits = AttentionEdits(hidden=hidden)
        found = attention(q, k, v, sinks, full(150, 1), full(150, 1), window=window, edits=edits)
        changed = (found != plain).any(-1)[0]
        last = 150 if window is None else min(150, key + window)
        assert not changed[:, 0].any() and not changed[:key].any() and not changed[last:].any()
        assert changed[key:last, 1].all()


def test_every_key_that_some_query_of_a_tile_may_not_see_is_masked():
    """Whatever lies at the edges of causality and of windows, for all positions in a tile."""
    q, k, v, sinks = draw(1, 1, 2, 16, batch=1, keys=192)
    v[:] = 0
    for at in (15, 16, 31, 47, 63, 64, 127, 128, 191):
        for window in (None, 1, 16, 33, 64, 100):
            first = 0 if window is None else max(0, at - window + 1)
            values = v.clone()
            values[0, first : at + 1] = 1  # whatever else is seen adds nothing to z but to sums
            query = torch.tensor([[at]])
            z = attention(q, k, values, sinks, query, full(192, 1), window=window)
            wanted = reference(q, k, values, sinks, query, full(192, 1), window=window)
            assert apart(z, wanted) <= 1e-4


def test_what_is_seen_by_all_is_told_apart_by_words_of_bits():
    at = torch.cat([torch.full((1, 5), PAD), torch.arange(70, 90)[None]], 1)
    assert find_places(at, 64).whole.tolist() == [[0]]  # slots 6 to 25: no 16 from a multiple on
    assert find_places(torch.arange(1024)[None], 512).whole.tolist() == [[-1, -1, 0]]
    at = torch.arange(100)[None].clone()
    assert find_places(at, 64).whole.tolist() == [[0b111111]]
    at[0, 40] = PAD
    assert find_places(at, 64).whole.tolist() == [[0b111011]]
    assert find_places(at.flip(1), 64).whole.tolist() == [[0]]  # ranked: all tiles are masked


@pytest.mark.parametrize("name", [None, "scores", "pattern", "gradient", "queries"])
def test_a_gain_has_the_bits_of_a_hook_whoever_looks(name):
    inputs, at = draw(20, 2, 2, 16, dtype=torch.bfloat16), ragged(20)
    gain, queries = torch.tensor([1.0, 0.3, -1.7, 0]), torch.tensor([3, 12])
    more = {}
    if name == "queries":
        g = torch.Generator().manual_seed(1)
        more = {"queries": queries, "pattern": torch.rand(2, 4, 2, 20, generator=g)}
    tap = AttentionTap(**{name: lambda x: x * 1.5}) if name in ("scores", "pattern") else None
    if name == "gradient":
        inputs[0].requires_grad_()
    found = attention(*inputs, at, at, tap=tap, edits=AttentionEdits(gain=gain, **more))
    plain = attention(*inputs, at, at, tap=tap, edits=AttentionEdits(**more))
    assert torch.equal(found, (plain.float() * gain[:, None]).to(plain.dtype))
