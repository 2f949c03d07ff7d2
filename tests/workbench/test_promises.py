"""The five promises of the forward pass, on every backend that runs here."""

from contextlib import ExitStack

import pytest
import torch

from gptoss_hooks import memory
from gptoss_hooks.points import EditError, HookPoint
from gptoss_hooks.positions import PositionSlice
from gptoss_kernels.backend import available
from gptoss_workbench.config import alternating_layers

BACKENDS = available("cpu")
DTYPES = (torch.float32, torch.bfloat16)
OBSERVERS = ("recorder", "function", "same tensor", "torch hook")


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=["float32", "bfloat16"])
def model(request, make_model, backend):
    return make_model(
        request.param, backend, num_hidden_layers=2, layer_types=alternating_layers(2)
    )


def observe(leaving: ExitStack, points: list[HookPoint], how: str) -> None:
    """Attach one kind of read-only observer to some points."""
    functions = {
        "recorder": lambda tensor, hook: None,
        "function": lambda tensor, hook: None,
        "same tensor": lambda tensor, hook: tensor,
    }
    for point in points:
        if how == "torch hook":
            leaving.callback(point.register_forward_hook(lambda *args: None).remove)
        else:
            leaving.callback(point.add_hook(functions[how], reads_only=how == "recorder"))


def prefill_and_step(model, tokens):
    """Logits of a prompt, and of one more token after it is cached."""
    cache = model.new_cache()
    prefill = model(tokens[:, :-1], past_key_values=cache)
    return prefill, model(tokens[:, -1:], past_key_values=cache)


# -- 1: observing changes nothing ---


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("how", OBSERVERS)
def test_observing_all_points_changes_no_bit(model, tokens, how, grad):
    with torch.set_grad_enabled(grad), ExitStack() as leaving:
        clean = prefill_and_step(model, tokens)
        observe(leaving, list(model.hook_dict.values()), how)
        seen = prefill_and_step(model, tokens)
    assert all(torch.equal(a, b) for a, b in zip(clean, seen, strict=True))


@pytest.mark.parametrize("how", ["recorder", "function"])
def test_observing_any_one_point_changes_no_bit(model, tokens, how):
    with torch.set_grad_enabled(how == "function"):
        clean = prefill_and_step(model, tokens)
        for name, point in model.hook_dict.items():
            with ExitStack() as leaving:
                observe(leaving, [point], how)
                seen = prefill_and_step(model, tokens)
            assert all(torch.equal(a, b) for a, b in zip(clean, seen, strict=True)), name


def test_observing_under_inference_mode_changes_no_bit(model, tokens):
    with torch.inference_mode():
        clean = model(tokens)
        logits, _ = model.run_with_cache(tokens, names_filter=lambda name: True)
        hooked = model.run_with_hooks(
            tokens, fwd_hooks=[(lambda name: True, lambda tensor, hook: tensor)]
        )
    assert torch.equal(logits, clean) and torch.equal(hooked, clean)


def test_backward_observers_change_no_bit(model, tokens):
    clean = model(tokens)
    hooked = model.run_with_hooks(tokens, bwd_hooks=[(lambda name: True, lambda grad, hook: None)])
    assert torch.equal(hooked, clean)


# -- 2: company changes nothing ---


@pytest.fixture
def long_model(make_model, backend):
    return make_model(
        torch.float32, backend, num_hidden_layers=2, layer_types=alternating_layers(2)
    )


