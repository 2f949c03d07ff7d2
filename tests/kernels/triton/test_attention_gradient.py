"""Gradients of Triton's attention equal autograd through the reference."""

import pytest
import torch

from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.attention import attention as reference
from gptoss_kernels.triton import launch
from gptoss_kernels.triton.attention import AttentionEdits, attention, rows

PAD = -1


def draw(tokens, kv_heads, group, d_head, *, batch=2, keys=None, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(batch, tokens, kv_heads * group, d_head, generator=g)
    k, v = torch.randn(2, batch, keys or tokens, kv_heads, d_head, generator=g)
    sinks = torch.randn(kv_heads * group, generator=g)
    return q.to(dtype), k.to(dtype), v.to(dtype), sinks.to(dtype)


def ragged(tokens):
    """The first row padded left, the second right."""
    pad = tokens // 4
    left = (torch.arange(tokens) - pad).clamp_min(PAD)
    right = torch.arange(tokens)
    return torch.stack([left, torch.where(right < tokens - pad, right, PAD)])


def same(x):
    return x


def apart(found, wanted):
    return float((found.double() - wanted).norm() / wanted.double().norm().clamp_min(1e-30))


def gradients(body, inputs, at, window=None, key_pos=None, **given):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    z = body(*leaves, at, at if key_pos is None else key_pos, window=window, **given)
    weigh = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(z.dtype)
    (z * weigh).sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("shape", [(40, 2, 4, 32), (21, 2, 3, 10), (70, 1, 2, 16)])
def test_equal_the_references(shape, window):
    inputs, at = draw(*shape), ragged(shape[0])
    found, wanted = (gradients(body, inputs, at, window) for body in (attention, reference))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert apart(ours, theirs) <= 1e-4


@pytest.mark.parametrize("window", [None, 16])
def test_equal_the_references_where_nothing_is_in_order(window):
    inputs = draw(30, 1, 2, 16, keys=90)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    keys = torch.arange(90).expand(2, -1)[:, order].clone()
    keys[1, 5:20] = PAD
    at = torch.randint(-1, 90, (2, 30), generator=torch.Generator().manual_seed(4))
    found, wanted = (gradients(f, inputs, at, window, keys) for f in (attention, reference))
    for ours, theirs in zip(found, wanted, strict=True):
        assert apart(ours, theirs) <= 1e-4


def test_in_bfloat16_keep_the_dtype():
    inputs, at = draw(40, 2, 2, 32, dtype=torch.bfloat16), ragged(40)
    found, wanted = (gradients(body, inputs, at) for body in (attention, reference))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        assert apart(ours, theirs) < 0.02


@pytest.mark.parametrize("names", [("sink",), ("pattern",), ("scores",), AttentionTap._fields])
def test_pass_taps_that_look(names):
    inputs, at = draw(40, 2, 2, 16), ragged(40)
    tap = AttentionTap(**dict.fromkeys(names, same))
    found, wanted = (gradients(f, inputs, at, 9, tap=tap) for f in (attention, reference))
    for ours, theirs in zip(found, wanted, strict=True):
        assert apart(ours, theirs) <= 1e-4


@pytest.mark.parametrize("name", ["scores", "pattern"])
def test_pass_edits(name):
    inputs, at = draw(40, 2, 2, 16), ragged(40)
    change = torch.randn(2, 4, 40, 40, generator=torch.Generator().manual_seed(5))

    def edit(x):
        x = torch.where(change > 1, change, x)
        x[:, 3] = 0.5 * x[:, 3]
        return x

    tap = AttentionTap(**{name: edit})
    found, wanted = (gradients(f, inputs, at, 9, tap=tap) for f in (attention, reference))
    for ours, theirs in zip(found, wanted, strict=True):
        assert apart(ours, theirs) <= 1e-4


@pytest.mark.parametrize("name", AttentionTap._fields)
def test_reach_what_was_tapped_and_go_on_from_there(name):
    inputs, at, found = draw(30, 2, 2, 16), ragged(30), []
    for body in (attention, reference):
        seen, leaves = {}, [x.clone().requires_grad_() for x in inputs]

        def keep(x, seen=seen):
            seen["x"] = x
            return x

        z = body(*leaves, at, at, window=9, tap=AttentionTap(**{name: keep}))
        if name == "sink":
            shown, into = seen["x"].square().sum(), [leaves[i] for i in (0, 1, 3)]
        else:
            shown = z.square().sum() + seen["x"].clamp(-9, 9).square().sum()
            into = [seen["x"], *leaves]
        found.append(torch.autograd.grad(shown, into))
    for ours, theirs in zip(*found, strict=True):
        assert apart(ours, theirs) <= 1e-4


def test_reach_a_gain_and_pass_hidden_keys():
    inputs, at = draw(30, 2, 2, 16), ragged(30)
    hidden = torch.zeros(2, 4, 30, dtype=torch.bool)
    hidden[:, 1:3, 10:13] = True
    gain = torch.tensor([0.0, 1, 2, -1], requires_grad=True)
    edits = AttentionEdits(gain=gain, hidden=hidden)
    found = [*gradients(attention, inputs, at, edits=edits), gain.grad]

    def plainly(*args, **given):
        tap = AttentionTap(scores=lambda x: x.masked_fill(hidden[:, :, None], -1e30))
        return reference(*args, tap=tap, **given) * same_gain[:, None]

    same_gain = gain.detach().clone().requires_grad_()
    wanted = [*gradients(plainly, inputs, at), same_gain.grad]
    for ours, theirs in zip(found, wanted, strict=True):
        assert apart(ours, theirs) <= 1e-4


def test_of_rows_that_were_replaced_go_to_what_replaced_them():
    inputs, at, queries = draw(20, 2, 2, 16), ragged(20), torch.tensor([3, 12])
    pattern = torch.rand(2, 4, 2, 20, generator=torch.Generator().manual_seed(1)).requires_grad_()
    edits = AttentionEdits(queries=queries, pattern=pattern)
    found = [*gradients(attention, inputs, at, edits=edits), pattern.grad]
    other = pattern.detach().clone().requires_grad_()
    tap = AttentionTap(pattern=lambda x: x.index_copy(2, queries, other))
    wanted = [*gradients(reference, inputs, at, tap=tap), other.grad]
    for ours, theirs in zip(found, wanted, strict=True):
        assert apart(ours, theirs) <= 1e-4


def test_are_the_same_bits_every_time_and_beside_others():
    inputs = draw(40, 1, 2, 16, batch=1)
    at, once = torch.arange(40)[None], None
    alone = gradients(attention, inputs, at)
    for _ in range(2):
        assert all(map(torch.equal, gradients(attention, inputs, at), alone))
    q, k, v, sinks = inputs
    other = draw(40, 1, 2, 16, batch=1, seed=1)
    both = [torch.cat(pair) for pair in zip(other[:3], (q, k, v), strict=True)]
    leaves = [x.clone().requires_grad_() for x in both]
    z = attention(*leaves, sinks, at.expand(2, -1), at.expand(2, -1))
    weigh = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    (z * weigh).sum().backward()
    for leaf, once in zip(leaves, alone, strict=False):
        assert torch.equal(leaf.grad[1:], once)


# ---- only what is asked for ---------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """Kernels started since."""
    monkeypatch.setattr(launch, "counting", True)
    launch.launched.clear()
    yield launch.launched
    launch.launched.clear()


BACKWARD = {
    "q": ["_query_kernel"],
    "k": ["_places_kernel", "_key_kernel"],
    "v": ["_places_kernel", "_key_kernel"],
    "sinks": [],
}


@pytest.mark.parametrize("name", BACKWARD)
def test_of_what_is_frozen_are_not_computed(launched, name):
    inputs, at = draw(20, 2, 2, 16), ragged(20)
    wanted = dict(zip(BACKWARD, gradients(attention, inputs, at), strict=True))
    leaves = dict(zip(BACKWARD, (x.detach().clone() for x in inputs), strict=True))
    leaf = leaves[name].requires_grad_()
    z = attention(*leaves.values(), at, at)
    weigh = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    launched.clear()
    (z * weigh).sum().backward()
    assert launched == BACKWARD[name]
    assert torch.equal(leaf.grad, wanted[name])


def test_to_values_alone_pass_scores_that_are_looked_at():
    q, k, v, sinks = draw(20, 2, 2, 16)
    v.requires_grad_()
    at, tap = ragged(20), AttentionTap(scores=same)
    attention(q, k, v, sinks, at, at, tap=tap).square().sum().backward()
    other = v.detach().clone().requires_grad_()
    reference(q, k, other, sinks, at, at, tap=tap).square().sum().backward()
    assert apart(v.grad, other.grad) <= 1e-4


@pytest.mark.parametrize("name", [None, "pattern", "queries"])
def test_to_a_gain_do_not_depend_on_who_looks(name):
    inputs, at, found = draw(20, 2, 2, 16), ragged(20), []
    queries = torch.tensor([4, 9])
    pattern = rows(*inputs[:2], inputs[3], at, at, queries)
    for body in (attention, reference):
        gain = torch.tensor([0.0, 1, 2, -0.3], requires_grad=True)
        leaves, given = [x.clone().requires_grad_() for x in inputs], {}
        if name == "pattern":
            given["tap"] = AttentionTap(pattern=lambda x: 0.5 * x)
        if body is attention:
            more = {"queries": queries, "pattern": pattern} if name == "queries" else {}
            z = attention(*leaves, at, at, edits=AttentionEdits(gain=gain, **more), **given)
        else:
            if name == "queries":
                given["tap"] = AttentionTap(pattern=lambda x: x.index_copy(2, queries, pattern))
            z = reference(*leaves, at, at, **given) * gain[:, None]
        z.square().sum().backward()
        found.append([gain.grad, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert apart(ours, theirs) <= 1e-4
