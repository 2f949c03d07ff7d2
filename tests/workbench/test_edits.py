"""Edits at work in the model: against a dense model written by hand, hooks, caches and scopes."""

import random
import warnings

import pytest
import torch

import gptoss_workbench as wb
from gptoss_hooks import (
    EditError,
    ablate,
    ban,
    bias,
    force,
    patch,
    replay,
    route_around,
    scale,
    set_k,
    steer,
    steer_experts,
    swap,
    zero,
)
from gptoss_hooks.edits import TieWarning
from gptoss_hooks.names import UnknownHook
from gptoss_kernels.backend import available
from gptoss_workbench.checkpoint.synthetic import random_tensors
from gptoss_workbench.harmony.voices import VOICES, VoiceTracker
from gptoss_workbench.nano.data import sample

LOGITS, INDICES, WEIGHTS = (
    f"blocks.1.mlp.hook_{x}" for x in ("router_logits", "expert_indices", "expert_weights")
)
E, K = 8, 4


@pytest.fixture(params=available("cpu"))
def small(request, make_model):
    """Two layers, one of them sliding; a token takes 4 of 8 experts."""
    kinds = ("sliding_attention", "full_attention")
    return make_model(
        backend=request.param, num_hidden_layers=2, layer_types=kinds, num_experts_per_tok=K
    )


@pytest.fixture
def by_hand(dense, small):
    """The dense model of `small`, with a function at each router stage of layer 1."""
    model = dense.Dense(small.config, random_tensors(small.config, 0))

    def run(tokens, **stages):
        names = {"logits": LOGITS, "indices": INDICES, "weights": WEIGHTS}
        return model(tokens, {names[stage]: f for stage, f in stages.items()})

    return run


def columns(experts, value):
    def change(x):
        x = x.clone()
        x[..., experts] = value(x[..., experts])
        return x

    return change


def without(experts, renormalise):
    """weights -> weights, with the slots of some experts emptied; needs the natural choice."""

    def change(weights, indices):
        left = weights * ~torch.isin(indices, torch.tensor(experts))
        return left / left.sum(-1, keepdim=True).clamp_min(1e-9) if renormalise else left

    return change


def swapped(x):
    order = torch.arange(E)
    order[[1, 5]] = order[[5, 1]]
    return x[..., order]


def steered(x):
    s = x.log_softmax(-1)
    out = s.clone()
    out[..., 2] = s.amax(-1) + 0.01
    out[..., 6] = s.amin(-1) - 0.01
    return out


def forced(logits):
    """Sets of experts with 3 in them, by sorting lists."""
    rows = []
    for row in logits.flatten(0, 1).tolist():
        ranked = sorted(range(E), key=lambda e: -row[e])
        best = ranked[:K] if 3 in ranked[:K] else [*ranked[: K - 1], 3]
        rows.append(sorted(best, key=ranked.index))
    return torch.tensor(rows).view(*logits.shape[:2], K)


ON_LOGITS = {
    "ban": (ban([0, 4], layers=1), columns([0, 4], lambda x: x - torch.inf)),
    "bias": (bias([0, 4], 2.5, layers=1), columns([0, 4], lambda x: x + 2.5)),
    "swap": (swap((1, 5), layers=1), swapped),
    "steer_experts": (steer_experts(2, 6, layers=1), steered),
}


@pytest.mark.parametrize("verb", ON_LOGITS)
def test_verbs_on_logits_equal_the_dense_model(small, by_hand, tokens, verb):
    edit, change = ON_LOGITS[verb]
    logits = small(tokens, edits=[edit])
    torch.testing.assert_close(logits, by_hand(tokens, logits=change), rtol=0, atol=2e-4)
    assert (logits - small(tokens)).abs().max() > 1e-2
    assert sums(small, tokens, edit).sub(1).abs().max() < 1e-5


def sums(model, tokens, *edits):
    """What each token's weights in layer 1 sum to."""
    point = ("expert_weights", 1)
    cache = model.run_with_cache(tokens, names_filter=[point], edits=edits)[1]
    return cache[point].sum(-1)


def test_verbs_on_weights_equal_the_dense_model(small, by_hand, tokens):
    cache = small.run_with_cache(tokens, names_filter=[INDICES, WEIGHTS])[1]
    indices, weights = cache[INDICES], cache[WEIGHTS]
    removed = (weights * torch.isin(indices, torch.tensor([0, 4, 5]))).sum(-1)
    for edit, renormalise in ((zero, False), (route_around, True)):
        change = without([0, 4, 5], renormalise)
        expected = by_hand(tokens, weights=lambda w, c=change: c(w, indices))
        chosen = edit([0, 4, 5], layers=1)
        torch.testing.assert_close(small(tokens, edits=[chosen]), expected, rtol=0, atol=2e-4)
        total = 1 - removed if edit is zero else torch.ones(2, 13)
        torch.testing.assert_close(sums(small, tokens, chosen), total)
    assert not sums(small, tokens, route_around(range(E), layers=1)).any()