@pytest.fixture
def long_tokens():
    return torch.randint(3, 256, (3, 137), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def no_grad_for_company(request):
    quiet = "company" in request.node.name or "chunk" in request.node.name
    with torch.set_grad_enabled(not quiet):
        yield


@pytest.fixture
def close(backend):
    """Equal bit for bit; the reference sums in torch's own order, so there to 1e-5 x std."""

    def compare(found, wanted):
        atol = 1e-5 * float(wanted.float().std()) if backend == "reference" else 0
        torch.testing.assert_close(found, wanted, rtol=0, atol=atol)

    return compare


def test_company_in_the_batch_changes_nothing(long_model, long_tokens, close):
    together = long_model(long_tokens)
    for row in range(3):
        close(together[row], long_model(long_tokens[row : row + 1])[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_company_of_padding_changes_nothing(long_model, long_tokens, side, close):
    lengths = (137, 61, 5)
    mask = torch.zeros(3, 137, dtype=torch.bool)
    for row, n in enumerate(lengths):
        mask[row, slice(137 - n, 137) if side == "left" else slice(n)] = True
    batch = torch.ones_like(long_tokens)
    for row, n in enumerate(lengths):
        batch[row, mask[row]] = long_tokens[row, :n]
    together = long_model(batch, attention_mask=mask)
    for row, n in enumerate(lengths):
        close(together[row, mask[row]], long_model(long_tokens[row : row + 1, :n])[0])
    assert together.isfinite().all()


@pytest.mark.parametrize("size", [1, 7, 64, 129])
def test_the_chunks_of_a_prompt_change_nothing(long_model, long_tokens, size, close):
    tokens = long_tokens[:1] if size == 1 else long_tokens
    cache = long_model.new_cache()
    parts = [long_model(part, past_key_values=cache) for part in tokens.split(size, 1)]
    close(torch.cat(parts, 1), long_model(tokens))
    window = long_model.config.sliding_window
    assert cache.layers[0].k.shape[1] == window - 1 and cache.layers[1].k.shape[1] == 137


def test_ragged_rows_share_a_cache_chunk_by_chunk(long_model, long_tokens, close):
    mask = torch.ones(3, 137, dtype=torch.bool)
    mask[1, :40], mask[2, 90:] = False, False
    cache = long_model.new_cache()
    parts = zip(long_tokens.split(31, 1), mask.split(31, 1), strict=True)
    logits = torch.cat(
        [long_model(t, attention_mask=m, past_key_values=cache) for t, m in parts], 1
    )
    for row in range(3):
        close(logits[row, mask[row]], long_model(long_tokens[row, mask[row]][None])[0])
    assert cache.lengths.tolist() == [137, 97, 90]
    step = long_tokens[:, :1]
    logits = long_model(step, past_key_values=cache)
    for row in range(3):
        alone = torch.cat([long_tokens[row, mask[row]], step[row]])
        close(logits[row, 0], long_model(alone[None])[0, -1])


# -- 3: an edit that cannot act raises ---


def test_every_read_only_point_refuses_edits_and_names_a_live_one(model, tokens):
    silent = [point for point in model.hook_dict.values() if not point.live]
    assert silent
    for point in silent:
        assert any(name.endswith(point.instead) for name in model.hook_dict)
        with pytest.raises(EditError, match=f"{point.name} is read-only: edit {point.instead}"):
            model.run_with_hooks(tokens, fwd_hooks=[(point.name, lambda x, hook: x + 1)])


def test_a_wrong_shape_is_refused_at_every_point(model, tokens):
    with torch.no_grad():
        for name, point in model.hook_dict.items():
            with pytest.raises(EditError, match=f"{name} .*expected"):
                model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: x[:1])])
            with pytest.raises(EditError, match=f"{name}.*Return tensor.to"):
                model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: x.double())])
            assert not point.observed


@pytest.mark.parametrize("name", ["blocks.1.mlp.hook_pre", "blocks.0.mlp.hook_post"])
def test_dense_neurons_are_refused_wherever_they_are_asked_for(model, tokens, name):
    _, cache = model.run_with_cache(tokens, names_filter="hook_embed")
    for ask in (
        lambda: model.add_hook(name, print),
        lambda: model.run_with_hooks(tokens, fwd_hooks=[(name, print)]),
        lambda: model.run_with_hooks(tokens, bwd_hooks=[(name, print)]),
        lambda: model.run_with_cache(tokens, names_filter=[name]),
        lambda: cache[name],
    ):
        with pytest.raises(KeyError, match="hook_expert_post"):
            ask()


# -- 4: you pay for what you observe ---


@pytest.fixture
def taps(model, monkeypatch):
    """Every tap handed to an operation, by operation, while a model runs."""
    seen = []

    def spied(operation):
        def run(*args, tap=None, **options):
            seen.append(tap)
            return operation(*args, tap=tap, **options)

        return run

    for module in model.modules():
        if hasattr(module, "ops"):
            ops = module.ops
            spies = {op: spied(getattr(ops, op)) for op in ("rms_norm", "attention", "moe")}
            monkeypatch.setattr(module, "ops", ops._replace(**spies))
    return seen


def test_without_observers_no_operation_is_asked_to_show_anything(model, tokens, taps):
    model(tokens)
    assert len(taps) == 2 * 4 + 1 and not any(look for tap in taps for look in tap)


@pytest.mark.parametrize(
    "name",
    [
        *(f"blocks.1.attn.hook_{point}" for point in ("attn_scores", "pattern", "sink")),
        *(f"blocks.1.mlp.hook_expert_{point}" for point in ("gate", "up", "post", "out")),
        *(f"blocks.1.ln1.hook_{point}" for point in ("scale", "normalized")),
    ],
)
def test_an_observed_point_turns_on_its_own_tap_alone(model, tokens, taps, name):
    with torch.no_grad():
        model.run_with_cache(tokens, names_filter=name)
    assert [look.name for tap in taps for look in tap if look is not None] == [name]


