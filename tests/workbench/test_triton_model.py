"""The whole model on Triton's kernels, interpreted: right, and true to the promises bit for bit.

Two layers of odd sizes, since a forward pass takes the interpreter a second; `compile` runs more.
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_hooks.points import EditError
from gptoss_kernels.triton import launch
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.decoder import Decoder
from gptoss_workbench.model import GptOss

ODD = replace(
    TINY,
    vocab_size=70,
    hidden_size=96,
    intermediate_size=64,
    num_hidden_layers=2,
    layer_types=alternating_layers(2),
    num_attention_heads=6,
    num_local_experts=5,
    sliding_window=4,
)
TENSORS = random_tensors(ODD, seed=0)


@pytest.fixture(scope="module")
def model():
    """In bfloat16, as released."""
    return GptOss(ODD, TENSORS, backend="triton")


@pytest.fixture(scope="module")
def pair():
    """In float32: on Triton's kernels, and the reference."""
    return [GptOss(ODD, TENSORS, dtype=torch.float32, backend=b) for b in ("triton", "reference")]


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(3, 70, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clean(model, tokens):
    with torch.no_grad():
        return model(tokens)


def apart(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# -- right ---


def test_logits_routes_and_every_activation_are_those_of_the_reference(pair, tokens):
    with torch.no_grad():
        (found, ours), (wanted, theirs) = (
            each.run_with_cache(tokens, names_filter=lambda name: True) for each in pair
        )
    assert apart(found, wanted) <= 1e-5 and list(ours) == list(theirs)
    for name, activation in theirs.items():
        if name.endswith("expert_indices"):
            assert torch.equal(ours[name], activation), name
        seen = activation.abs() < 1e30  # hidden scores hold float32's minimum
        assert apart(ours[name][seen], activation[seen]) <= 1e-5, name


def test_bfloat16_is_as_near_as_its_rounding(model, tokens, pair):
    plain = GptOss(ODD, TENSORS, backend="reference")
    with torch.no_grad():
        exact = pair[1](tokens)
        assert apart(model(tokens), exact) <= 1.2 * apart(plain(tokens), exact)


def test_gradients_reach_the_embedding_through_packed_experts(pair, tokens):
    found = []
    for each in pair:
        kept = {}
        logits = each.run_with_hooks(
            tokens[:1, :5],
            bwd_hooks=[("hook_embed", lambda g, hook, kept=kept: kept.update(grad=g))],
        )
        logits[0, -1, 5].backward()
        found.append(kept["grad"])
    assert apart(*found) <= 1e-4


# -- 1: observing changes nothing ---


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_observing_everything_changes_no_bit(model, tokens, clean, grad):
    with torch.set_grad_enabled(grad):
        seen = model.run_with_hooks(
            tokens, fwd_hooks=[(lambda name: True, lambda tensor, hook: tensor)]
        )
    assert torch.equal(seen, clean)


@pytest.mark.compile
@pytest.mark.parametrize("part", ["attn_scores", "pattern", "sink", "gate", "up", "post", "out"])
def test_observing_one_part_of_a_fused_kernel_changes_no_bit(model, tokens, clean, part):
    with torch.no_grad():
        seen, cache = model.run_with_cache(tokens, names_filter=lambda n: n.endswith(f"_{part}"))
    assert len(cache) >= 2 and torch.equal(seen, clean)


@pytest.mark.compile
def test_observing_any_one_point_changes_no_bit(model, tokens):
    few = tokens[:1, :3]
    with torch.no_grad():
        clean = model(few)
        for name in model.hook_dict:
            seen = model.run_with_hooks(few, fwd_hooks=[(name, lambda x, hook: x)])
            assert torch.equal(seen, clean), name


# -- 2: company changes nothing ---


def test_the_batch_changes_no_bit(model, tokens, clean):
    with torch.no_grad():
        assert torch.equal(model(tokens[1:])[0], clean[1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_bit(model, tokens, clean, side):
    mask = torch.ones(2, 10, dtype=torch.bool)
    padded = torch.full((2, 10), 3)
    mask[0, slice(0, 3) if side == "left" else slice(7, 10)] = False
    padded[0, mask[0]] = tokens[0]
    padded[1, :7] = tokens[1]
    with torch.no_grad():
        together = model(padded, attention_mask=mask)
    assert torch.equal(together[0, mask[0]], clean[0]) and torch.equal(together[1, :7], clean[1])
    assert together.isfinite().all()


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.compile), 3])
def test_chunks_change_no_bit(model, tokens, clean, size):
    cache = model.new_cache()
    with torch.no_grad():
        parts = [model(part, past_key_values=cache) for part in tokens.split(size, 1)]
    assert torch.equal(torch.cat(parts, 1), clean)


@pytest.mark.compile
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    left=st.booleans(),
    chunk=st.integers(1, 5),
    observed=st.frozensets(st.sampled_from(["pattern", "router_logits", "gate", "out", "scale"])),
    seed=st.integers(0, 99),
)
def test_a_row_has_the_same_bits_however_it_is_run(
    pair, model, dtype, lengths, left, chunk, observed, seed
):
    model = model if dtype == torch.bfloat16 else pair[0]
    longest, place = max(lengths), torch.arange(max(lengths))
    drawn = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 70, (len(lengths), longest), generator=drawn)
    length = torch.tensor(lengths)[:, None]
    mask = place >= longest - length if left else place < length
    names = [name for name in model.hook_dict if observed and name.endswith(tuple(observed))]
    cache = model.new_cache()
    pieces = zip(tokens.split(chunk, 1), mask.split(chunk, 1), strict=True)
    with torch.no_grad(), model.hooks([(name, lambda x, hook: None) for name in names]):
        parts = [model(t, attention_mask=m, past_key_values=cache) for t, m in pieces]
    for row, logits in enumerate(torch.cat(parts, 1)):
        with torch.no_grad():
            alone = model(tokens[row, mask[row]][None])[0]
        assert torch.equal(logits[mask[row]], alone)


