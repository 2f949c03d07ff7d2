"""The native mixture: the reference's numbers at every tap, bits that depend on a token alone."""

import pytest
import torch

from gptoss_kernels.moe import Experts, ExpertTap
from gptoss_kernels.moe import moe as reference
from gptoss_kernels.mxfp4 import unpack
from gptoss_kernels.native.moe import moe
from gptoss_kernels.route import route

EXPERTS, K, D_MODEL, D_FF = 7, 3, 96, 160
NAMES = ExpertTap._fields
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
"""Of torch.library.opcheck: all but a compilation."""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_experts(count=EXPERTS, d_model=D_MODEL, d_ff=D_FF):
    g = torch.Generator().manual_seed(5)

    def packed(outer, inner):
        shape = (count, outer, inner // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=g, dtype=torch.uint8)
        return blocks, torch.randint(121, 125, shape, generator=g).to(torch.uint8)

    b1, b2 = draw(count, 2 * d_ff, seed=6), draw(count, d_model, seed=7)
    return Experts(*packed(2 * d_ff, d_model), b1.bfloat16(), *packed(d_model, d_ff), b2.bfloat16())


@pytest.fixture(scope="module")
def experts():
    return drawn_experts()


def inputs(batch=2, tokens=5, dtype=torch.float32, seed=1):
    x = draw(batch, tokens, D_MODEL, seed=seed).to(dtype)
    return (x, *route(draw(batch, tokens, EXPERTS, seed=seed + 1), K))


class Seen:
    """Taps that keep everything they are shown."""

    def __init__(self, *names):
        self.values = {}
        self.tap = ExpertTap(**{name: self.keeper(name) for name in names})

    def keeper(self, name):
        def keep(value):
            self.values[name] = value
            return value

        return keep


def near(found, expected, bound=2e-6):
    assert float((found.double() - expected.double()).norm()) <= bound * float(expected.norm())


@pytest.mark.parametrize("tokens", (1, 2, 43))
@pytest.mark.parametrize("limit", (7.0, 0.75))
def test_every_stage_equals_the_reference(isa, experts, tokens, limit):
    given, ours, theirs = inputs(tokens=tokens), Seen(*NAMES), Seen(*NAMES)
    y = moe(*given, experts, limit=limit, tap=ours.tap)
    near(y, reference(*given, experts, limit=limit, tap=theirs.tap))
    assert list(ours.values) == list(NAMES)
    for name in NAMES:
        assert ours.values[name].shape == theirs.values[name].shape
        assert ours.values[name].dtype == theirs.values[name].dtype
        near(ours.values[name], theirs.values[name])


def test_equals_float64(isa, experts):
    x, indices, weights = inputs()
    w1 = unpack(experts.gate_up_blocks, experts.gate_up_scales).double()[indices]
    w2 = unpack(experts.down_blocks, experts.down_scales).double()[indices]
    u = torch.einsum("bpkud,bpd->bpku", w1, x.double()) + experts.gate_up_bias.double()[indices]
    gate, up = u[..., 0::2].clamp(max=7), u[..., 1::2].clamp(-7, 7)
    assert (gate == 7).any() and (up == -7).any()
    post = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    out = torch.einsum("bpkdf,bpkf->bpkd", w2, post) + experts.down_bias.double()[indices]
    near(moe(x, indices, weights, experts), (out * weights.double()[..., None]).sum(2))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_observing_changes_no_bit(isa, experts, dtype):
    given = inputs(tokens=9, dtype=dtype)
    plain = moe(*given, experts)
    for names in (("gate",), ("up",), ("post",), ("out",), ("gate", "out"), NAMES):
        assert torch.equal(moe(*given, experts, tap=Seen(*names).tap), plain)
    recorded = moe(given[0].clone().requires_grad_(), *given[1:], experts)
    assert torch.equal(recorded, plain)


def test_more_tokens_than_go_through_at_once_have_the_bits_of_each(isa):
    small = drawn_experts(d_model=32, d_ff=32)
    x = draw(2, 700, 32).bfloat16()
    indices, weights = route(draw(2, 700, EXPERTS, seed=3), K)
    y = moe(x, indices, weights, small)
    for name in ("post", "out"):
        assert torch.equal(y, moe(x, indices, weights, small, tap=Seen(name).tap))
    assert torch.equal(y[1:, 600:], moe(x[1:, 600:], indices[1:, 600:], weights[1:, 600:], small))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_token_has_the_same_bits_in_any_batch(isa, experts, dtype):
    x, indices, weights = inputs(batch=3, tokens=31, dtype=dtype)
    together = moe(x, indices, weights, experts)
    for rows, places in (
        (slice(1, 2), slice(7, 8)),
        (slice(0, 3), slice(4, 6)),
        (slice(2, 3), ...),
    ):
        part = (rows, places) if places is not ... else (rows,)
        assert torch.equal(moe(x[part], indices[part], weights[part], experts), together[part])


def test_threads_change_no_bit(isa, experts):
    given = inputs(tokens=20)
    one = moe(*given, experts)
    torch.set_num_threads(2)
    try:
        assert torch.equal(moe(*given, experts), one)
    finally:
        torch.set_num_threads(1)


def test_many_tokens_are_worked_off_in_parts(isa):
    small = drawn_experts(count=3, d_model=32, d_ff=32)
    x = draw(1, 1500, 32)
    given = x, *route(draw(1, 1500, 3, seed=2), 3)
    y = moe(*given, small)
    near(y, reference(*given, small))
    last = [each[:, -1:] for each in given]
    assert torch.equal(moe(*last, small), y[:, -1:])


def test_bfloat16_post_is_rounded_once(isa, experts):
    x, indices, weights = inputs(dtype=torch.bfloat16)
    narrow, wide = Seen(*NAMES), Seen(*NAMES)
    moe(x, indices, weights, experts, tap=narrow.tap)
    moe(x.float(), indices, weights, experts, tap=wide.tap)
    assert torch.equal(narrow.values["gate"], wide.values["gate"])
    assert torch.equal(narrow.values["post"], wide.values["post"].bfloat16())


@pytest.mark.parametrize(
    "name, edit",
    [
        ("gate", lambda gate: gate * 2),
        ("up", lambda up: up.clone().fill_(-1.0)),
        ("post", lambda post: post * 1.5),
        ("out", lambda out: out + 1),
    ],
)
def test_edits_through_taps_are_used(isa, experts, name, edit):
    given, tap = inputs(), ExpertTap(**{name: edit})
    near(moe(*given, experts, tap=tap), reference(*given, experts, tap=tap))


def test_what_is_clamped_does_not_matter(isa, experts):
    given = inputs()
    high = ExpertTap(gate=lambda gate: torch.where(gate > 7, gate + 100, gate))
    assert torch.equal(moe(*given, experts, tap=high), moe(*given, experts))


@pytest.mark.parametrize("tokens", (1, 30))
def test_gradients_equal_the_reference(isa, experts, tokens):
    x, indices, weights = inputs(tokens=tokens)
    grad = draw(*x.shape, seed=3)

    def gradients(body):
        leaves = x.clone().requires_grad_(), weights.clone().requires_grad_()
        shift = torch.zeros(*indices.shape, D_FF, requires_grad=True)
        tap = ExpertTap(post=lambda post: post + shift)
        body(leaves[0], indices, leaves[1], experts, tap=tap).backward(grad)
        return [each.grad for each in (*leaves, shift)]

    for ours, theirs in zip(gradients(moe), gradients(reference), strict=True):
        near(ours, theirs, 5e-6)


def test_gradients_of_bfloat16_inputs_keep_their_dtype(isa, experts):
    x, indices, weights = inputs(dtype=torch.bfloat16)
    x.requires_grad_()
    moe(x, indices, weights, experts).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    wide = x.detach().float().requires_grad_()
    moe(wide, indices, weights, experts).sum().backward()
    near(x.grad.float(), wide.grad, 2e-2)  # post and its gradient are rounded to 8 bits


def test_the_router_alone_may_want_a_gradient(isa, experts):
    x, indices, weights = inputs()
    weights.requires_grad_()
    y = moe(x, indices, weights, experts)
    y.sum().backward()
    seen = Seen("out")
    moe(x, indices, weights, experts, tap=seen.tap)
    near(weights.grad, seen.values["out"].detach().sum(-1))


def test_an_expert_that_is_not_there_is_refused(isa, experts):
    x, indices, weights = inputs()
    for wrong in (-1, EXPERTS):
        bad = indices.clone()
        bad[1, 2, 0] = wrong
        with pytest.raises(IndexError):
            moe(x, bad, weights, experts)


def test_no_token_gives_no_row(isa, experts):
    x, indices, weights = inputs()
    assert moe(x[:, :0], indices[:, :0], weights[:, :0], experts).shape == (2, 0, D_MODEL)


def test_torch_knows_the_operators(experts):
    x, indices, weights = inputs(batch=1, tokens=2)
    ops, up, down = torch.ops.gptoss_native, experts[:3], experts[3:]
    post, out = draw(*indices.shape, D_FF), draw(*indices.shape, D_MODEL)
    for op, arguments in (
        (ops.moe, (x, indices, weights, *up, *down, 7.0)),
        (ops.moe_up, (x, indices, *up, 7.0)),
        (ops.moe_gate_up, (x.clone().requires_grad_(), indices, *up)),
        (ops.swiglu, (post, post.clone().requires_grad_(), 7.0, torch.bfloat16)),
        (ops.moe_down_combine, (post, indices, weights, *down)),
        (ops.moe_down, (post.clone().requires_grad_(), indices, *down)),
        (ops.moe_combine, (out.requires_grad_(), weights, torch.float32)),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=CHECKS)
