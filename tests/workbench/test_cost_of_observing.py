"""Promise 4 by counting: operations, kernel calls and every allocation of a forward pass.

What a pass without observers does is held against `plain`, the same operations with no hook point
among them; what observing adds, against the tensors that are kept.
"""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_kernels import rope
from gptoss_kernels.backend import available
from gptoss_kernels.native import library
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.kv_cache import KVCache

BACKENDS = available("cpu")
LAYERS = 4
ROUTING = ("hook_router_logits", "hook_expert_indices", "hook_expert_weights")
COMMON = ("hook_resid_post", *ROUTING)


class Operations(TorchDispatchMode):
    """Every torch operator that runs, ours among them, in order."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(run) -> list[str]:
    """Names of the operators of `run`, in order."""
    with Operations() as seen:
        run()
    return seen.names


def ledger(run: Callable[[], Any]) -> tuple[list[int], Any]:
    """Bytes of each allocation (+) and release (-) of `run` in order, and its result.

    A release counts only where the profiler saw the allocation.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run()
    profiler: Any = profiled.profiler
    events = profiler.kineto_results.events()
    entries = [event for event in events if event.name() == "[memory]"]
    return [each.nbytes() for each in sorted(entries, key=lambda each: each.start_ns())], result


def allocations(entries: list[int]) -> list[int]:
    return [size for size in entries if size > 0]


def peak(entries: list[int]) -> int:
    """The most bytes held at a time."""
    held = most = 0
    for size in entries:
        held += size
        most = max(most, held)
    return most


def plain(model, tokens, cache=None):
    """The forward pass with no line for observers."""
    mask = model.read(tokens).mask
    positions = (cache or KVCache(model.config)).positions(mask)
    model.check_length(int(positions.max()) + 1)
    x, turn = model.embed(tokens), rope.tables(positions, model.frequencies)
    for block in model.blocks:
        x = plain_block(block, x, turn, positions, cache)
    if cache is not None:
        cache.advance(mask, tokens)
    norm, unembed = model.ln_final, model.unembed
    y = norm.ops.rms_norm(x, norm.weight, norm.eps)[:, 0:]
    return unembed.ops.unembed(y, unembed.weight)


def plain_block(block, x, turn, positions, cache):
    attn, mlp, ops = block.attn, block.mlp, block.mlp.ops
    y = ops.rms_norm(x, block.ln1.weight, block.ln1.eps)
    sizes = {attn.q_proj: attn.heads, attn.k_proj: attn.kv_heads, attn.v_proj: attn.kv_heads}
    q, k, v = (
        ops.linear(y, part.weight, part.bias).unflatten(-1, (heads, -1))
        for part, heads in sizes.items()
    )
    q, k, keys = ops.rotate(q, *turn), ops.rotate(k, *turn), positions
    if cache is not None:
        k, v, keys = cache.layers[attn.layer].extend(k, v, positions)
    z = ops.attention(q, k, v, attn.sinks, positions, keys, window=attn.window)
    x = x + ops.linear(z.flatten(2), attn.o_proj.weight, attn.o_proj.bias)
    y = ops.rms_norm(x, block.ln2.weight, block.ln2.eps)
    logits = ops.linear(y, mlp.router.weight, mlp.router.bias, dtype=torch.float32)
    chosen = ops.choose(logits, mlp.k)
    return x + ops.moe(y, chosen, ops.weigh(logits, chosen), mlp.experts, limit=mlp.limit)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request, make_model, backend):
    return make_model(request.param, backend, **SHAPE)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


SHAPE = {
    "num_hidden_layers": LAYERS,
    "layer_types": alternating_layers(LAYERS),
    "sliding_window": 32,
}


@pytest.fixture
def tokens():
    """Two rows of 75 tokens: longer than the window."""
    return torch.randint(3, 256, (2, 75), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["prompt", "step"])
def piece(request):
    return request.param


@pytest.fixture
def ran(piece, tokens):
    """ran(forward, model): a prompt, or one token after it is cached; made anew each time."""

    def prepare(forward, model):
        if piece == "prompt":
            return lambda: forward(model, tokens, None)
        cache = model.new_cache(room=80)
        model(tokens, past_key_values=cache)
        return lambda: forward(model, tokens[:, :1], cache)

    return prepare


def unobserved(model, tokens, cache):
    return model(tokens, past_key_values=cache)


def observed(names):
    """A forward pass that keeps the hook points of these endings; gives what it kept."""

    def run(model, tokens, cache):
        keep = None if names is None else lambda name: name.endswith(names)
        return model.run_with_cache(tokens, names_filter=keep, past_key_values=cache)[1]

    return run


def kept_bytes(cache) -> int:
    return sum(tensor.nbytes for tensor in cache.values())


def more(found: Counter, base: Counter) -> dict[str, int]:
    """How often more (or less) each thing was counted than in `base`."""
    return {name: found[name] - base[name] for name in found | base if found[name] != base[name]}


def test_plain_computes_the_same_bits(model, tokens):
    assert torch.equal(plain(model, tokens), model(tokens))


def test_without_observers_the_operations_are_those_of_a_model_without_hooks(model, ran):
    assert operations(ran(unobserved, model)) == operations(ran(plain, model))


def test_without_observers_nothing_is_allocated_for_them(model, ran):
    off, bare = ledger(ran(unobserved, model))[0], ledger(ran(plain, model))[0]
    assert len(off) > 50
    assert allocations(off) == allocations(bare)


LENGTH = {"aten.max.default": 1, "aten._local_scalar_dense.default": 1}
"""What asking a KV cache for its length takes, once a call, to estimate what will be kept."""


