"""Decoding at fixed addresses: the bits of ordinary decoding, nothing moves, nothing is missed."""

import weakref

import pytest
import torch

from gptoss_hooks import EditError, ban, bias, force, replay, scale, steer
from gptoss_kernels.backend import available
from gptoss_workbench import decoder, fixed_cache
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.decoder import Decoder
from gptoss_workbench.fixed_cache import FixedCache

PROMPT = 11


@pytest.fixture(params=available("cpu"))
def model(request, make_model):
    return make_model(backend=request.param, num_hidden_layers=4, layer_types=alternating_layers(4))


@pytest.fixture(autouse=True)
def little_slack(monkeypatch):
    """Windows of 8 move to the front every 5 tokens, so a short test sees it often."""
    monkeypatch.setattr(fixed_cache, "SLACK", 5)


def draw(rows, length, seed=0):
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def prefilled(model, tokens, mask):
    cache = model.new_cache()
    with torch.no_grad():
        model(tokens, attention_mask=mask, past_key_values=cache, return_type=None)
    return cache


@pytest.fixture
def ragged():
    """Two rows, the second of 4 tokens behind padding; the second stands still for three steps."""
    mask = torch.ones(2, PROMPT, dtype=torch.bool)
    mask[1, :7] = False
    steps = torch.ones(2, 24, dtype=torch.bool)
    steps[1, 20:23] = False
    return draw(2, PROMPT), mask, draw(2, 24, seed=1), steps


def test_steps_have_the_bits_of_ordinary_decoding(model, ragged):
    tokens, mask, more, on = ragged
    plain = prefilled(model, tokens, mask)
    fixed = Decoder(model, prefilled(model, tokens, mask), room=PROMPT + 24)
    for i in range(24):
        step, was = more[:, i : i + 1], on[:, i : i + 1]
        with torch.no_grad():
            wanted = model(step, attention_mask=was, past_key_values=plain)[:, -1]
        found = fixed.step(step, was)
        real = was[:, 0]
        if model.backend == "native":
            assert torch.equal(found[real], wanted[real])
        torch.testing.assert_close(found[real], wanted[real])
    assert fixed.cache.lengths.tolist() == plain.lengths.tolist() == [35, 25]
    assert fixed.cache.seen == 35 and len(fixed.cache) == 35


def test_nothing_moves(model, ragged):
    tokens, mask, more, on = ragged
    fixed = Decoder(model, prefilled(model, tokens, mask), room=PROMPT + 24)
    places = [
        each.data_ptr()
        for layer in fixed.cache.layers
        for each in (layer.k, layer.v, layer.place.positions, layer.place.next)
    ]
    for i in range(24):
        fixed.step(more[:, i : i + 1], on[:, i : i + 1])
    assert places == [
        each.data_ptr()
        for layer in fixed.cache.layers
        for each in (layer.k, layer.v, layer.place.positions, layer.place.next)
    ]
    sliding, full = fixed.cache.layers[:2]
    assert sliding.k.shape[1] == 7 + 5 and full.k.shape[1] == PROMPT + 24


def test_chunks_go_through_a_fixed_cache_too(model, ragged):
    tokens, mask, more, _ = ragged
    fixed = FixedCache(prefilled(model, tokens, mask), model.config, room=PROMPT + 4)
    plain = prefilled(model, tokens, mask)
    with torch.no_grad():
        found = model(more[:, :4], past_key_values=fixed)
        wanted = model(more[:, :4], past_key_values=plain)
    torch.testing.assert_close(found, wanted)


def test_a_fixed_cache_leaves_nothing_of_the_one_it_was_made_from(model, ragged):
    """Else the keys of a long prompt lie in memory twice."""
    tokens, mask, _, _ = ragged
    plain = model.new_cache(room=PROMPT + 24)
    with torch.no_grad():
        model(tokens, attention_mask=mask, past_key_values=plain, return_type=None)
    held = [weakref.ref(arena.store) for arena in plain.layers[1]._arenas]
    assert all(store() is not None for store in held)
    FixedCache(plain, model.config, room=PROMPT + 24)
    assert [store() for store in held] == [None] * 3 and plain.nbytes == 0


def test_a_full_cache_says_so(model, ragged):
    tokens, mask, more, on = ragged
    fixed = Decoder(model, prefilled(model, tokens, mask), room=PROMPT + 1)
    fixed.step(more[:, :1], on[:, :1])
    with pytest.raises(ValueError, match="12 places are used up; expected room for 1 more"):
        fixed.step(more[:, 1:2], on[:, 1:2])


@pytest.fixture
def everywhere(monkeypatch):
    """Generation takes the decoder on this CPU too, and says how many steps it made."""
    made, step = [], Decoder.step
    monkeypatch.setattr(decoder, "worthwhile", lambda model: True)
    monkeypatch.setattr(Decoder, "step", lambda *args: made.append(1) or step(*args))
    return made


@pytest.mark.parametrize("edits", [(), (ban(1), force(2, layers=1, tokens=slice(12, 15)))])
def test_generation_writes_the_same(model, everywhere, monkeypatch, edits):
    found = model.generate(draw(1, PROMPT), max_new_tokens=20, edits=edits, stop_at_eos=False)
    assert len(everywhere) == 19
    monkeypatch.undo()
    wanted = model.generate(draw(1, PROMPT), max_new_tokens=20, edits=edits, stop_at_eos=False)
    assert torch.equal(found, wanted)


