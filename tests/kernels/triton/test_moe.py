"""Triton's mixture: the reference's numbers at every tap, bits that depend on a token alone."""

import pytest
import torch

from gptoss_kernels.moe import Experts, ExpertTap
from gptoss_kernels.moe import moe as reference
from gptoss_kernels.route import route
from gptoss_kernels.triton import launch
from gptoss_kernels.triton.moe import ExpertEdits, moe
from gptoss_kernels.triton.repack import FORMS, pack_for_triton
from gptoss_kernels.triton.sort import FEW

EXPERTS, K, D_MODEL, D_FF = 4, 2, 96, 160
NAMES = ExpertTap._fields
DTYPES = (torch.float32, torch.bfloat16)
SIZES = {"few slots": (1, 3), "sorted slots": (2, 17)}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_experts(top=124):
    g = torch.Generator().manual_seed(5)

    def packed(outer, inner):
        shape = (EXPERTS, outer, inner // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=g, dtype=torch.uint8)
        return blocks, torch.randint(top - 3, top + 1, shape, generator=g).to(torch.uint8)

    b1, b2 = draw(EXPERTS, 2 * D_FF, seed=6), draw(EXPERTS, D_MODEL, seed=7)
    up, down = packed(2 * D_FF, D_MODEL), packed(D_MODEL, D_FF)
    return Experts(*up, b1.bfloat16(), *down, b2.bfloat16())


@pytest.fixture(scope="module")
def plain():
    return drawn_experts()


@pytest.fixture(scope="module")
def experts(plain):
    return pack_for_triton(plain)


def inputs(batch=1, tokens=3, dtype=torch.float32, seed=1):
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


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("limit", [7.0, 0.75])
def test_every_stage_equals_the_reference(plain, experts, size, limit):
    given, ours, theirs = inputs(*size), Seen(*NAMES), Seen(*NAMES)
    assert (given[1].numel() > FEW) == (size == SIZES["sorted slots"])
    y = moe(*given, experts, limit=limit, tap=ours.tap)
    near(y, reference(*given, plain, limit=limit, tap=theirs.tap))
    assert list(ours.values) == list(NAMES)
    assert (theirs.values["gate"] > limit).any() and (theirs.values["up"] < -limit).any()
    for name in NAMES:
        assert ours.values[name].shape == theirs.values[name].shape
        assert ours.values[name].dtype == theirs.values[name].dtype
        near(ours.values[name], theirs.values[name])


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_of_words_give_the_same_bits(plain, experts, form):
    given = inputs(dtype=torch.bfloat16)
    assert torch.equal(moe(*given, pack_for_triton(plain, form=form)), moe(*given, experts))


def test_scales_above_128_are_decoded_too():
    plain = drawn_experts(top=131)
    given = inputs()
    near(moe(*given, plain), reference(*given, plain))


def test_bfloat16_is_rounded_once_at_post_and_once_at_the_end(plain, experts):
    x, indices, weights = inputs(dtype=torch.bfloat16)
    seen = Seen("gate", "up", "post", "out")
    y = moe(x, indices, weights, experts, tap=seen.tap)
    theirs = Seen(*NAMES)
    wanted = reference(x, indices, weights, plain, tap=theirs.tap)
    for name in ("gate", "up"):
        near(seen.values[name], theirs.values[name])
    # a float32 sum may end on the other side of a rounding: 1 ulp of bfloat16 then
    for found, expected in ((seen.values["post"], theirs.values["post"]), (y, wanted)):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-5)
        assert float((found != expected).double().mean()) <= 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [("gate",), ("post", "out"), NAMES])
def test_observing_changes_no_bit(experts, names, dtype):
    given = inputs(dtype=dtype)
    assert torch.equal(moe(*given, experts, tap=Seen(*names).tap), moe(*given, experts))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_has_the_same_bits_in_any_batch(experts, dtype):
    x, indices, weights = inputs(*SIZES["sorted slots"], dtype=dtype)
    together = moe(x, indices, weights, experts)
    for part in ((slice(1, 2), slice(7, 8)), (slice(0, 2), slice(4, 6))):
        assert torch.equal(moe(x[part], indices[part], weights[part], experts), together[part])


def test_one_expert_may_get_every_row(plain, experts):
    x, indices, weights = inputs(2, 17)
    indices = torch.stack((torch.full_like(indices[..., 0], 3), indices[..., 1] % 3), -1)
    near(moe(x, indices, weights, experts), reference(x, indices, weights, plain))


