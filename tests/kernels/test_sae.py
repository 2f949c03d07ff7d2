"""Sparse codes against dense formulas."""

import pytest
import torch

from gptoss_kernels.sae import decode, decoder_gradient, encode_above, encode_topk


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(codes, latents):
    out = torch.zeros(len(codes.indices), latents + 1)
    return out.scatter_add(1, codes.indices % (latents + 1), codes.values)[:, :latents]


@pytest.fixture
def encoder():
    return draw(6, 12), draw(40, 12, seed=1).bfloat16(), draw(40, seed=2)


def test_top_k_keeps_the_largest_and_cuts_negative_ones(encoder):
    x, weight, bias = encoder
    pre = x @ weight.float().T + bias
    codes = encode_topk(x, weight, bias, 40)
    torch.testing.assert_close(dense(codes, 40), pre.relu())
    few = encode_topk(x, weight, bias, 3)
    assert torch.equal(few.indices, codes.indices[:, :3]) and (few.on == 3).all()
    assert torch.equal(codes.on, (pre > 0).sum(-1))


@pytest.mark.parametrize("threshold", [0.7, -1.0, "each"])
def test_above_keeps_whole_pre_activations_beyond_the_threshold(encoder, threshold):
    x, weight, bias = encoder
    threshold = draw(40, seed=3) if threshold == "each" else threshold
    pre = x @ weight.float().T + bias
    wanted = pre.relu() * (pre.relu() > threshold)
    codes = encode_above(x, weight, bias, threshold)
    torch.testing.assert_close(dense(codes, 40), wanted)
    assert torch.equal(codes.on, (wanted > 0).sum(-1))
    first = encode_above(x, weight, bias, threshold, slots=2)
    assert torch.equal(first.indices, codes.indices[:, :2]) and first.values.shape == (6, 2)
    assert torch.equal(first.on, codes.on)


def test_decode_and_its_gradient_equal_dense_products():
    indices = torch.tensor([[3, 0, 3], [7, -1, 2], [-1, -1, -1]])
    values, weight, bias = draw(3, 3), draw(9, 12, seed=1), draw(12, seed=2)
    codes = torch.zeros(3, 9)
    for row in range(3):
        for slot in range(3):
            if indices[row, slot] >= 0:
                codes[row, indices[row, slot]] += values[row, slot]
    torch.testing.assert_close(decode(indices, values, weight, bias), codes @ weight + bias)
    grad = draw(3, 12, seed=3)
    touched = decoder_gradient(indices, values, grad)
    assert touched.latents.tolist() == [0, 2, 3, 7]
    torch.testing.assert_close(touched.rows, (codes.T @ grad)[touched.latents])


def test_what_does_not_fit_is_refused(encoder):
    x, weight, bias = encoder
    with pytest.raises(ValueError, match="k between 1 and 40; got 41"):
        encode_topk(x, weight, bias, 41)
    with pytest.raises(ValueError, match=r"x \[row, 12\]; got \(6, 11\)"):
        encode_above(x[:, 1:], weight, bias, 0.0)
    with pytest.raises(ValueError, match="40 latents, the bias is"):
        encode_topk(x, weight, bias[1:], 2)