STORY = [
    ban(range(12), channels="analysis"),
    scale("resid_mid", 0.9, channels="header"),
    steer("mlp_out", torch.ones(128), 0.3, layers=1, tokens=slice(45, 60)),
]


def test_voices_are_followed_inside_a_step(nano, everywhere, monkeypatch):
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    options = {"max_new_tokens": 24, "stop_at_eos": False, "return_type": "tokens"}
    found = nano.generate(messages=question, edits=STORY, **options)
    assert len(everywhere) == 23
    monkeypatch.undo()
    wanted = nano.generate(messages=question, edits=STORY, **options)
    plain = nano.generate(messages=question, edits=STORY[1:], **options)
    assert torch.equal(found, wanted) and not torch.equal(found, plain)


def test_a_replay_ends_inside_a_step_where_its_recording_does(model, everywhere, monkeypatch):
    other = model.trace(draw(1, PROMPT + 8, seed=5), edits=[ban([0, 1, 2])])
    edits = [replay(other.routing), bias(3, 2.0, tokens=slice(15, 17))]
    options = {"max_new_tokens": 14, "stop_at_eos": False, "edits": edits}
    found = model.generate(draw(1, PROMPT), **options)
    assert len(everywhere) == 13
    monkeypatch.undo()
    assert torch.equal(found, model.generate(draw(1, PROMPT), **options))


def test_what_cannot_act_raises_at_the_token_it_meets(model, everywhere):
    n = model.config.num_local_experts
    edits = [ban(list(range(n - 1))), ban(n - 1, tokens=PROMPT + 4)]
    pieces = model.stream(draw(1, PROMPT), max_new_tokens=9, stop_at_eos=False, edits=edits[1:])
    assert len(list(pieces)) == 9
    k = model.config.num_experts_per_tok
    edits = [ban(list(range(n - k))), ban(n - 1, tokens=PROMPT + 4)]
    pieces = model.stream(draw(1, PROMPT), max_new_tokens=9, stop_at_eos=False, edits=edits)
    assert len([next(pieces) for _ in range(5)]) == 5
    with pytest.raises(EditError, match="left; ban fewer"):
        next(pieces)


def written(model, edits):
    """Tokens that are written until an edit cannot act, and what it says then."""
    pieces = model.stream(draw(1, PROMPT), max_new_tokens=9, stop_at_eos=False, edits=edits)
    tokens = []
    with pytest.raises(EditError) as raised:
        tokens.extend(piece.token for piece in pieces)
    return tokens, str(raised.value)


def test_a_recording_is_refused_at_the_token_it_does_not_fit(model, everywhere, monkeypatch):
    layers, k = model.n_layers, model.config.num_experts_per_tok
    experts = torch.arange(k).expand(layers, 1, PROMPT + 9, k).clone()
    experts[-1, 0, PROMPT + 4] = -1
    other = model.trace(torch.cat([draw(1, PROMPT), draw(1, 5, seed=7)], 1))
    found = [written(model, [replay(source)]) for source in (experts, other)]
    assert len(found[0][0]) == 5 and "the recording holds" in found[0][1]
    assert len(found[1][0]) < 5 and "other tokens run than were recorded" in found[1][1]
    assert everywhere
    monkeypatch.undo()
    assert found == [written(model, [replay(source)]) for source in (experts, other)]


def test_a_short_row_writes_on_beside_one_at_the_end_of_the_context(make_model, everywhere):
    """Its steps take places of their own, behind the longest prompt."""
    model = make_model(backend="reference", max_position_embeddings=PROMPT + 1)
    prompts, mask = draw(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.bool)
    mask[1, :7] = False
    options = {"attention_mask": mask, "stop_at_eos": False, "return_type": "generation"}
    out = model.generate(prompts, max_new_tokens=6, **options)
    assert [len(row) for row in out.completions] == [1, 6] and len(everywhere) == 5


def test_an_edit_that_asks_the_device_takes_the_ordinary_way(model, everywhere, monkeypatch):
    edits = [scale("pattern", 0.5, layers=1, heads=0)]
    found = model.generate(draw(1, PROMPT), max_new_tokens=9, edits=edits, stop_at_eos=False)
    assert not everywhere
    monkeypatch.undo()
    wanted = model.generate(draw(1, PROMPT), max_new_tokens=9, edits=edits, stop_at_eos=False)
    assert torch.equal(found, wanted)


def test_who_looks_is_shown_every_step(model, everywhere):
    seen = []
    with model.hooks([("blocks.1.hook_resid_post", lambda x, hook: seen.append(x.shape))]):
        model.generate(draw(1, PROMPT), max_new_tokens=3, stop_at_eos=False)
    assert [shape[1] for shape in seen] == [PROMPT, 1, 1] and not everywhere
    handle = model.blocks[1].register_forward_hook(lambda *args: seen.append("block"))
    model.generate(draw(1, PROMPT), max_new_tokens=3, stop_at_eos=False)
    handle.remove()
    assert seen.count("block") == 3 and not everywhere


def test_edits_of_one_form_are_copied_to_where_a_graph_reads_them(model, ragged):
    tokens, mask, more, on = ragged
    fixed = Decoder(model, prefilled(model, tokens, mask), room=PROMPT + 24)

    def step(*edits):
        with model.edited(*edits):
            fixed.step(more[:, :1], on[:, :1])
        return fixed.edits.held.routes[0].table

    held = step(ban(1))
    assert step(ban(3)) is held and held[0].nonzero().tolist() == [[3]]
    assert step(ban(3), ban(4)) is not held