@pytest.mark.parametrize(
    "name, edit",
    [
        ("gate", lambda gate: gate * 2),
        ("up", lambda up: up.clone().fill_(-1.0)),
        ("post", lambda post: post * 1.5),
        ("out", lambda out: out + 1),
    ],
)
def test_edits_through_taps_are_used(plain, experts, name, edit):
    given, tap = inputs(), ExpertTap(**{name: edit})
    near(moe(*given, experts, tap=tap), reference(*given, plain, tap=tap))


def drawn_edits(indices):
    row = torch.full(indices.shape, -1)
    row[0, 1, 0], row[0, 4, 1] = 2, 0
    gain = torch.ones(EXPERTS, D_FF)
    gain[2, 5:40] = draw(35, seed=8)
    slot = torch.ones(indices.shape)
    slot[0, 3] = torch.tensor([0.0, -2.0])
    return ExpertEdits(slot, gain, row, draw(3, D_FF, seed=9))


@pytest.mark.parametrize("names", [(), ("gate",)])
def test_edits_as_data_do_what_taps_would(plain, experts, names):
    x, indices, weights = inputs(tokens=5)
    edits = drawn_edits(indices)

    def post(value):
        value = value * edits.neuron_gain[indices]
        picked = edits.post_table[edits.post_row.clamp_min(0)]
        return torch.where((edits.post_row >= 0)[..., None], picked, value)

    seen = Seen("post", *names)
    y = moe(x, indices, weights, experts, edits=edits, tap=seen.tap)
    near(y, reference(x, indices, weights * edits.slot_gain, plain, tap=ExpertTap(post=post)))
    assert torch.equal(y, moe(x, indices, weights, experts, edits=edits))
    assert torch.equal(seen.values["post"][0, 1, 0], edits.post_table[2])


@pytest.mark.parametrize("name", ["neuron_gain", "slot_gain"])
def test_edits_as_data_have_the_bits_of_taps(experts, name):
    """A gain of neurons does where it rounds nothing: 0 and 1."""
    given = inputs(tokens=5, dtype=torch.bfloat16)
    gain = getattr(drawn_edits(given[1]), name)
    gain = gain if name == "slot_gain" else (gain == 1).float()
    each = gain[given[1]] if name == "neuron_gain" else gain[..., None]
    seen, edits = Seen("out"), ExpertEdits(**{name: gain})
    found = moe(*given, experts, edits=edits)
    assert torch.equal(found, moe(*given, experts, edits=edits, tap=seen.tap))
    tapped = {"neuron_gain": "post", "slot_gain": "out"}[name]
    tap = ExpertTap(**{tapped: lambda x: (x.float() * each).to(x.dtype)})
    assert torch.equal(found, moe(*given, experts, tap=tap))
    assert not torch.equal(found, moe(*given, experts))


def test_what_edits_leave_alone_keeps_its_bits(experts):
    x, indices, weights = inputs(tokens=5, dtype=torch.bfloat16)
    edits = drawn_edits(indices)
    alone = ~(
        (indices == 2).any(-1) | (edits.post_row >= 0).any(-1) | (edits.slot_gain != 1).any(-1)
    )
    assert alone.any() and not alone.all()
    y, edited = moe(x, indices, weights, experts), moe(x, indices, weights, experts, edits=edits)
    assert torch.equal(y[alone], edited[alone])
    assert not torch.equal(y[~alone], edited[~alone])


def test_an_untapped_call_of_few_slots_is_three_kernels(experts, monkeypatch):
    given = inputs(dtype=torch.bfloat16)
    monkeypatch.setattr(launch, "counting", True)
    launch.launched.clear()
    moe(*given, experts)
    assert launch.launched == ["up_kernel", "down_kernel", "combine_kernel"]


def test_no_token_gives_no_row(experts):
    x, indices, weights = inputs()
    assert moe(x[:, :0], indices[:, :0], weights[:, :0], experts).shape == (1, 0, D_MODEL)


def test_what_does_not_fit_is_refused(experts):
    x, indices, weights = inputs()
    cases = {
        "x ends in 95": (x[..., 1:], indices, weights, None),
        "expected indices and weights": (x, indices[:, 1:], weights, None),
        "expected slot_gain": (x, indices, weights, ExpertEdits(slot_gain=torch.ones(1))),
        "come together": (x, indices, weights, ExpertEdits(post_row=indices)),
        "expected x in bfloat16": (x.half(), indices, weights, None),
        "takes no gradient": (
            x, indices, weights, ExpertEdits(neuron_gain=torch.ones(4, 160, requires_grad=True))
        ),
    }  # fmt: skip
    for message, (*given, edits) in cases.items():
        with pytest.raises(ValueError, match=message):
            moe(*given, experts, edits=edits)