def test_verbs_on_the_choice_equal_the_dense_model(small, by_hand, tokens):
    natural = small.run_with_cache(tokens, names_filter=[LOGITS])[1][LOGITS]
    chosen = forced(natural)
    new = natural.gather(-1, chosen).softmax(-1)
    expected = by_hand(tokens, indices=lambda _: chosen, weights=lambda _: new)
    out = small(tokens, edits=[force(3, layers=1)])
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-4)
    assert (out - small(tokens)).abs().max() > 1e-2
    for k in (2, 6):
        best = natural.argsort(-1, descending=True)[..., :k]
        new = natural.gather(-1, best).softmax(-1)
        expected = by_hand(tokens, indices=lambda _, b=best: b, weights=lambda _, w=new: w)
        edit = set_k(k, layers=1)
        torch.testing.assert_close(small(tokens, edits=[edit]), expected, rtol=0, atol=2e-4)
        torch.testing.assert_close(sums(small, tokens, edit), torch.ones(2, 13))


def test_edits_act_in_list_order(small, by_hand, tokens):
    raised = columns([1], lambda x: x + 3)
    pair = [bias(1, 3.0, layers=1), swap((1, 5), layers=1)]
    orders = {
        "bias first": (pair, lambda x: swapped(raised(x))),
        "swap first": (pair[::-1], lambda x: raised(swapped(x))),
    }
    outs = []
    for edits, change in orders.values():
        outs.append(small(tokens, edits=edits))
        torch.testing.assert_close(outs[-1], by_hand(tokens, logits=change), rtol=0, atol=2e-4)
    assert (outs[0] - outs[1]).abs().max() > 1e-2


def test_a_replay_brings_a_routing_back(small, tokens):
    clean = small.trace(tokens)
    edits = [replay(clean, weights=True), bias(1, 5.0)]
    torch.testing.assert_close(small(tokens, edits=edits), small(tokens), rtol=0, atol=1e-5)
    other = small.trace(tokens, edits=[ban([0, 1])])
    again = small.trace(tokens, edits=[replay(other)])
    assert torch.equal(again.routing.experts, other.routing.experts)
    assert not torch.equal(again.routing.experts, clean.routing.experts)
    with pytest.raises(EditError, match=r"other tokens.*give trace\.routing"):
        small(tokens.flip(1), edits=[replay(clean)])
    small(tokens.flip(1), edits=[replay(clean.routing)])
    with pytest.raises(EditError, match="recorded 2 rows, but 1 run"):
        small(tokens[:1], edits=[replay(clean)])
    with pytest.raises(EditError, match="recorded 13 places a row, but 14 run"):
        small(torch.cat([tokens, tokens[:, :1]], 1), edits=[replay(clean.routing)])
    with pytest.raises(EditError, match="recorded 13 places a row, but 9 run"):
        small(tokens[:, :9], edits=[replay(clean.routing)])
    small(tokens[:, :9], edits=[replay(clean)])  # the same tokens, as far as they go
    small(tokens[:, :9], edits=[replay(clean.routing, tokens=slice(0, 9))])


def test_edits_equal_hooks_that_do_the_same(small, tokens):
    vector = torch.randn(64)

    def add(x, hook):
        x[:, 3:6] += 2 * vector
        return x

    def drop(x, hook):
        x[..., [0, 4]] = -torch.inf
        return x

    def halve(x, hook):
        x[:, :, 1] *= 0.5
        return x

    pairs = [
        (steer("resid_mid", vector, 2.0, layers=0, tokens=[3, 4, 5]),
         ("blocks.0.hook_resid_mid", add)),
        (ban([0, 4], layers=1), (LOGITS, drop)),
        (scale("z", 0.5, layers=1, heads=1), ("blocks.1.attn.hook_z", halve)),
    ]  # fmt: skip
    for edit, hook in pairs:
        expected = small.run_with_hooks(tokens, fwd_hooks=[hook])
        torch.testing.assert_close(small(tokens, edits=[edit]), expected, rtol=0, atol=1e-5)
    both = small.run_with_hooks(tokens, fwd_hooks=[pairs[1][1]], edits=[pairs[0][0]])
    other = small(tokens, edits=[pairs[0][0], pairs[1][0]])
    torch.testing.assert_close(both, other, rtol=0, atol=1e-5)