# -- decoding at fixed addresses ---


class NoWaiting(TorchDispatchMode):
    """Refuses operators that bring a number back to the host: a CUDA graph cannot hold them."""

    refused = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.refused), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def test_a_step_has_the_bits_of_the_whole_and_never_waits(model, tokens, clean):
    cache = model.new_cache()
    with torch.no_grad():
        model(tokens[:, :4], past_key_values=cache)
    decoder = Decoder(model, cache, room=7)
    for i in range(4, 7):
        decoder.cache.make_room(1)
        step, on = tokens[:, i : i + 1], torch.ones(2, 1, dtype=torch.bool)
        decoder.given = torch.stack([step[:, 0], on[:, 0].long()])
        with NoWaiting(), torch.no_grad():
            decoder._run()
        decoder.cache.advance(on, step, counted=True)
        assert torch.equal(decoder.logits, clean[:, i])


def test_waiting_is_noticed():
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        bool(torch.ones(1).any())


# -- 3 and 5: edits that cannot act, and leaving ---


def test_an_edit_that_cannot_act_raises_and_names_one_that_can(model, tokens):
    with pytest.raises(EditError, match=r"hook_sink is read-only: edit attn.hook_pattern"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_sink", lambda x, hook: x + 1)])
    assert not [name for name, point in model.hook_dict.items() if point.observed]


def test_an_exception_in_a_hook_leaves_the_model_as_it_was(model, tokens, clean):
    def fail(tensor, hook):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ExitStack() as leaving:
        leaving.enter_context(model.hooks([("blocks.1.mlp.hook_expert_post", fail)]))
        model(tokens)
    with torch.no_grad():
        assert torch.equal(model(tokens), clean)


# -- 4: you pay for what you observe ---


@pytest.fixture
def launches(monkeypatch):
    """launches(run): names of the kernels that a call starts, counted."""

    def count(run):
        monkeypatch.setattr(launch, "counting", True)
        launch.launched.clear()
        with torch.no_grad():
            run()
        monkeypatch.setattr(launch, "counting", False)
        return Counter(launch.launched)

    return count


@pytest.mark.compile
def test_an_observed_part_costs_its_own_layer_alone(model, tokens, launches):
    unobserved = launches(lambda: model(tokens))
    layers = ODD.num_hidden_layers
    assert unobserved["attend_kernel"] == unobserved["up_kernel"] == layers
    assert not [name for name in unobserved if "pattern" in name or "score" in name]
    for point, more in (
        ("attn.hook_pattern", 1),
        ("attn.hook_sink", 0),
        ("mlp.hook_expert_post", 0),
        ("mlp.hook_expert_out", 0),
        ("mlp.hook_expert_gate", 1),
    ):
        name = f"blocks.1.{point}"
        seen = launches(lambda name=name: model.run_with_cache(tokens, names_filter=name))
        assert sum(seen.values()) - sum(unobserved.values()) == more, (point, seen - unobserved)


def test_keys_are_placed_once_for_all_layers_that_share_them(model, tokens, launches):
    assert launches(lambda: model(tokens[:1, :3]))["_places_kernel"] == 1
    cache = model.new_cache()
    with torch.no_grad():
        model(tokens[:1, :2], past_key_values=cache)
    decoder, on = Decoder(model, cache, room=7), torch.ones(1, 1, dtype=torch.bool)
    for i in (2, 3):
        step = launches(lambda i=i: decoder.step(tokens[:1, i : i + 1], on))
        assert step["_places_kernel"] == 2  # a sliding kind, a full one


def test_the_route_and_the_residual_cost_no_kernel(model, tokens, launches):
    common = ("hook_resid_post", "hook_router_logits", "hook_expert_indices", "hook_expert_weights")
    unobserved = launches(lambda: model(tokens))
    kept = lambda name: name.endswith(common)  # noqa: E731
    assert launches(lambda: model.run_with_cache(tokens, names_filter=kept)) == unobserved
