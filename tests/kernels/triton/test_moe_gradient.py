"""Gradients through the packed experts equal autograd of the reference, whole and taken apart."""

import pytest
import torch

from gptoss_kernels.moe import Experts, ExpertTap
from gptoss_kernels.moe import moe as reference
from gptoss_kernels.route import route
from gptoss_kernels.triton.moe import ExpertEdits, moe
from gptoss_kernels.triton.repack import FORMS, pack_for_triton

EXPERTS, K, D_MODEL, D_FF = 4, 2, 96, 160


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def plain():
    g = torch.Generator().manual_seed(5)

    def packed(outer, inner):
        shape = (EXPERTS, outer, inner // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=g, dtype=torch.uint8)
        return blocks, torch.randint(121, 125, shape, generator=g).to(torch.uint8)

    b1, b2 = draw(EXPERTS, 2 * D_FF, seed=6), draw(EXPERTS, D_MODEL, seed=7)
    up, down = packed(2 * D_FF, D_MODEL), packed(D_MODEL, D_FF)
    return Experts(*up, b1.bfloat16(), *down, b2.bfloat16())


@pytest.fixture(scope="module")
def experts(plain):
    return pack_for_triton(plain)


def inputs(batch=1, tokens=3, dtype=torch.float32, seed=1):
    x = draw(batch, tokens, D_MODEL, seed=seed).to(dtype)
    return (x, *route(draw(batch, tokens, EXPERTS, seed=seed + 1), K))


def near(found, expected, bound=5e-6):
    assert float((found.double() - expected.double()).norm()) <= bound * float(expected.norm())


def gradients(body, given, experts, tap=None, edits=None):
    """To x and to the routing weights."""
    x, indices, weights = given[0].clone().requires_grad_(), given[1], given[2].clone()
    weights.requires_grad_()
    options = {} if edits is None else {"edits": edits}
    y = body(x, indices, weights, experts, limit=3.0, tap=tap, **options)
    y.backward(draw(*x.shape, seed=3).to(x.dtype))
    return x.grad, weights.grad


@pytest.mark.parametrize("size", [(1, 3), (2, 17)])
def test_equal_the_reference(plain, experts, size):
    given = inputs(*size)
    for ours, theirs in zip(
        gradients(moe, given, experts), gradients(reference, given, plain), strict=True
    ):
        near(ours, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_of_words_give_the_same_bits(plain, experts, form):
    given = inputs(tokens=2)
    found = gradients(moe, given, pack_for_triton(plain, form=form))
    assert all(map(torch.equal, found, gradients(moe, given, experts)))


def test_every_tap_may_want_one(plain, experts):
    x, indices, weights = inputs()

    def shifts(body, experts):
        widths = {"gate": D_FF, "up": D_FF, "post": D_FF, "out": D_MODEL}
        shift = {
            name: (0.1 * draw(*indices.shape, width, seed=9)).requires_grad_()
            for name, width in widths.items()
        }
        tap = ExpertTap(**{name: each.__add__ for name, each in shift.items()})
        leaf = x.clone().requires_grad_()
        body(leaf, indices, weights, experts, tap=tap).backward(draw(*x.shape, seed=3))
        return [leaf.grad, *(each.grad for each in shift.values())]

    for ours, theirs in zip(shifts(moe, experts), shifts(reference, plain), strict=True):
        near(ours, theirs)


def test_a_tap_may_want_one_where_nothing_else_does(plain, experts):
    given = inputs()
    grads = []
    for body, weights in ((moe, experts), (reference, plain)):
        shift = torch.zeros(*given[1].shape, D_FF, requires_grad=True)
        body(*given, weights, tap=ExpertTap(post=shift.__add__)).sum().backward()
        grads.append(shift.grad)
    near(*grads)


def test_a_graph_changes_no_bit_of_the_result(experts):
    x, indices, weights = inputs(dtype=torch.bfloat16)
    y = moe(x, indices, weights, experts)
    x.requires_grad_()
    assert torch.equal(moe(x, indices, weights, experts), y)
    assert torch.equal(moe(x, indices, weights, experts, tap=ExpertTap(gate=torch.clone)), y)


def test_of_bfloat16_inputs_keep_their_dtype(plain, experts):
    given = inputs(dtype=torch.bfloat16)
    wide = given[0].float(), *given[1:]
    found, expected = gradients(moe, given, experts), gradients(reference, wide, plain)
    assert found[0].dtype == torch.bfloat16
    near(found[0].float(), expected[0], 2e-2)  # post and its gradient are rounded to 8 bits
    near(found[1], expected[1], 2e-2)


def test_the_router_alone_may_want_one(plain, experts):
    x, indices, weights = inputs()
    weights.requires_grad_()
    moe(x, indices, weights, experts).sum().backward()
    found, weights.grad = weights.grad, None
    reference(x, indices, weights, plain).sum().backward()
    near(found, weights.grad)


@pytest.mark.parametrize("tap", [None, ExpertTap(gate=torch.clone)])
def test_edits_as_data_pass_them_on(plain, experts, tap):
    given = inputs()
    row = torch.full(given[1].shape, -1)
    row[0, 1, 0] = 1
    gain, table = draw(EXPERTS, D_FF, seed=8), draw(2, D_FF, seed=9)
    slot = draw(*given[1].shape, seed=4).requires_grad_()

    def post(value):
        edited = value * gain[given[1]]
        return torch.where((row >= 0)[..., None], table[row.clamp_min(0)], edited)

    def gained(x, indices, weights, experts, **options):
        return reference(x, indices, weights * slot, experts, **options)

    ours = gradients(moe, given, experts, tap, ExpertEdits(slot, gain, row, table))
    to_slot, slot.grad = slot.grad, None
    theirs = gradients(gained, given, plain, ExpertTap(post=post))
    for found, expected in zip((*ours, to_slot), (*theirs, slot.grad), strict=True):
        near(found, expected)
