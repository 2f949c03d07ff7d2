"""Native attention: the reference's numbers, and bits that depend on a row alone."""

import pytest
import torch

from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.attention import attention as reference
from gptoss_kernels.native import attention_call, attention_gradient
from gptoss_kernels.native.attention import attention

PAD = -1
LOWEST = torch.finfo(torch.float32).min
SHAPES = [  # tokens, kv heads, heads a group, d_head
    (11, 2, 3, 10),
    (1, 8, 8, 64),
    (150, 1, 8, 64),
    (67, 2, 1, 80),
    (40, 3, 4, 32),
    (5, 1, 8, 64),
    (9, 1, 50, 7),
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


class Seen:
    """Taps that keep everything they are shown."""

    def __init__(self, *names):
        self.values, names = {}, names or AttentionTap._fields
        self.tap = AttentionTap(**{name: self.keeper(name) for name in names})

    def keeper(self, name):
        def keep(x):
            self.values[name] = x
            return x

        return keep


def apart(found, wanted):
    found, wanted = (x.double().clamp_min(-1e30) for x in (found, wanted))
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


# ---- the same numbers as the reference ----------------------------------------------------------


@pytest.mark.parametrize("places", [full, ragged])
@pytest.mark.parametrize("window", [None, 1, 5, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(isa, shape, window, places):
    inputs, at = draw(*shape), places(shape[0])
    ours, theirs = Seen(), Seen()
    wanted = reference(*inputs, at, at, window=window, tap=theirs.tap)
    found = attention(*inputs, at, at, window=window, tap=ours.tap)
    assert found.dtype == torch.float32
    assert apart(found, wanted) <= 2e-6
    for name in AttentionTap._fields:
        assert apart(ours.values[name], theirs.values[name]) <= 2e-6, name
    hidden = theirs.values["scores"] == LOWEST
    assert torch.equal(ours.values["scores"] == LOWEST, hidden)
    assert (ours.values["pattern"][hidden] == 0).all()


@pytest.mark.parametrize("window", [None, 128])
def test_one_query_over_many_keys_equals_the_reference(isa, window):
    inputs = draw(1, 2, 8, 64, keys=700)
    query, keys = torch.tensor([[699], [650]]), full(700)
    found = attention(*inputs, query, keys, window=window)
    assert apart(found, reference(*inputs, query, keys, window=window)) <= 2e-6


def test_bfloat16_is_rounded_once(isa):
    inputs, at = draw(70, 2, 8, 64, dtype=torch.bfloat16), ragged(70)
    found, wanted = attention(*inputs, at, at), reference(*inputs, at, at)
    assert found.dtype == torch.bfloat16
    assert (found == wanted).float().mean() > 0.999  # float32 sums next to a rounding edge
    assert apart(found, wanted) < 1e-4


def test_mixed_dtypes_are_widened(isa):
    q, k, v, sinks = draw(9, 2, 4, 32)
    found = attention(q, k.bfloat16(), v.bfloat16(), sinks, full(9), full(9))
    assert apart(found, reference(q, k.bfloat16(), v.bfloat16(), sinks, full(9), full(9))) <= 2e-6
    half = attention(q.half(), k.half(), v.half(), sinks, full(9), full(9))
    assert half.dtype == torch.float16


@pytest.mark.parametrize(("scale", "sink"), [(1e3, 0.0), (1e-20, 0.0), (1.0, 3e4), (1.0, -3e4)])
def test_extreme_scores_and_sinks(isa, scale, sink):
    q, k, v, sinks = draw(20, 1, 8, 64)
    inputs = (scale * q, k, v, sinks + sink)
    found, wanted = attention(*inputs, full(20), full(20)), reference(*inputs, full(20), full(20))
    assert found.isfinite().all()
    assert apart(found, wanted) <= 1e-4  # scores of 10^4 are rounded to 10^-3


def test_each_weight_of_the_softmax_is_exact_to_a_few_units(isa):
    scores = torch.linspace(0, -80, 4001).expand(1, 1, 1, -1)
    pattern, sink = attention_call.soften(scores, torch.tensor([-50.0]), full(4001, 1))
    weights = torch.cat([scores[0, 0, 0].double(), torch.tensor([-50.0])]).exp()
    wanted = weights / weights.sum()
    found = torch.cat([pattern[0, 0, 0], sink[0, 0]]).double()
    assert ((found - wanted).abs() / wanted).max() <= 3e-7  # 5 halves of a last place
    gone = attention_call.soften(scores - 1000 * (scores < 0), torch.zeros(1), full(4001, 1))[0]
    assert (gone[0, 0, 0, 1:] == 0).all()


def test_a_query_that_sees_nothing_gives_0_and_its_sink_1(isa):
    at, seen = ragged(11), Seen()
    z = attention(*draw(11, 2, 3, 10), at, at, tap=seen.tap)
    padding = at < 0
    assert (z[padding] == 0).all()
    assert (seen.values["sink"].transpose(1, 2)[padding] == 1).all()
    assert (seen.values["pattern"].transpose(1, 2)[padding] == 0).all()
    no_keys = draw(3, 2, 3, 10)
    z = attention(no_keys[0], *(x[:, :0] for x in no_keys[1:3]), no_keys[3], full(3), full(0))
    assert (z == 0).all()


def test_no_queries_give_an_empty_result(isa):
    q, k, v, sinks = draw(4, 2, 3, 10)
    assert attention(q[:, :0], k, v, sinks, full(0), full(4)).shape == (2, 0, 6, 10)


def test_heads_that_do_not_divide_are_refused():
    q, k, v, sinks = draw(4, 2, 3, 10)
    with pytest.raises(ValueError, match="5 query heads over 2 key/value heads"):
        attention(q[:, :, :5], k, v, sinks[:5], full(4), full(4))


# ---- bits that depend on a row alone ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("names", [("sink",), ("pattern",), ("scores",), AttentionTap._fields])
def test_looking_changes_nothing(isa, names, window, dtype):
    inputs, at = draw(150, 2, 8, 64, dtype=dtype), ragged(150)
    plain = attention(*inputs, at, at, window=window)
    assert torch.equal(attention(*inputs, at, at, window=window, tap=Seen(*names).tap), plain)


@pytest.mark.parametrize("window", [None, 16, 128])
def test_padding_and_company_change_nothing(isa, window):
    q, k, v, sinks = draw(140, 1, 8, 64, batch=1)
    alone = attention(q, k, v, sinks, full(140, 1), full(140, 1), window=window)
    for left in (1, 3, 64):
        right = 70 - left
        at = torch.cat([full(left, 1) * 0 - 1, full(140, 1), full(right, 1) * 0 - 1], 1)
        q2, k2, v2, _ = draw(210, 1, 8, 64, batch=3, seed=left)
        rows = slice(left, left + 140)
        q2[1, rows], k2[1, rows], v2[1, rows] = q[0], k[0], v[0]
        k2[1, :left], v2[1, :left] = torch.nan, torch.inf
        at = torch.cat([full(210, 1), at, full(210, 1)])
        assert torch.equal(attention(q2, k2, v2, sinks, at, at, window=window)[1, rows], alone[0])


@pytest.mark.parametrize("window", [None, 16, 128])
@pytest.mark.parametrize("chunk", [1, 7, 64, 128, 129])
def test_chunks_over_a_trimmed_cache_equal_the_whole(isa, chunk, window):
    q, k, v, sinks = draw(150, 1, 8, 64, batch=1)
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


def test_the_order_of_keys_in_memory_changes_nothing(isa):
    q, k, v, sinks = draw(90, 2, 4, 32)
    whole = attention(q, k, v, sinks, full(90), full(90), window=40)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    found = attention(q, k[:, order], v[:, order], sinks, full(90), full(90)[:, order], window=40)
    assert torch.equal(found, whole)


def test_threads_change_nothing(isa):
    inputs, at, before = draw(100, 4, 8, 64), ragged(100), torch.get_num_threads()
    one = attention(*inputs, at, at)
    torch.set_num_threads(3)
    try:
        assert all(torch.equal(attention(*inputs, at, at), one) for _ in range(5))
    finally:
        torch.set_num_threads(before)


def test_keys_of_a_larger_store_are_read_in_place(isa):
    q, k, v, sinks = draw(30, 2, 4, 32)
    store = torch.full((2, 2, 64, 2, 32), torch.nan)
    store[0, :, :30], store[1, :, :30] = k, v
    found = attention(q, store[0, :, :30], store[1, :, :30], sinks, full(30), full(30))
    assert torch.equal(found, attention(q, k, v, sinks, full(30), full(30)))


# ---- edits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scores", "pattern"])
def test_an_edit_is_used_as_the_reference_uses_it(isa, name):
    inputs, at = draw(40, 2, 4, 32), ragged(40)
    change = torch.randn(2, 8, 40, 40, generator=torch.Generator().manual_seed(5))
    tap = AttentionTap(**{name: lambda x: torch.where(change > 1, change, x)})
    found, wanted = (f(*inputs, at, at, window=9, tap=tap) for f in (attention, reference))
    assert apart(found, wanted) <= 2e-6


def test_an_edit_in_place_is_used(isa):
    inputs = draw(20, 2, 4, 32)

    def silence(pattern):
        pattern[:, 3] = 0
        return pattern

    z = attention(*inputs, full(20), full(20), tap=AttentionTap(pattern=silence))
    plain = attention(*inputs, full(20), full(20))
    assert (z[:, :, 3] == 0).all()
    assert torch.equal(z[:, :, 4:], plain[:, :, 4:])


# ---- gradients ----------------------------------------------------------------------------------


def gradients(body, inputs, at, window, tap=None):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    z = body(*leaves, at, at, window=window, tap=tap)
    weigh = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(z.dtype)
    (z * weigh).sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("tile", [1, 1 << 22])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("names", [(), ("sink",), ("pattern",), AttentionTap._fields])
def test_gradients_equal_the_references(monkeypatch, names, window, tile):
    monkeypatch.setattr(attention_gradient, "TILE", tile)
    inputs, at = draw(40, 2, 4, 32), ragged(40)
    wanted = gradients(reference, inputs, at, window)
    found = gradients(attention, inputs, at, window, Seen(*names).tap if names else None)
    for ours, theirs in zip(found, wanted, strict=True):
        assert apart(ours, theirs) <= 1e-5


@pytest.mark.parametrize("name", ["scores", "pattern"])
def test_gradients_reach_what_was_tapped(name):
    inputs, at = draw(40, 2, 4, 32), ragged(40)
    found = []
    for body in (attention, reference):
        seen = Seen(name)
        q, *rest = (x.clone().requires_grad_() for x in inputs)
        z = body(q, *rest, at, at, window=9, tap=seen.tap)
        found.append(torch.autograd.grad(z.square().sum(), [seen.values[name], q]))
    for ours, theirs in zip(*found, strict=True):
        assert apart(ours, theirs) <= 1e-5


def test_gradients_of_what_the_sink_absorbs():
    inputs, at = draw(20, 2, 4, 32), ragged(20)
    found = []
    for body in (attention, reference):
        seen, leaves = Seen("sink"), [x.clone().requires_grad_() for x in inputs]
        body(*leaves, at, at, tap=seen.tap)
        total = seen.values["sink"].square().sum()
        found.append(torch.autograd.grad(total, [leaves[i] for i in (0, 1, 3)]))
    for ours, theirs in zip(*found, strict=True):
        assert apart(ours, theirs) <= 1e-5


def test_gradients_pass_an_edit_in_place():
    inputs, at = draw(20, 2, 4, 32), ragged(20)

    def silence(pattern):
        pattern[:, 3] = 0
        return pattern

    tap = AttentionTap(pattern=silence)
    found, wanted = (gradients(body, inputs, at, 9, tap) for body in (attention, reference))
    for ours, theirs in zip(found, wanted, strict=True):
        assert apart(ours, theirs) <= 1e-5


def test_gradients_in_bfloat16_keep_the_dtype():
    inputs, at = draw(20, 2, 4, 32, dtype=torch.bfloat16), full(20)
    found, wanted = (gradients(body, inputs, at, None) for body in (attention, reference))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        assert apart(ours, theirs) < 0.02


def test_torch_compile_knows_the_operators():
    q, k, v, sinks = (x.requires_grad_() for x in draw(5, 1, 2, 8))
    places = (full(5), full(5))
    for op, args in (
        ("attend", (q, k, v, sinks, *places, 3)),
        ("score", (q, k, *places, 3)),
        ("pattern", (q, k, sinks, *places, 3)),
        ("soften", (torch.randn(2, 2, 5, 5, requires_grad=True), sinks, places[1])),
        ("mix", (torch.rand(2, 2, 5, 5, requires_grad=True), v, places[1], torch.float32)),
    ):
        overload = getattr(torch.ops.gptoss_native, op).default
        torch.library.opcheck(overload, args, test_utils=("test_schema", "test_faketensor"))
