"""Triton's edited routing against the plain body: every verb, orders, replays, scopes."""

import pytest
import torch

from gptoss_kernels import route_edited as plain
from gptoss_kernels.route_edited import RouteProgram, RouteTap
from gptoss_kernels.triton.route import choose, weigh
from gptoss_kernels.triton.route_edited import route_edited

E, K = 7, 3
NAMES = ("BAN", "BIAS", "SWAP", "STEER", "SET_K", "REPLAY", "FORCE", "ZERO", "AROUND")
SWAP = {e: e for e in range(E)} | {0: 5, 5: 0}
PROGRAMS = {
    "ban": [("BAN", {1: 1, 4: 1})],
    "bias, swap": [("BIAS", {2: 3.0, 3: -4.0}), ("SWAP", SWAP)],
    "swap, bias": [("SWAP", SWAP), ("BIAS", {2: 3.0, 0: -1.0})],
    "ban, steer": [("BAN", {1: 1}), ("STEER", {4: 1, 0: -1, 1: 1})],
    "fewer": [("SET_K", 1)],
    "more": [("SET_K", 5), ("ZERO", {0: 1, 1: 1, 2: 1})],
    "force": [("FORCE", {0: 1, 3: 1}), ("AROUND", {0: 1, 1: 1, 2: 1})],
    "five, forced, banned": [
        ("SET_K", 5), ("FORCE", {2: 1, 6: 1}), ("BAN", {6: 1}), ("ZERO", {2: 1}),
        ("AROUND", {1: 1}),
    ],
    "replay, ban": [("REPLAY", {}), ("BAN", {0: 1})],
    "replay, force": [("REPLAY", {}), ("FORCE", {5: 1})],
    "replay, around": [("REPLAY", {}), ("AROUND", {6: 1})],
    "all gone": [("AROUND", dict.fromkeys(range(E), 1))],
}  # fmt: skip


def logits(dtype=torch.float32):
    return torch.randn(2, 3, E, generator=torch.Generator().manual_seed(0)).to(dtype)


def program(steps, scope, width=5, given=None):
    table, k = torch.zeros(len(steps), E), torch.zeros(len(steps), dtype=torch.int32)
    for nth, (name, said) in enumerate(steps):
        if name == "SET_K":
            k[nth] = said
        else:
            for expert, value in said.items():
                table[nth, expert] = value
    op = torch.tensor([NAMES.index(name) for name, _ in steps], dtype=torch.int32)
    recorded = torch.tensor([[[6, 0, 3, -1, -1]] * 3, [[1, 2, -1, -1, -1]] * 3])
    return RouteProgram(op, scope.expand(len(steps), 2, 3), table, k, width, recorded, given)


def everywhere():
    return torch.ones(2, 3, dtype=torch.bool)


def same(found, wanted, *, exact=False):
    assert torch.equal(found.indices, wanted.indices)
    tolerance = 0 if exact else 1e-6
    torch.testing.assert_close(found.weights, wanted.weights, rtol=0, atol=tolerance)


@pytest.fixture
def no_plain_body(monkeypatch):
    """The plain body reads steps on the host; here the kernel must do without."""

    def refuse(*_, **__):
        raise AssertionError("the plain body ran")

    body = plain.route_edited
    monkeypatch.setattr(plain, "route_edited", refuse)
    return body


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_verb_and_their_order_give_what_the_reference_gives(name, no_plain_body):
    steps = program(PROGRAMS[name], everywhere())
    same(route_edited(logits(), K, steps), no_plain_body(logits(), K, steps))


@pytest.mark.parametrize("name", ["bias, swap", "five, forced, banned", "replay, force"])
def test_bfloat16_logits_are_edited_in_float32(name, no_plain_body):
    x, steps = logits(torch.bfloat16), program(PROGRAMS[name], everywhere())
    same(route_edited(x, K, steps), no_plain_body(x, K, steps))


@pytest.mark.parametrize("name", PROGRAMS)
def test_tokens_out_of_scope_keep_their_bits(name):
    scope = everywhere()
    scope[0] = scope[1, 2] = False
    indices, weights = route_edited(logits(), K, program(PROGRAMS[name], scope))
    own = choose(logits(), K)
    assert torch.equal(indices[..., :K][~scope], own[~scope])
    assert torch.equal(weights[..., :K][~scope], weigh(logits(), own)[~scope])
    assert not weights[..., K:][~scope].any()


@pytest.mark.parametrize("shift", [0, 1])
def test_recorded_weights_are_used_where_the_choice_is_the_recorded(shift, no_plain_body):
    given = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
    given[1, 1] = -1
    steps = [("REPLAY", {}), ("BAN", {2 + shift: 1}), ("ZERO", {6: 1})]
    edit = program(steps, everywhere(), given=given)
    same(route_edited(logits(), K, edit), no_plain_body(logits(), K, edit))


def test_looking_gives_the_same_choice_and_bits():
    seen = []
    tap = RouteTap(weights=lambda weights: seen.append(weights) or weights)
    for name in ("more", "force", "replay, force"):
        edit = program(PROGRAMS[name], everywhere())
        looked, plainly = route_edited(logits(), K, edit, tap=tap), route_edited(logits(), K, edit)
        same(looked, plainly)
    assert len(seen) == 3


def test_gradients_are_the_references():
    grads = []
    for body in (route_edited, plain.route_edited):
        x = logits().requires_grad_()
        steps = program([("STEER", {1: 1}), ("AROUND", {1: 1})], everywhere())
        body(x, K, steps).weights.square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_a_width_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="1 <= k <= width <= 7 experts; got k = 3, width = 8"):
        route_edited(logits(), K, program([("SET_K", 2)], everywhere(), width=8))