def test_residual_and_routing_are_kept_as_they_are(model, ran, backend, piece):
    """A detached alias a hook point; where the indices are a slice of a sort, that slice."""
    base = Counter(operations(ran(unobserved, model)))
    added = more(Counter(operations(ran(observed(COMMON), model))), base)
    sliced = {"aten.clone.default": LAYERS} if backend == "reference" else {}
    asked = LENGTH if piece == "step" else {}
    assert added == {"aten.detach.default": LAYERS * len(COMMON)} | sliced | asked


def test_residual_and_routing_allocate_nothing(model, ran, backend, piece):
    off, _ = ledger(ran(unobserved, model))
    on, cache = ledger(ran(observed(COMMON), model))
    indices = [x.nbytes for name, x in cache.items() if name.endswith("indices")]
    sliced = Counter(indices if backend == "reference" else ())
    asked = Counter({8: 1} if piece == "step" else {})
    assert Counter(allocations(on)) == Counter(allocations(off)) + sliced + asked


@pytest.mark.parametrize("piece", ["prompt"], indirect=True)
@pytest.mark.parametrize("names", [COMMON, None], ids=["residual + routing", "everything"])
def test_the_peak_rises_by_what_is_kept(model, ran, names):
    off, _ = ledger(ran(unobserved, model))
    on, cache = ledger(ran(observed(names), model))
    assert 0 < peak(on) - peak(off) <= 1.05 * kept_bytes(cache)


def test_a_trace_holds_what_it_keeps_once(model, tokens):
    """Its routing is stacked over layers at the end, when the pass itself holds nothing."""
    off, _ = ledger(lambda: model(tokens))
    on, trace = ledger(lambda: model.trace(tokens, names_filter="resid_post"))
    kept = kept_bytes(trace.activations) + trace.routing.experts.nbytes
    kept += trace.routing.weights.nbytes
    assert peak(on) - peak(off) <= 1.05 * kept


SIBLINGS = {"hook_attn_scores": "hook_pattern"}
SIBLINGS |= {"hook_expert_gate": "hook_expert_up", "hook_expert_up": "hook_expert_gate"}
"""Who asks for the first gets the second made too; unkept, one layer's of it is held meanwhile."""

APART = {"hook_expert_gate", "hook_expert_up", "hook_expert_out"}
"""Who asks for these takes the native mixture apart; one layer's neurons are held meanwhile."""

POINTS = (
    "hook_embed hook_resid_pre hook_resid_mid hook_resid_post hook_attn_out hook_mlp_out "
    "ln1.hook_scale ln2.hook_normalized hook_q hook_rot_k hook_v hook_attn_scores hook_pattern "
    "hook_sink hook_z hook_router_logits hook_expert_indices hook_expert_weights "
    "hook_expert_gate hook_expert_up hook_expert_post hook_expert_out unembed.hook_out"
).split()


@pytest.mark.parametrize("name", BACKENDS)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    chosen=st.frozensets(st.sampled_from(POINTS), min_size=1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    length=st.integers(33, 90),
)
def test_whatever_is_kept_the_peak_rises_by_no_more(make_model, name, chosen, dtype, length):
    model = make_model(dtype, name, **SHAPE)
    tokens = torch.randint(3, 256, (1, length), generator=torch.Generator().manual_seed(length))
    off, _ = ledger(lambda: model(tokens))
    on, cache = ledger(lambda: observed(tuple(chosen))(model, tokens, None))
    meanwhile = 0
    for point, sibling in SIBLINGS.items():
        if point in chosen and sibling not in chosen:
            meanwhile += next(x.nbytes for n, x in cache.items() if n.endswith(point))
    neurons = length * model.config.num_experts_per_tok * model.config.intermediate_size
    if name == "native" and chosen & APART and "hook_expert_post" not in chosen:
        meanwhile += neurons * dtype.itemsize
    if name == "reference" and chosen & APART:  # sorts what a tap sees, and back
        meanwhile += 3 * neurons * torch.float32.itemsize
    assert peak(on) - peak(off) <= 1.05 * kept_bytes(cache) + meanwhile


@pytest.fixture
def kernel_calls(monkeypatch):
    """kernel_calls(run): how often each C++ kernel is called."""
    made: Counter = Counter()

    def counted(name, kernel):
        def call(*args):
            made[name] += 1
            return kernel(*args)

        return call

    table = vars(library.kernels())
    names = {name: counted(name, table[name]) for name in library.KERNELS}
    monkeypatch.setattr(library._Open, "kernels", SimpleNamespace(**{**table, **names}))

    def count(run) -> Counter:
        made.clear()
        run()
        return made.copy()

    return count


@pytest.mark.skipif("native" not in BACKENDS, reason="no native kernels; see `gptoss doctor`")
@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_kernels_are_called_for_what_is_observed_alone(model, ran, kernel_calls):
    bare = kernel_calls(ran(plain, model))
    assert bare["linear"] == 5 * LAYERS + 1 and bare["attention"] == LAYERS
    assert kernel_calls(ran(unobserved, model)) == bare
    assert kernel_calls(ran(observed(COMMON), model)) == bare
    three_steps = {"attention": 2 * LAYERS}
    apart = {"moe": -1, "moe_gate_up": 1, "swiglu": 1, "moe_down": 1, "moe_combine": 1}
    everything = kernel_calls(ran(observed(None), model))
    assert more(everything, bare) == three_steps | {name: n * LAYERS for name, n in apart.items()}
    gates = kernel_calls(ran(observed(("1.mlp.hook_expert_gate",)), model))
    assert more(gates, bare) == {"moe": -1, "moe_gate_up": 1, "swiglu": 1, "moe_down_combine": 1}
