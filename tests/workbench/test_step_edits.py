"""Edits inside a captured step: the bits of hooks, nothing captured twice, nothing waited for.

`Recording` stands in for a CUDA graph: operators and kernels of one step, run again on the tensors
they ran on, without Python. A number that was read on the host would stay what it was.
"""

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_hooks import ablate, ban, bias, patch, replay, scale, set_k, steer
from gptoss_hooks.edits import tree
from gptoss_kernels.triton.launch import launch as start
from gptoss_workbench import decoder, spare, step_edits
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.decoder import Decoder
from gptoss_workbench.model import GptOss

SMALL = replace(
    TINY,
    vocab_size=40,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    layer_types=alternating_layers(2),
    num_attention_heads=4,
    num_key_value_heads=1,
    num_local_experts=5,
    sliding_window=4,
)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "item")
"""Operators that bring a number to the host."""
VECTOR = torch.randn(SMALL.hidden_size, generator=torch.Generator().manual_seed(1))
NEURONS = torch.randn(SMALL.intermediate_size, generator=torch.Generator().manual_seed(2))
START, END = 3, 7


class Recording(TorchDispatchMode):
    """Runs a step and keeps what it did, and which tensors it found there."""

    def __init__(self):
        super().__init__()
        self.calls: list = []
        self.made: set[int] = set()
        self.found: dict[int, Tensor] = {}
        self.inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.inside:
            name = func.overloadpacket.__name__
            assert not name.startswith(WAITS), f"{name} waits for the device"
            self.keep(func, args, kwargs, out)
        return out

    def start(self, kernel, grid, *args, **meta):
        self.inside = True
        start(kernel, grid, *args, **meta)
        self.inside = False
        self.keep(start, (kernel, grid, *args), meta, None)

    def keep(self, func, args, kwargs, out):
        self.calls.append((func, args, kwargs, out))
        for each in flat((args, tuple(kwargs.values()))):
            if home(each) not in self.made:
                self.found[home(each)] = each
        self.made |= {home(each) for each in flat(out)} - self.found.keys()

    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for kept, new in zip(flat(out), flat(again), strict=True):
                if home(kept) != home(new):
                    kept.copy_(new)


def home(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def flat(out) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, (list, tuple)):
        for each in out:
            yield from flat(each)


@pytest.fixture
def captured(monkeypatch):
    """Steps are captured by a Recording; a list of them."""
    made: list[Recording] = []

    def capture(run, counters):
        before = [counter.clone() for counter in counters]
        recording = Recording()
        kernels = [m for n, m in sys.modules.items() if n.startswith("gptoss_kernels.triton.")]
        with monkeypatch.context() as patched, recording:
            for module in kernels:
                if getattr(module, "launch", None) is start:
                    patched.setattr(module, "launch", recording.start)
            run()
        for counter, value in zip(counters, before, strict=True):
            counter.copy_(value)
        made.append(recording)
        return recording.replay

    monkeypatch.setattr(decoder, "capture", capture)
    return made


@pytest.fixture(scope="module")
def model():
    return GptOss(SMALL, random_tensors(SMALL, seed=0), backend="triton")


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(3, 40, (1, END), generator=torch.Generator().manual_seed(0))


def prefilled(model, tokens, *edits):
    cache = model.new_cache()
    with torch.no_grad():
        model(tokens[:, :START], past_key_values=cache, edits=edits)
    return cache


def stepped(model, tokens, fixed, steps):
    """Logits of captured steps, `steps` a list of edits for each token."""
    on, out = torch.ones(1, 1, dtype=torch.bool), []
    for i, edits in enumerate(steps, START):
        with model.edited(*edits):
            out.append(fixed.step(tokens[:, i : i + 1], on).clone())
    return torch.stack(out, 1)


def plainly(model, tokens, steps, *before):
    """Logits of ordinary passes, the prompt run under edits `before`."""
    cache = prefilled(model, tokens, *before)
    with torch.no_grad():
        parts = [
            model(tokens[:, i : i + 1], past_key_values=cache, edits=edits)
            for i, edits in enumerate(steps, START)
        ]
    return torch.cat(parts, 1)