def test_hooks_see_what_edits_made_and_act_after_them(small, tokens):
    cache = small.run_with_cache(tokens, edits=[ban(2), scale("resid_mid", 0.0, layers=0)])[1]
    assert not (cache["expert_indices", 1] == 2).any()
    assert not cache["resid_mid", 0].any()

    def bring_back(x, hook):
        x[..., 2] = 100.0
        return x

    hook = [(LOGITS, bring_back)]
    with small.hooks(fwd_hooks=hook):
        cache = small.run_with_cache(tokens, names_filter=[INDICES], edits=[ban(2)])[1]
    assert (cache[INDICES][..., 0] == 2).all()


def test_expert_slots_are_ablated_by_name(small, tokens):
    edits = [ablate("expert_out", layers=1, experts=[0, 4])]
    torch.testing.assert_close(
        small(tokens, edits=edits), small(tokens, edits=[zero([0, 4], layers=1)]),
        rtol=0, atol=1e-5,
    )  # fmt: skip
    mean = torch.randn(64)
    cache = small.run_with_cache(tokens, edits=[ablate("attn_out", to=mean, tokens=-1)])[1]
    assert torch.equal(cache["attn_out", 1][:, -1], mean.expand(2, -1))
    assert not torch.equal(cache["attn_out", 1][:, 0], mean.expand(2, -1))


def test_a_patch_brings_activations_from_another_run(small, tokens):
    other = small.run_with_cache(tokens.flip(1))[1]
    cache = small.run_with_cache(tokens, edits=[patch("resid_post", other, layers=0)])
    torch.testing.assert_close(cache[0], small(tokens.flip(1)), rtol=0, atol=1e-5)
    some = small.run_with_cache(tokens, edits=[patch("z", other, layers=1, tokens=[2], heads=[0])])
    kept = small.run_with_cache(tokens)[1]
    assert torch.equal(some[1]["z", 1][:, 2, 0], other["z", 1][:, 2, 0])
    assert torch.equal(some[1]["z", 1][:, 3], kept["z", 1][:, 3])


def test_a_recording_of_another_length_needs_to_be_told_where_it_goes(small, tokens):
    kept = small.run_with_cache(tokens)[1]
    for length in (12, 11):
        short, verb = tokens[:, :length], "patch blocks.1.hook_resid_pre"
        with pytest.raises(EditError, match=f"{verb}: recorded 13 places a row, but {length} run"):
            small(short, edits=[patch("resid_pre", kept, layers=1)])
    with pytest.raises(EditError, match="recorded 13 places a row, but 14 run"):
        small(torch.cat([tokens, tokens[:, :1]], 1), edits=[steer("z", kept, layers=1)])
    edit = patch("resid_pre", kept, layers=1, tokens=[2])
    other = small.run_with_cache(tokens.flip(1)[:, :12], edits=[edit])[1]
    assert torch.equal(other["resid_pre", 1][:, 2], kept["resid_pre", 1][:, 2])
    assert not torch.equal(other["resid_pre", 1][:, 3], kept["resid_pre", 1][:, 3])


def test_padding_makes_no_recording_another_length(small, tokens):
    kept = small.run_with_cache(tokens)[1]
    wider = torch.nn.functional.pad(tokens, (0, 2))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (0, 2))
    edit = patch("resid_pre", kept, layers=1)
    out = small(wider.flip(0), attention_mask=mask, edits=[edit])[:, :13]
    torch.testing.assert_close(out, small(tokens), rtol=0, atol=1e-4)


def test_other_rows_keep_their_result(small, tokens):
    base = small(tokens)
    out = small(tokens, edits=[ban([0, 1], tokens=12), set_k(6, layers=0, tokens=12)])
    torch.testing.assert_close(out[:, :12], base[:, :12], rtol=0, atol=1e-5)
    assert (out[:, 12] - base[:, 12]).abs().max() > 1e-2


