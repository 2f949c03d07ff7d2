"""Edited routing, against the same rules written token by token with lists."""

import math

import pytest
import torch

from gptoss_kernels import route_edited as edited
from gptoss_kernels.route import route
from gptoss_kernels.route_edited import RouteProgram, RouteTap, route_edited

E, K = 7, 3
OPS = {
    name: getattr(edited, name)
    for name in ("BAN", "BIAS", "SWAP", "STEER", "SET_K", "REPLAY", "FORCE", "ZERO", "AROUND")
}


def logits(seed=0):
    return torch.randn(2, 5, E, generator=torch.Generator().manual_seed(seed))


def program(*steps, width=K, recorded=None, recorded_weights=None):
    """Steps are (name, table or k, tokens [2, 5] or None)."""
    tables, tokens, ks = [], [], []
    for name, said, mask in steps:
        table = torch.zeros(E)
        if name == "SET_K":
            ks.append(said)
        else:
            ks.append(0)
            for expert, value in (said or {}).items():
                table[expert] = value
        if name == "SWAP":
            table = torch.arange(E).float()
            for a, b in said.items():
                table[a] = b
        tables.append(table)
        tokens.append(torch.ones(2, 5, dtype=torch.bool) if mask is None else mask)
    return RouteProgram(
        torch.tensor([OPS[name] for name, _, _ in steps], dtype=torch.int32),
        torch.stack(tokens), torch.stack(tables), torch.tensor(ks, dtype=torch.int32),
        width, recorded, recorded_weights,
    )  # fmt: skip


def softmax(values):
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    return [math.exp(v - top) / total for v in values]


def by_hand(row, steps):
    """One token: {expert: weight} in rank order, from plain Python lists."""
    scores = row.tolist()
    for name, said, _ in steps:
        if name == "BAN":
            scores = [-math.inf if e in said else s for e, s in enumerate(scores)]
        if name == "BIAS":
            scores = [s + said.get(e, 0) for e, s in enumerate(scores)]
        if name == "SWAP":
            scores = [scores[said.get(e, e)] for e in range(E)]
        if name == "STEER":
            alive = [s for s in scores if s > -math.inf]
            norm = math.log(sum(math.exp(s) for s in alive))
            scores = [s - norm for s in scores]
            alive = [s - norm for s in alive]
            high, low = max(alive) + 0.01, min(alive) - 0.01
            scores = [{1: high, -1: low}.get(said.get(e, 0), s) for e, s in enumerate(scores)]
    k, forced = K, set()
    for name, said, _ in steps:
        k = said if name == "SET_K" else k
        forced |= set(said) if name == "FORCE" else set()
    ranked = sorted(range(E), key=lambda e: (-scores[e], e))
    chosen = [e for e in ranked if e in forced] + [e for e in ranked if e not in forced]
    chosen = sorted(chosen[:k], key=ranked.index)
    weights = softmax([scores[e] for e in chosen])
    for name, said, _ in steps:
        if name in ("ZERO", "AROUND"):
            weights = [0.0 if e in said else w for e, w in zip(chosen, weights, strict=True)]
        if name == "AROUND" and sum(weights):
            weights = [w / sum(weights) for w in weights]
    return dict(zip(chosen, weights, strict=True))


