"""The mixture: each token through its ranked experts, b2 inside the weighted sum."""

import math

import pytest
import torch

from gptoss_kernels import mxfp4
from gptoss_kernels.moe import Experts, ExpertTap, moe
from gptoss_kernels.mxfp4 import unpack
from gptoss_kernels.route import route

EXPERTS, K, D_MODEL, D_FF = 7, 3, 64, 96


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def experts():
    g = torch.Generator().manual_seed(5)

    def packed(outer, inner):
        shape = (EXPERTS, outer, inner // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=g, dtype=torch.uint8)
        return blocks, torch.randint(121, 125, shape, generator=g).to(torch.uint8)

    b1, b2 = draw(EXPERTS, 2 * D_FF, seed=6), draw(EXPERTS, D_MODEL, seed=7)
    up, down = packed(2 * D_FF, D_MODEL), packed(D_MODEL, D_FF)
    return Experts(*up, b1.bfloat16(), *down, b2.bfloat16())


@pytest.fixture(scope="module")
def inputs():
    x = draw(2, 5, D_MODEL, seed=1)
    return (x, *route(draw(2, 5, EXPERTS, seed=2), K))


def by_hand(x, expert, weights: Experts, limit=7.0):
    """One token through one expert in float64: gate, up, post, out."""
    w1 = unpack(weights.gate_up_blocks[expert], weights.gate_up_scales[expert]).double()
    w2 = unpack(weights.down_blocks[expert], weights.down_scales[expert]).double()
    u = w1 @ x.double() + weights.gate_up_bias[expert].double()
    gate, up = u[0::2], u[1::2]
    post = torch.empty_like(gate)
    for i in range(D_FF):
        g, v = min(float(gate[i]), limit), min(max(float(up[i]), -limit), limit)
        post[i] = g / (1 + math.exp(-1.702 * g)) * (v + 1)
    return gate, up, post, w2 @ post + weights.down_bias[expert].double()


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)  # values up to 100


@pytest.mark.parametrize("limit", [7.0, 0.75])
def test_equals_a_float64_loop_over_slots(inputs, experts, limit):
    x, indices, weights = inputs
    y = moe(x, indices, weights, experts, limit=limit)
    clamped = 0
    for row, place in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        total = torch.zeros(D_MODEL, dtype=torch.float64)
        for slot in range(K):
            hand = by_hand(x[row, place], int(indices[row, place, slot]), experts, limit)
            total += float(weights[row, place, slot]) * hand[-1]
            clamped += int((hand[0] > limit).sum()) * int((hand[1].abs() > limit).sum())
        close(y[row, place], total)
    assert clamped


def test_the_tap_sees_every_slot_in_rank_order(inputs, experts):
    x, indices, weights = inputs
    seen = {}

    def keeper(name):
        return lambda value: seen.setdefault(name, value)

    moe(x, indices, weights, experts, tap=ExpertTap(*map(keeper, ExpertTap._fields)))
    for row, place, slot in [(0, 0, 0), (0, 4, 2), (1, 3, 1)]:
        hand = by_hand(x[row, place], int(indices[row, place, slot]), experts)
        for name, expected in zip(ExpertTap._fields, hand, strict=True):
            close(seen[name][row, place, slot], expected)


def test_looking_changes_nothing(inputs, experts):
    plain = moe(*inputs, experts)
    looked = moe(*inputs, experts, tap=ExpertTap(*[lambda value: value] * 4))
    assert torch.equal(plain, looked)


def test_the_second_bias_is_inside_the_weighted_sum(inputs, experts):
    x, indices, weights = inputs
    without = experts._replace(down_bias=torch.zeros_like(experts.down_bias))
    share = moe(x, indices, weights, experts) - moe(x, indices, weights, without)
    bias = experts.down_bias.double()[indices]  # [batch, pos, k, d_model]
    close(share, (bias * weights.double()[..., None]).sum(2))


def test_edits_of_each_part_are_used(inputs, experts):
    x, indices, weights = inputs
    bias = (experts.down_bias.double()[indices] * weights.double()[..., None]).sum(2)
    for closed in (
        ExpertTap(gate=torch.zeros_like),
        ExpertTap(up=lambda up: torch.full_like(up, -1.0)),
        ExpertTap(post=torch.zeros_like),
    ):
        close(moe(x, indices, weights, experts, tap=closed), bias)
    out = ExpertTap(out=torch.ones_like)
    close(moe(x, indices, weights, experts, tap=out), torch.ones(2, 5, D_MODEL).double())


def test_a_token_does_not_depend_on_its_batch(inputs, experts):
    x, indices, weights = inputs
    together = moe(x, indices, weights, experts)
    for row, place in [(0, 2), (1, 4)]:
        one = slice(row, row + 1), slice(place, place + 1)
        torch.testing.assert_close(moe(x[one], indices[one], weights[one], experts), together[one])


def test_the_order_of_slots_does_not_matter(inputs, experts):
    x, indices, weights = inputs
    turned = moe(x, indices.flip(-1), weights.flip(-1), experts)
    torch.testing.assert_close(turned, moe(x, indices, weights, experts))


def test_tiles_give_what_one_tile_gives(inputs, experts, monkeypatch):
    whole = moe(*inputs, experts)
    monkeypatch.setattr(mxfp4, "TILE", 5 * D_FF)
    torch.testing.assert_close(moe(*inputs, experts), whole)


def test_bfloat16_stays_near_float32(inputs, experts):
    x, indices, weights = inputs
    y = moe(x.bfloat16(), indices, weights, experts)
    exact = moe(x.bfloat16().float(), indices, weights, experts)
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).norm() < 0.01 * exact.norm()


def test_gradients_equal_autograd_on_dense_weights(inputs, experts):
    x, indices, weights = inputs
    grad = draw(2, 5, D_MODEL, seed=3)
    ours = x.clone().requires_grad_(), weights.clone().requires_grad_()
    (moe(ours[0], indices, ours[1], experts) * grad).sum().backward()
    exact = x.double().requires_grad_(), weights.double().requires_grad_()
    w1 = unpack(experts.gate_up_blocks, experts.gate_up_scales).double()[indices]
    w2 = unpack(experts.down_blocks, experts.down_scales).double()[indices]
    u = torch.einsum("bpkud,bpd->bpku", w1, exact[0]) + experts.gate_up_bias.double()[indices]
    gate, up = u[..., 0::2].clamp(max=7), u[..., 1::2].clamp(-7, 7)
    post = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    out = torch.einsum("bpkdf,bpkf->bpkd", w2, post) + experts.down_bias.double()[indices]
    ((out * exact[1][..., None]).sum(2) * grad.double()).sum().backward()
    for found, expected in zip(ours, exact, strict=True):
        scale = expected.grad.abs().max()
        torch.testing.assert_close(
            found.grad.double() / scale, expected.grad / scale, rtol=1e-5, atol=1e-5
        )