def varied(value):
    """Edits of one form, their numbers made of one."""
    return [
        steer("resid_post", VECTOR, value, layers=0, tokens=slice(4, 6)),
        scale("z", 1 + value, layers=1, heads=[0, 3]),
        ablate("expert_post", layers=0, experts=[0, 2], to=NEURONS * value),
        scale("expert_out", value, layers=1, experts=1),
        patch("mlp_out", (VECTOR * value).expand(1, END, -1), layers=1, tokens=[3, 5]),
        bias([0, 4], 3 * value, layers=1, tokens=slice(5, None)),
        scale("expert_gate", value, neurons=[3, 5]),
        ablate("embed", to=VECTOR * value, tokens=4),
        ablate("pattern", layers=0, heads=2, tokens=4),
    ]


def test_edits_are_replayed_with_the_bits_of_an_ordinary_pass(model, tokens, captured):
    fixed = Decoder(model, prefilled(model, tokens, *varied(0.5)), room=END)
    steps = [varied(0.5)] * 2 + [varied(-0.25)] * 2
    found = stepped(model, tokens, fixed, steps)
    held = [each.data_ptr() for each in tree.tensors(fixed.edits.held)]
    assert torch.equal(found, plainly(model, tokens, steps, *varied(0.5)))
    assert len(captured) == 1
    unchanged = plainly(model, tokens, [varied(0.5)] * 3, *varied(0.5))
    assert torch.equal(found[:, :2], unchanged[:, :2])
    assert not torch.equal(found[:, 2], unchanged[:, 2])
    fixed.edits.hold(varied(2.0))
    assert held == [each.data_ptr() for each in tree.tensors(fixed.edits.held)]
    assert not [name for name, point in model.hook_dict.items() if point.observed]


def test_a_captured_step_reads_nothing_but_what_stays_where_it_is(model, tokens, captured):
    fixed = Decoder(model, prefilled(model, tokens, *varied(0.5)), room=END)
    steps = stepped(model, tokens, fixed, [varied(0.5), varied(0.1)])
    places = [(p.positions, p.next) for p in fixed.cache.places.values()]
    layers = [(layer.k, layer.v) for layer in fixed.cache.layers]
    own = [*model.parameters(), *model.buffers(), model.frequencies.inverse, fixed.given]
    own += [*tree.tensors(fixed.edits.held), fixed.cache.lengths, *sum(places + layers, ())]
    assert captured[0].found.keys() <= {home(each) for each in own}
    assert steps.isfinite().all()


def test_what_is_read_from_elsewhere_is_noticed():
    with Recording() as seen:
        torch.ones(2) + torch.tensor([1.0, 2.0])
    assert len(seen.found) == 1
    with pytest.raises(AssertionError, match="waits for the device"), Recording():
        bool(torch.ones(1).any())


class Touching(TorchDispatchMode):
    """Names of operators that touch tensors of some storages."""

    def __init__(self, homes: set[int]):
        super().__init__()
        self.homes, self.names = homes, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.homes & {home(each) for each in flat(args)}:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_beside_the_graph_a_token_is_one_copy_to_the_device(model, tokens, captured):
    """All else about edits is settled on the host."""
    edits = [*varied(0.5), ban(1, tokens=[3, 5]), set_k(1, layers=0, tokens=slice(4, None))]
    recorded = torch.arange(2)[None, None, None].expand(2, 1, 4, 2)
    edits += [replay(recorded, tokens=slice(5))]
    fixed = Decoder(model, prefilled(model, tokens), room=END)
    stepped(model, tokens, fixed, [edits])
    own = [*tree.tensors(fixed.edits.held), fixed.given, fixed.logits, fixed.cache.lengths]
    own += [each for p in fixed.cache.places.values() for each in (p.positions, p.next)]
    fixed.again = lambda: None
    on = torch.ones(1, 1, dtype=torch.bool)
    with Touching({home(each) for each in own}) as touching, model.edited(*edits):
        for i in (4, 5, 6):
            fixed.step(tokens[:, i : i + 1], on)
    assert touching.names == ["copy_"] * 3 and len(captured) == 1