PROGRAMS = {
    "ban": [("BAN", {1: 1, 4: 1}, None)],
    "bias": [("BIAS", {2: 1.5, 3: -4.0}, None)],
    "swap": [("SWAP", {0: 5, 5: 0}, None)],
    "steer": [("STEER", {6: 1, 2: -1}, None)],
    "fewer": [("SET_K", 1, None)],
    "more": [("SET_K", 5, None)],
    "force": [("FORCE", {0: 1, 3: 1}, None)],
    "zero": [("ZERO", {0: 1, 1: 1, 2: 1}, None)],
    "around": [("AROUND", {0: 1, 1: 1, 2: 1}, None)],
    "bias then swap": [("BIAS", {2: 3.0}, None), ("SWAP", {2: 5, 5: 2}, None)],
    "swap then bias": [("SWAP", {2: 5, 5: 2}, None), ("BIAS", {2: 3.0}, None)],
    "ban then steer": [("BAN", {1: 1}, None), ("STEER", {4: 1, 0: -1}, None)],
    "zero then ban": [("ZERO", {0: 1, 3: 1}, None), ("BAN", {1: 1}, None)],
    "zero then around": [("ZERO", {0: 1}, None), ("AROUND", {1: 1}, None)],
    "around then zero": [("AROUND", {1: 1}, None), ("ZERO", {0: 1}, None)],
    "five, forced, banned": [
        ("SET_K", 5, None), ("FORCE", {2: 1}, None), ("BAN", {6: 1}, None),
        ("ZERO", {2: 1}, None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_verb_and_their_order_equal_the_rules_by_hand(name):
    steps, x = PROGRAMS[name], logits()
    indices, weights = route_edited(x, K, program(*steps, width=5))
    for row in range(2):
        for place in range(5):
            expected = by_hand(x[row, place], steps)
            n = len(expected)
            assert indices[row, place, :n].tolist() == list(expected)
            torch.testing.assert_close(
                weights[row, place, :n], torch.tensor(list(expected.values())), rtol=0, atol=1e-6
            )
            assert not weights[row, place, n:].any()
            assert len(set(indices[row, place].tolist())) == 5


def test_order_matters_where_it_should():
    x = logits()
    one = route_edited(x, K, program(*PROGRAMS["bias then swap"]))
    other = route_edited(x, K, program(*PROGRAMS["swap then bias"]))
    assert not torch.equal(one.indices, other.indices)


@pytest.mark.parametrize("name", PROGRAMS)
def test_tokens_out_of_scope_keep_their_bits(name):
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 1] = mask[1, 4] = True
    steps = [(op, said, mask) for op, said, _ in PROGRAMS[name]]
    indices, weights = route_edited(logits(), K, program(*steps, width=5))
    plain = route(logits(), K)
    assert torch.equal(indices[..., :K][~mask], plain.indices[~mask])
    assert torch.equal(weights[..., :K][~mask], plain.weights[~mask])
    assert not weights[..., K:][~mask].any()
    whole = route_edited(logits(), K, program(*PROGRAMS[name], width=5))
    assert torch.equal(weights[mask], whole.weights[mask])


def recorded():
    return torch.tensor([[[6, 0, 3]] * 5, [[1, 2, -1]] * 5])


def test_a_replay_gives_the_recorded_experts_softmax_weights():
    x = logits()
    steps = program(("REPLAY", {}, None), recorded=recorded(),
                    recorded_weights=torch.full((2, 5, 3), -1.0))  # fmt: skip
    indices, weights = route_edited(x, K, steps)
    assert torch.equal(indices[0], recorded()[0])
    torch.testing.assert_close(weights[0], x[0][:, [6, 0, 3]].softmax(-1))
    assert torch.equal(indices[1, :, :2], recorded()[1, :, :2])
    torch.testing.assert_close(weights[1, :, :2], x[1][:, [1, 2]].softmax(-1))
    assert not weights[1, :, 2].any()


def test_a_replay_gives_recorded_weights_unless_a_hook_chose_others():
    given = torch.rand(2, 5, 3)
    steps = program(("REPLAY", {}, None), recorded=recorded(), recorded_weights=given)
    weights = route_edited(logits(), K, steps).weights
    assert torch.equal(weights[0], given[0])
    other = torch.tensor([[[5, 4, 2]] * 5] * 2)
    tap = RouteTap(indices=lambda _: other)
    weights = route_edited(logits(), K, steps, tap=tap).weights
    torch.testing.assert_close(weights[0], logits()[0][:, [5, 4, 2]].softmax(-1))


def test_a_banned_expert_is_not_replayed():
    steps = program(("REPLAY", {}, None), ("BAN", {0: 1}, None), recorded=recorded(),
                    recorded_weights=torch.full((2, 5, 3), -1.0))  # fmt: skip
    indices, weights = route_edited(logits(), K, steps)
    assert not (indices[0] == 0).any()
    assert torch.equal(indices[0, :, :2], torch.tensor([[6, 3]] * 5))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


def test_taps_see_and_change_each_stage():
    x, seen = logits(), {}

    def keep(name):
        def look(tensor):
            seen[name] = tensor
            return tensor

        return look

    tap = RouteTap(keep("logits"), keep("indices"), keep("weights"))
    out = route_edited(x, K, program(("BAN", {2: 1}, None)), tap=tap)
    assert (seen["logits"][..., 2] == -torch.inf).all()
    assert torch.equal(seen["indices"], out.indices)
    assert torch.equal(seen["weights"], out.weights)
    flat = RouteTap(logits=lambda t: t - t)
    assert (
        route_edited(x, K, program(("BIAS", {2: 9.0}, None)), tap=flat)
        .indices.eq(torch.arange(K))
        .all()
    )


def test_gradients_reach_the_logits_through_edits():
    x = logits().requires_grad_()
    steps = program(("STEER", {1: 1}, None), ("AROUND", {1: 1}, None), ("BAN", {0: 1}, None))
    route_edited(x, K, steps).weights.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()