def test_contexts_nest_and_leave_the_model_as_it_was(small, tokens):
    base = small(tokens)
    with small.edited(ban(0)):
        inner = small(tokens, edits=[zero(1)])
        with pytest.raises(RuntimeError), small.edited(zero(1)):
            assert torch.equal(small(tokens), inner)
            raise RuntimeError
        assert small.active_edits == (ban(0),)
        trace = small.trace(tokens, edits=[zero(1)])
        assert trace.provenance["edits"] == ["ban(0)", "zero(1)"]
    assert small.active_edits == ()
    assert torch.equal(small(tokens), base)
    assert torch.equal(small(tokens, edits=[]), base)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda: force([0, 1, 2, 3, 4]), "5 experts are forced in layer 0.*takes 4.*set_k"),
        (lambda: ban(None), "only 0 of 8 are left"),
        (lambda: ban([0, 1, 2, 3, 4], tokens=3), "only 3 of 8 are left"),
        (lambda: ban(8), "experts are 0 to 7; got 8"),
        (lambda: zero(1, layers=2), "layers are 0 to 1; got 2"),
        (lambda: set_k(9), "8 experts; got k = 9"),
        (lambda: scale("sink", 0.0), "read-only: edit attn.hook_pattern instead"),
        (lambda: ablate("expert_indices"), "ban, force, swap"),
        (lambda: ablate("resid_post", heads=1), "no axis for heads="),
        (lambda: ablate("z", heads=8), "heads are 0 to 7; got 8"),
        (lambda: zero(1, tokens=13), "positions 0 to 12"),
        (lambda: replay(torch.zeros(1, 2, 13, 4).long()), "1 layers, the model has 2"),
        (lambda: replay(torch.zeros(1, 2, 13, 4).long(), layers=0), "repeats"),
        (lambda: len, "edits= takes values"),
        (lambda: zero(1, channels="analysis"), "no tokenizer"),
        (lambda: steer("resid_post", [1.0, 2.0], layers=0), "does not broadcast"),
    ],
)
def test_what_cannot_act_raises(small, tokens, edit, said):
    with pytest.raises(ValueError, match=said):
        small(tokens, edits=[edit()])
    assert small.active_edits == ()


def test_impossible_unions_and_unknown_sites_raise(small, tokens):
    with pytest.raises(EditError, match="only 3 of 8"):
        small(tokens, edits=[ban([0, 1, 2]), ban([3, 4])])
    with pytest.raises(EditError, match="expert 3 of layer 0 is banned by another"):
        small(tokens, edits=[force(3), ban(3)])
    with pytest.raises(UnknownHook, match=r"Near: .*hook_resid_post"):
        small(tokens, edits=[scale("resid_pots", 2.0, layers=1)])
    small(tokens, edits=[ban([0, 1, 2, 3], tokens=0), ban([4, 5, 6, 7], tokens=1)])