def test_another_form_is_captured_once_more(model, tokens, captured):
    fixed = Decoder(model, prefilled(model, tokens), room=END)
    one, other = [scale("z", 0.5, layers=0)], [scale("z", 0.5, layers=1)]
    more = [*other, steer("resid_mid", VECTOR, layers=0)]
    steps = [one, other, more, []]
    assert torch.equal(stepped(model, tokens, fixed, steps), plainly(model, tokens, steps))
    assert len(captured) == 4


def test_an_edit_of_any_site_is_captured_or_says_that_it_waits(model, tokens, captured):
    points = {n: p for n, p in model.hook_dict.items() if p.live and p.dtype != torch.int64}
    waiting = [n for n in points if n.endswith(step_edits.ASK)]
    fixed = Decoder(model, prefilled(model, tokens), room=END)
    steps = [[scale(name, 0.9) for name in points if name not in waiting]]
    assert torch.equal(stepped(model, tokens, fixed, steps), plainly(model, tokens, steps))
    assert len(captured) == 1 and not fixed.edits.wait and len(steps[0]) > 40
    fixed.edits.hold([ablate("pattern", heads=1)])
    assert not fixed.edits.wait
    for name in waiting:
        fixed.edits.hold([scale(name, 0.9)])
        assert fixed.edits.wait
        with pytest.raises(AssertionError, match="waits"), model.edited(scale(name, 0.9)):
            fixed.step(tokens[:, 4:5], torch.ones(1, 1, dtype=torch.bool))


def test_an_edit_amid_an_edited_route_says_that_it_waits(model, tokens, captured):
    fixed = Decoder(model, prefilled(model, tokens), room=END)
    logits, route = bias(1, 1.0, layers=0), scale("router_logits", 0.5, layers=0)
    for edits, waits in (([logits], False), ([route], False), ([logits, route], True)):
        fixed.edits.hold(edits)
        assert fixed.edits.wait == waits
    with pytest.raises(AssertionError, match="waits"):
        stepped(model, tokens, fixed, [[logits, route]])


# -- from one generation to the next ---


@pytest.fixture
def write(model, tokens, monkeypatch, captured):
    """write(edits): what is generated with captured steps, from nothing kept at first."""
    monkeypatch.setattr(decoder, "worthwhile", lambda model: True)
    monkeypatch.setattr(model, "spare", spare.Spare())
    monkeypatch.setattr(spare, "STEP", 8)

    def write(edits, rows=1):
        prompts = tokens[:, :START].expand(rows, -1)
        return model.generate(prompts, max_new_tokens=3, stop_at_eos=False, edits=edits)

    return write


def test_the_next_generation_needs_no_capture(model, write, captured, monkeypatch):
    found = [write(varied(value)) for value in (0.5, -4.0)]
    assert len(captured) == 1 and not torch.equal(*found)
    write([])
    assert len(captured) == 2 and model.spare.decoder.model is None
    monkeypatch.setattr(decoder, "worthwhile", lambda model: False)
    assert all(map(torch.equal, found, [write(varied(value)) for value in (0.5, -4.0)]))
    assert model.spare.decoder is None


def test_a_decoder_is_not_taken_up_where_it_does_not_fit(model, write, captured, monkeypatch):
    write([])
    kept = model.spare.decoder
    assert copy.deepcopy(model.spare).decoder is None
    assert kept.resumes(model, 1, 8) and not kept.resumes(model, 1, 9)
    assert not kept.resumes(model, 2, 5)
    weight = model.unembed.weight
    monkeypatch.setattr(weight, "data", weight.data.clone())
    assert not kept.resumes(model, 1, 5)
    monkeypatch.setattr(spare, "KEPT", kept.nbytes - 1)
    model.spare.keep(kept)
    assert len(captured) == 1 and model.spare.take(model, 1, 5) is None


def test_two_streams_at_a_time_do_not_share_a_decoder(model, tokens, write, captured):
    alone = write([])[0, START:].tolist()
    prompts = tokens[:, :START]
    streams = [model.stream(prompts, max_new_tokens=3, stop_at_eos=False) for _ in range(2)]
    found = [(a.token, b.token) for a, b in zip(*streams, strict=True)]
    assert found == [(token, token) for token in alone] and len(captured) == 2
