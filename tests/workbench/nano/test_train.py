"""The trainer: exact gradients, a bit-reproducible run, a lossless export."""

import pytest
import torch

from gptoss_workbench.nano import checkpoint_path, train
from gptoss_workbench.nano.export import packed_state, read_model, unpacked_state
from gptoss_workbench.nano.model import Cache, Nano, NanoConfig
from gptoss_workbench.nano.mxfp4 import MAGNITUDES, pack, quantize, unpack
from gptoss_workbench.nano.ops import ALPHA, Experts, Normalize, SinkAttention
from gptoss_workbench.nano.optim import orthogonalize


def attend(q, k, v, group, window):
    """SinkAttention the plain way: q [n, token x group, d + 1], its last feature the sink."""
    tokens = k.shape[1]
    q, sink = q.unflatten(1, (tokens, group))[..., :-1], q.unflatten(1, (tokens, group))[..., -1:]
    scores = torch.einsum("ntgd,nsd->ntgs", q, k)
    at = torch.arange(tokens)
    seen = (at <= at[:, None]) & (at[:, None] - at < window)
    scores = scores.masked_fill(~seen[None, :, None], -torch.inf)
    p = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    return torch.einsum("ntgs,nsd->ntgd", p, v).flatten(1, 2)


@pytest.mark.parametrize("window", [5, 32, 70])
def test_blockwise_attention_is_attention(window):
    torch.manual_seed(0)
    inputs = [torch.randn(s, requires_grad=True) for s in [(2, 70 * 3, 9), (2, 70, 8), (2, 70, 8)]]
    fast, plain = SinkAttention.apply(*inputs, 3, window), attend(*inputs, 3, window)
    torch.testing.assert_close(fast, plain)
    g = torch.randn_like(plain)
    ours, theirs = (torch.autograd.grad(y, inputs, g) for y in (fast, plain))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)  # sums over 70 keys, other order


@pytest.mark.parametrize("limit", [1.0, 7.0])
def test_the_experts_gradient_is_exact(limit):
    torch.manual_seed(0)
    shapes = [(12, 6), (12, 2), (3, 8, 6), (3, 8), (3, 6, 4), (3, 6)]
    x, *rest = (torch.randn(s, dtype=torch.double, requires_grad=True) for s in shapes)
    chosen = torch.stack([torch.randperm(3)[:2] for _ in range(12)])
    assert torch.autograd.gradcheck(
        lambda x, weight, *w: Experts.apply(x, weight, chosen, *w, limit), (x, *rest)
    )


def test_the_experts_are_a_weighted_sum_of_swiglus():
    torch.manual_seed(0)
    x, weight = torch.randn(5, 6), torch.rand(5, 2)
    w1, b1, w2, b2 = (torch.randn(s) for s in [(3, 8, 6), (3, 8), (3, 6, 4), (3, 6)])
    chosen, want = torch.stack([torch.randperm(3)[:2] for _ in range(5)]), torch.zeros(5, 6)
    for t in range(5):
        for j, e in enumerate(chosen[t]):
            gate, up = (w1[e] @ x[t] + b1[e]).chunk(2)
            gate, up = gate.clamp(max=1.0), up.clamp(-1.0, 1.0)
            act = gate * torch.sigmoid(ALPHA * gate) * (up + 1)
            want[t] += weight[t, j] * (w2[e] @ act + b2[e])
    torch.testing.assert_close(Experts.apply(x, weight, chosen, w1, b1, w2, b2, 1.0), want)


def test_the_norms_gradient_is_exact():
    x, w = torch.randn(3, 6, dtype=torch.double), torch.randn(6, dtype=torch.double)
    inputs = x.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: Normalize.apply(x, w, 1e-5), inputs)


def test_orthogonalized_rows_have_equal_strength():
    values = torch.linalg.svdvals(orthogonalize(torch.randn(4, 32, 64)))
    assert values.min() > 0.4 and values.max() < 1.4


def test_packing_keeps_every_quantised_value():
    w = torch.randn(3, 5, 64) * torch.logspace(-6, 3, 15).view(3, 5, 1)
    assert torch.equal(unpack(*pack(w)), quantize(w))
    assert torch.equal(quantize(quantize(w)), quantize(w))


def test_quantisation_takes_the_nearest_value_of_the_grid():
    w = torch.linspace(-5.9, 5.9, 32)
    w[0] = -6.0
    grid = torch.cat([-MAGNITUDES, MAGNITUDES])
    nearest = (w[:, None] - grid).abs().amin(1)
    torch.testing.assert_close((quantize(w) - w).abs(), nearest)


def test_the_first_heads_start_by_looking_back():
    torch.manual_seed(0)
    model = Nano(NanoConfig())
    attention, ids = model.layers[0].self_attn, torch.randint(0, 800, (1, 40))
    with torch.no_grad():
        x = model.layers[0].input_layernorm(model.embed_tokens(ids))
        q, k, _ = attention.project(x, *model._positions(0, 40))
    for head, offset in enumerate((1, 1, 2, 3)):
        scores = (q[0, 0, :, head] @ k[0, 0].T).masked_fill(torch.ones(40, 40).triu(1) > 0, -1e9)
        assert scores.softmax(-1).diagonal(-offset).mean() > 0.5


def test_steps_with_a_cache_equal_the_whole_sequence():
    torch.manual_seed(0)
    model, ids = Nano(NanoConfig()), torch.randint(0, 800, (2, 50))
    pad, past = torch.tensor([3, 3]), Cache()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    with torch.no_grad():
        whole = model(ids)[0][:, -1]
        model.step(padded[:, :45], pad, past)
        for i in range(45, 53):
            last, _ = model.step(padded[:, i : i + 1], pad, past)
    torch.testing.assert_close(last, whole, atol=1e-4, rtol=1e-4)  # other order of summation


def test_export_and_reading_are_inverse_up_to_rounding():
    torch.manual_seed(0)
    model = Nano(NanoConfig(vocab_size=64))
    state = unpacked_state(packed_state(model), model.c)
    for name, value in model.state_dict().items():
        expert = name.endswith(("gate_up_proj", "down_proj"))
        want = quantize(value) if expert else value.to(torch.bfloat16).float()
        assert torch.equal(state[name], want), name


@pytest.fixture
def torch_as_it_was():
    yield
    torch.use_deterministic_algorithms(False)


def test_a_run_is_reproducible_to_the_bit(tmp_path, torch_as_it_was):
    """Five steps see every term of the loss and the rounding of the experts."""
    runs = [train.train(5, tmp_path / name, steps=5, batch=3) for name in "ab"]
    assert runs[0]["sha256"] == runs[1]["sha256"]
    assert runs[0]["log"] == runs[1]["log"] and len(runs[0]["log"]) >= 2
    assert read_model(tmp_path / "a").c == read_model(checkpoint_path()).c


def test_seeds_differ_in_their_data():
    first, again, other = (next(train.samples(seed, 100, 2)) for seed in (0, 0, 1))
    assert first == again and first != other
