"""Triton's sparse codes against the plain ones."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_kernels import sae as plain
from gptoss_kernels.triton import sae as module
from gptoss_kernels.triton.sae import decode, decoder_gradient, encode_above, encode_topk

LATENTS, WIDTH = 101, 45


@pytest.fixture(autouse=True)
def stretches(monkeypatch):
    """Two stretches of two tiles each."""
    monkeypatch.setattr(module, "TILES", 2)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def encoder(dtype=torch.float32, weight_dtype=torch.bfloat16):
    weight = draw(LATENTS, WIDTH, seed=1, dtype=weight_dtype)
    return draw(18, WIDTH, dtype=dtype), weight, draw(LATENTS, seed=2)


def same(found, wanted):
    assert torch.equal(found.indices, wanted.indices) and torch.equal(found.on, wanted.on)
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_top_k_is_the_references(dtype, weight_dtype):
    x, weight, bias = encoder(dtype, weight_dtype)
    same(encode_topk(x, weight, bias, 3), plain.encode_topk(x, weight, bias, 3))


def test_top_k_reaches_negative_pre_activations_and_no_bias():
    x, weight, _ = encoder()
    few = x[:2], weight[:7], None
    same(encode_topk(*few, 7), plain.encode_topk(*few, 7))


def test_of_equal_pre_activations_the_lower_latent_leads():
    weight = torch.ones(LATENTS, WIDTH)
    weight[[99, 50, 40]] = 2
    codes = encode_topk(torch.ones(1, WIDTH), weight, None, 5)
    assert codes.indices.tolist() == [[40, 50, 99, 0, 1]]


@pytest.mark.parametrize("threshold", [9.0, -1.0, "each"])
def test_above_is_the_references(threshold):
    x, weight, bias = encoder()
    threshold = 9 * draw(LATENTS, seed=3) if threshold == "each" else threshold
    same(encode_above(x, weight, bias, threshold), plain.encode_above(x, weight, bias, threshold))
    cut = encode_above(x, weight, bias, threshold, slots=4)
    same(cut, plain.encode_above(x, weight, bias, threshold, slots=4))


def test_above_with_nothing_on():
    x, weight, bias = encoder(torch.bfloat16)
    codes = encode_above(x, weight, bias, 1e9)
    assert codes.indices.shape == (18, 0) and not codes.on.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_company_changes_nothing(dtype, monkeypatch):
    x, weight, bias = encoder(dtype)
    for name, more in (("encode_topk", 3), ("encode_above", 8.0)):
        whole = getattr(module, name)(x, weight, bias, more)
        alone = getattr(module, name)(x[17:], weight, bias, more)
        on = alone.values.shape[1]
        assert torch.equal(alone.values[0], whole.values[17, :on])
        assert torch.equal(alone.indices[0], whole.indices[17, :on])
    whole = encode_topk(x, weight, bias, 3)
    monkeypatch.setattr(module, "ROWS", 5)
    assert torch.equal(encode_topk(x, weight, bias, 3).values, whole.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_and_both_its_gradients_are_the_references(dtype):
    indices = torch.tensor([[3, 0, 3], [7, -1, 2], [-1, -1, -1], [3, 2, 100]])
    weight, bias = draw(LATENTS, WIDTH, dtype=dtype), draw(WIDTH, seed=2)
    grad, grads = draw(4, WIDTH, seed=3), []
    for body in (decode, plain.decode):
        values = draw(4, 3, seed=4).requires_grad_()
        out = body(indices, values, weight, bias)
        (out * grad).sum().backward()
        grads.append((out.detach(), values.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])
    found = decoder_gradient(indices, draw(4, 3, seed=4), grad)
    wanted = plain.decoder_gradient(indices, draw(4, 3, seed=4), grad)
    assert torch.equal(found.latents, wanted.latents)
    torch.testing.assert_close(found.rows, wanted.rows)


class Waits(TorchDispatchMode):
    """Operations for which the host waits: their result, or its shape, depends on numbers."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        by_mask = name.startswith("index.") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if by_mask or name.startswith(("_local_scalar_dense", "nonzero", "unique")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_the_host_waits_once_for_a_decoders_gradient(monkeypatch):
    indices, values = torch.tensor([[4, 2], [2, -1]]), draw(2, 2)
    monkeypatch.setattr(module, "launch", lambda *given, **meta: None)
    with Waits() as waits:
        decoder_gradient(indices, values, draw(2, WIDTH))
    assert waits.seen == ["_local_scalar_dense"]
    with Waits() as waits:
        plain.decoder_gradient(indices, values, draw(2, WIDTH))
    assert len(waits.seen) > 1  # what counts as a wait is seen


@pytest.mark.parametrize("slots", [0, 3])
def test_nothing_read_is_a_gradient_of_no_rows(slots):
    nothing = torch.full((4, slots), -1)
    found = decoder_gradient(nothing, torch.zeros(4, slots), draw(4, WIDTH))
    assert found.latents.shape == (0,) and found.rows.shape == (0, WIDTH)


def test_encoders_pass_gradients_through_latents_that_are_on():
    _, weight, bias = encoder()
    for name, more in (("encode_topk", 9), ("encode_above", 9.0)):
        grads = []
        for body in (module, plain):
            x = draw(3, WIDTH, seed=5).requires_grad_()
            getattr(body, name)(x, weight[:40], bias[:40], more).values.square().sum().backward()
            grads.append(x.grad)
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused():
    x, weight, bias = encoder()
    with pytest.raises(ValueError, match="k between 1 and 101; got 102"):
        encode_topk(x, weight, bias, 102)
    with pytest.raises(ValueError, match=r"x \[row, 45\]; got \(18, 44\)"):
        encode_above(x[:, 1:], weight, bias, 0.0)
    with pytest.raises(ValueError, match="differ"):
        decode(torch.zeros(1, 2, dtype=torch.int64), draw(1, 3), weight)


def test_more_latents_than_64_are_kept():
    x, weight, bias = encoder(torch.bfloat16)
    same(encode_topk(x[:2], weight, bias, 70), plain.encode_topk(x[:2], weight, bias, 70))