@pytest.mark.parametrize("layer", [0, 1])
def test_per_head_results_and_split_inputs_cost_nothing_unobserved(
    model, tokens, monkeypatch, layer
):
    calls, einsum = [], torch.einsum
    monkeypatch.setattr(torch, "einsum", lambda *args: calls.append(args[0]) or einsum(*args))
    with torch.no_grad():
        model(tokens)
        assert not calls
        model.run_with_cache(tokens, names_filter=f"blocks.{layer}.attn.hook_result")
        assert len(calls) == 1
        split = f"blocks.{layer}.attn.hook_k_input"
        model.run_with_cache(tokens, names_filter=split)
        assert len(calls) == 1  # recording a split input only copies the residual
        model.run_with_hooks(tokens, fwd_hooks=[(split, lambda x, hook: x * 2)])
        assert len(calls) == 3  # an edit moves the result by what it changed: before and after


def test_nothing_builds_a_graph_unless_asked(model, tokens):
    assert not model(tokens).requires_grad
    logits, _ = model.run_with_cache(tokens, names_filter=lambda name: True)
    assert not logits.requires_grad


def test_logits_are_computed_for_the_positions_asked_for(model, tokens):
    logits = model(tokens, logits_to_keep=2)
    assert logits.shape == (2, 2, 256)
    exact = model.backend != "reference" or model.activation_dtype == torch.bfloat16
    assert torch.equal(logits, model(tokens)[:, -2:]) or not exact
    torch.testing.assert_close(logits, model(tokens)[:, -2:])


def test_without_a_result_the_readout_runs_only_when_observed(model, tokens):
    fired = []
    model(tokens, return_type=None)
    model.run_with_hooks(
        tokens,
        return_type=None,
        fwd_hooks=[("ln_final.hook_out", lambda x, hook: fired.append(hook.name))],
    )
    assert fired == ["ln_final.hook_out"]


# -- the size of a cache ---


@pytest.mark.parametrize("pos_slice", [None, -1, slice(2, 7)])
@pytest.mark.parametrize("names_filter", [None, lambda name: True], ids=["kept", "all"])
def test_the_estimate_is_what_a_cache_keeps(model, tokens, names_filter, pos_slice):
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=names_filter, pos_slice=pos_slice)
    kept = sum(tensor.nbytes for tensor in cache.values())
    estimate = model.cache_bytes(names_filter, *tokens.shape, PositionSlice(pos_slice))
    assert estimate == kept
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.values()
    }
    assert sum(storages.values()) <= kept


def test_a_cache_beyond_the_free_memory_is_refused_before_running(model, tokens, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device="cpu": 1000)
    monkeypatch.setattr(type(model), "forward", lambda *args, **options: pytest.fail("it ran"))
    message = r"hook points for 2 x 13 tokens.*names_filter= or pos_slice=.*device="
    for given in (tokens, tokens.tolist()):
        with pytest.raises(MemoryError, match=message):
            model.run_with_cache(given)


def test_text_is_measured_too(nano, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device="cpu": 1000)
    with pytest.raises(MemoryError, match="names_filter="):
        nano.run_with_cache("B is 1. G is B plus 7.")


# -- 5: leaving leaves the model as it was found ---


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", ["forward", "run_with_cache", "run_with_hooks"])
def test_an_exception_in_a_hook_leaves_earlier_hooks_alone(model, tokens, call, error):
    def fail(tensor, hook):
        raise error

    detach = model.hook_dict["hook_embed"].add_hook(lambda tensor, hook: None)
    with pytest.raises(error), model.hooks([("blocks.1.hook_resid_pre", fail)]):
        getattr(model, call)(tokens)
    attached = {
        name: len(p._forward_functions) for name, p in model.hook_dict.items() if p.observed
    }
    detach()
    assert attached == {"hook_embed": 1}


def test_a_cache_that_an_exception_left_half_written_is_refused(model, tokens):
    def fail(tensor, hook):
        raise RuntimeError("stop")

    cache = model.new_cache()
    with torch.no_grad():
        model(tokens, past_key_values=cache)
        with (
            pytest.raises(RuntimeError, match="stop"),
            model.hooks([("blocks.1.hook_resid_pre", fail)]),
        ):
            model(tokens[:, :1], past_key_values=cache)
        with pytest.raises(ValueError, match="new_cache"):
            model(tokens[:, :1], past_key_values=cache)