def test_more_promotions_than_slots_warn(small, tokens):
    with pytest.warns(TieWarning, match="promotes 5 experts in layer 1.*takes 4"):
        small(tokens, edits=[steer_experts(range(5), layers=1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(tokens, edits=[steer_experts(range(4), layers=1)])


def test_chunks_and_padding_do_not_move_a_scope(small, tokens):
    edits = [ban([0, 1], tokens=slice(2, 9)), steer("resid_post", torch.ones(64), tokens=[3, 8])]
    whole, cache = small(tokens, edits=edits), small.new_cache()
    parts = [small(part, past_key_values=cache, edits=edits) for part in tokens.split((5, 6, 2), 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=2e-5)
    left = torch.cat([torch.zeros(2, 2, dtype=torch.long), tokens], 1)
    mask = torch.ones_like(left).bool()
    mask[:, :2] = False
    padded = small(left, attention_mask=mask, edits=edits)[:, 2:]
    torch.testing.assert_close(padded, whole, rtol=0, atol=2e-5)
    with pytest.raises(EditError, match="negative positions count from a row's end"):
        small(tokens, past_key_values=small.new_cache(), edits=[ban(0, tokens=-1)])


def test_a_scope_without_a_token_raises_and_says_what_is_there(nano):
    text = "Given E is 7."
    with pytest.raises(EditError, match="acted on no token; no token here is 'E'; there is ' E'"):
        nano(text, edits=[ban([0, 1], tokens="E")])
    with pytest.raises(EditError, match="the longest row has 5 tokens"):
        nano(text, edits=[ban([0, 1], tokens=slice(100, 200))])
    with pytest.raises(EditError, match="the voices here are final"):
        nano("<|start|>assistant<|channel|>final<|message|>7", edits=[ban(0, channels="analysis")])
    nano(text, edits=[ban([0, 1], tokens=" E")])


def test_texts_of_one_block_may_each_lack_what_an_edit_means(nano):
    with nano.edited(ban([0, 1], tokens=" E")):
        nano("Given E is 7.")
        nano("Given B is 7.")
    with (
        pytest.raises(EditError, match="no token here is ' E'"),
        nano.edited(ban([0, 1], tokens=" E"), ban(3)),
    ):
        nano("Given B is 7.")
        nano("Given C is 7.")
    with nano.edited(ban([0, 1], tokens=" E")):
        assert nano.active_edits  # nothing ran
    assert nano.generate("Given B", max_new_tokens=2, edits=[ban(0, tokens=" E")])
    assert nano.active_edits == ()


# -- channels ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story():
    return sample(random.Random(3), task="vars", lang="de", effort="medium", n=2)


def test_voices_follow_the_spans_and_never_change(nano, story):
    ids = nano.tokenizer.encode(story.text())
    voices = VoiceTracker(nano.tokenizer).read(ids)
    labels = wb.harmony.spans(ids, nano.tokenizer).labels
    for label, voice in zip(labels, voices, strict=True):
        spoken = label.channel or label.role or "text"
        assert voice == (spoken if label.part == "body" else "header")
    assert {"analysis", "final", "user", "system", "header"} <= set(voices)
    for stop in (5, len(ids) // 2):
        tracker = VoiceTracker(nano.tokenizer)
        assert tracker.read(ids[:stop]) + tracker.copy().read(ids[stop:]) == voices


@pytest.mark.parametrize("text", ["assistant of mine", "plain words to say", "<|end|>a<|start|>b"])
def test_voices_of_odd_streams_depend_on_the_past_only(nano, text):
    ids = nano.tokenizer.encode(text) * 12
    voices = VoiceTracker(nano.tokenizer).read(ids)
    for stop in range(1, len(ids)):
        assert VoiceTracker(nano.tokenizer).read(ids[:stop]) == voices[:stop]


def test_a_channel_scope_acts_on_that_channel_only(nano, story):
    ids = torch.tensor([nano.tokenizer.encode(story.text())])
    voices = VoiceTracker(nano.tokenizer).read(ids[0].tolist())
    at = torch.tensor([voice == "analysis" for voice in voices])
    with torch.no_grad():
        cache = nano.run_with_cache(
            ids, names_filter=["expert_indices"], edits=[ban([0, 5], channels="analysis")]
        )[1]
    first = cache["expert_indices", 0][0]
    assert not torch.isin(first[at], torch.tensor([0, 5])).any()
    assert torch.isin(first[~at], torch.tensor([0, 5])).any()
    with pytest.raises(EditError, match=r"channels are text, system.*got 'thinking'"):
        nano(ids, edits=[ban(0, channels="thinking")])
    with pytest.raises(EditError, match="no token is that text"):
        nano(ids, edits=[ban(0, tokens="no such token as this")])


def test_cached_generation_with_a_channel_scope_equals_uncached(nano, story):
    prompt = torch.tensor([nano.tokenizer.encode(story.prompt_text())])
    edits = [ban([4, 5, 6], channels="analysis"), scale("resid_mid", 0.9, channels="header")]
    out = {
        cached: nano.generate(
            prompt, max_new_tokens=7, use_past_kv_cache=cached, edits=edits, chunk=16
        )
        for cached in (True, False)
    }
    assert torch.equal(out[True], out[False])
    pieces = list(nano.stream(prompt, max_new_tokens=3, edits=edits))
    assert [p.token for p in pieces] == out[True][0, prompt.shape[1] :][:3].tolist()
    assert nano.active_edits == () and not nano.text_grows


def test_edits_of_logits_act_where_only_the_last_are_kept(small, tokens):
    recorded = small(tokens).flip(-1)
    for edit in (
        scale("unembed.hook_out", -1.0, tokens=slice(3, None)),
        patch("unembed.hook_out", recorded, tokens=[tokens.shape[1] - 1]),
    ):
        whole = small(tokens, edits=[edit])
        last = small(tokens, edits=[edit], logits_to_keep=2)
        torch.testing.assert_close(last, whole[:, -2:], rtol=0, atol=2e-5)
    written = small.generate(tokens, max_new_tokens=3, edits=[scale("unembed.hook_out", -1.0)])
    least = small(written[:, :-1])[:, -3:].argmin(-1)
    assert torch.equal(written[:, -3:], least)


# -- what verbs say of themselves ----------------------------------------------------------------


@pytest.mark.parametrize("verb", [wb.ban, wb.zero, wb.force, wb.set_k, wb.replay, wb.steer])
def test_a_verb_documents_where_it_acts(verb):
    said = verb.__doc__
    assert all(f"    {name}:" in said for name in ("layers", "tokens", "channels"))
    assert ("heads, neurons, experts:" in said) == (verb is wb.steer)
    assert all(f'"{voice}"' in said for voice in VOICES)


def test_a_full_name_takes_no_layers():
    with pytest.raises(EditError, match="names its block already; leave out layers=2"):
        scale("blocks.1.hook_resid_post", 2.0, layers=2)
