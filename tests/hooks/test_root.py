"""The root of a hooked model: names in, functions on, everything off again."""

import copy

import pytest
import torch
from torch import nn

from gptoss_hooks import memory
from gptoss_hooks.names import UnknownHook
from gptoss_hooks.points import HookPoint
from gptoss_hooks.positions import PositionSlice
from gptoss_hooks.root import HookedRoot, InputSize


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.hook_in = HookPoint("batch", "pos", "d_model", shared=True)
        self.hook_big = HookPoint("batch", "pos", "d_model", on_request=True)
        self.hook_out = HookPoint("batch", "head", "query", "key", dtype=torch.float64)

    def forward(self, x):
        x = self.hook_big(self.hook_in(x) * 2)
        square = self.hook_out((x @ x.mT)[:, None].double())
        return x + square.sum((1, 3)).float()[..., None]


class Toy(HookedRoot):
    """Two blocks; the second fails when it is told to."""

    def __init__(self):
        super().__init__()
        self.n_layers, self.activation_dtype, self.broken = 2, torch.float32, False
        self.blocks = nn.ModuleList([Half(), Half()])
        self.setup()

    def forward(self, x, return_type="sum"):
        x = self.blocks[0](x)
        if self.broken:
            raise RuntimeError("broken")
        x = self.blocks[1](x)
        return x.sum() if return_type == "sum" else x

    def axis_sizes(self, batch, pos, past=0):
        return {
            "batch": batch,
            "pos": pos,
            "query": pos,
            "key": past + pos,
            "head": 1,
            "d_model": 4,
        }

    def input_size(self, x, **kwargs):
        return InputSize(x.shape[0], x.shape[1], 0, x.device)


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def x():
    return torch.linspace(-1, 1, 40).reshape(2, 5, 4)


def attached(model):
    return [name for name, point in model.hook_dict.items() if point.observed]


def nothing(tensor, hook):
    return None


def zero(tensor, hook):
    return torch.zeros_like(tensor)


def test_points_are_named_by_their_path_in_evaluation_mode(toy):
    assert list(toy.hook_dict) == [
        f"blocks.{layer}.hook_{part}" for layer in (0, 1) for part in ("in", "big", "out")
    ]
    assert not any(module.training for module in toy.modules())


def test_a_filter_is_a_name_several_names_or_a_function(toy):
    one = ["blocks.0.hook_in"]
    assert toy.hook_names("blocks.0.hook_in") == one
    assert toy.hook_names(["blocks.1.hook_out", "blocks.0.hook_in"]) == [*one, "blocks.1.hook_out"]
    assert toy.hook_names(lambda name: name.endswith("in")) == [*one, "blocks.1.hook_in"]
    assert toy.hook_names([]) == []


def test_without_a_filter_points_on_request_are_left_out(toy):
    assert not [name for name in toy.hook_names() if name.endswith("big")]


@pytest.mark.parametrize("call", ["add_hook", "run_with_hooks", "hooks", "run_with_cache"])
def test_an_unknown_name_lists_near_ones_everywhere_and_attaches_nothing(toy, x, call):
    wrong = "blocks.0.hook_inn"
    with pytest.raises(UnknownHook, match=r"Near: .*blocks\.0\.hook_in"):
        if call == "add_hook":
            toy.add_hook(wrong, nothing)
        elif call == "run_with_hooks":
            toy.run_with_hooks(x, fwd_hooks=[("blocks.1.hook_in", nothing), (wrong, nothing)])
        elif call == "run_with_cache":
            toy.run_with_cache(x, names_filter=["blocks.1.hook_in", wrong])
        else:
            with toy.hooks(bwd_hooks=[("blocks.1.hook_in", nothing), (wrong, nothing)]):
                pass
    assert not attached(toy)


def test_a_filter_that_matches_nothing_is_refused_when_attaching(toy):
    with pytest.raises(UnknownHook, match="matches no hook point"):
        toy.add_hook(lambda name: "absent" in name, nothing)


def test_a_context_removes_what_it_attached_and_nothing_else(toy):
    toy.add_hook("blocks.0.hook_in", nothing)
    with toy.hooks(fwd_hooks=[("blocks.0.hook_in", nothing), ("blocks.1.hook_in", nothing)]):
        assert len(toy.hook_dict["blocks.0.hook_in"]._forward_functions) == 2
    assert attached(toy) == ["blocks.0.hook_in"]
    assert len(toy.hook_dict["blocks.0.hook_in"]._forward_functions) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", ["run_with_hooks", "run_with_cache", "hooks"])
def test_after_an_exception_in_a_hook_no_function_is_left(toy, x, call, error):
    def fail(tensor, hook):
        raise error

    with pytest.raises(error):
        if call == "run_with_hooks":
            toy.run_with_hooks(
                x, fwd_hooks=[(lambda name: True, nothing), ("blocks.1.hook_in", fail)]
            )
        else:
            with toy.hooks(fwd_hooks=[("blocks.1.hook_in", fail)]):
                toy.run_with_cache(x) if call == "run_with_cache" else toy(x)
    assert not attached(toy)


def test_after_an_exception_in_the_model_no_recorder_is_left(toy, x):
    toy.broken = True
    with pytest.raises(RuntimeError, match="broken"):
        toy.run_with_cache(x, incl_bwd=True)
    assert not attached(toy)


def test_leaving_can_keep_the_hooks_on_request(toy, x):
    toy.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_in", nothing)], reset_hooks_end=False)
    assert attached(toy) == ["blocks.0.hook_in"]
    toy.reset_hooks()
    assert not attached(toy)


def test_reset_leaves_permanent_hooks_and_clears_contexts(toy, x):
    toy.add_perma_hook("blocks.0.hook_in", lambda tensor, hook: hook.ctx.update(seen=True))
    toy.add_hook("blocks.1.hook_in", nothing, "bwd")
    toy(x)
    toy.reset_hooks(clear_contexts=False)
    assert attached(toy) == ["blocks.0.hook_in"] and toy.hook_dict["blocks.0.hook_in"].ctx
    toy.reset_hooks(including_permanent=True)
    assert not attached(toy) and not toy.hook_dict["blocks.0.hook_in"].ctx


def test_a_context_clears_what_hooks_noted_when_asked(toy, x):
    def note(tensor, hook):
        hook.ctx["seen"] = True

    toy.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_in", note)])
    assert toy.hook_dict["blocks.0.hook_in"].ctx
    toy.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_in", note)], clear_contexts=True)
    assert not toy.hook_dict["blocks.0.hook_in"].ctx


def test_a_cache_holds_what_fired_in_order(toy, x):
    total, cache = toy.run_with_cache(x)
    assert torch.equal(total, toy(x))
    assert list(cache.keys()) == toy.hook_names()
    assert torch.equal(cache["blocks.0.hook_in"], x)


def test_a_plain_dict_and_no_batch_axis_on_request(toy, x):
    _, cache = toy.run_with_cache(x[:1], return_cache_object=False, remove_batch_dim=True)
    assert type(cache) is dict and cache["blocks.0.hook_in"].shape == (5, 4)
    with pytest.raises(ValueError, match="2 rows"):
        toy.run_with_cache(x, remove_batch_dim=True)


@pytest.mark.parametrize(
    "given", [-1, 2, (1, 3), (1, 5, 2), slice(2, None), [0, 4], torch.tensor([0, 4])], ids=str
)
def test_a_position_slice_keeps_those_places_and_no_more_memory(toy, x, given):
    cut = slice(*given) if isinstance(given, tuple) else given
    _, cache = toy.run_with_cache(x, names_filter=lambda name: True, pos_slice=given)
    assert torch.equal(cache["blocks.0.hook_in"], x[:, cut])
    whole = toy.run_with_cache(x)[1]["blocks.1.hook_out"]
    assert torch.equal(cache["blocks.1.hook_out"], whole[:, :, cut])
    held = sum(tensor.untyped_storage().nbytes() for tensor in cache.values())
    where = PositionSlice(given)
    if isinstance(given, torch.Tensor):
        return
    assert held == toy.cache_bytes(lambda name: True, *x.shape[:2], where)


def test_gradients_follow_their_activation(toy, x):
    x.requires_grad_()
    _, cache = toy.run_with_cache(x, names_filter=["blocks.1.hook_in"], incl_bwd=True)
    assert list(cache.keys()) == ["blocks.1.hook_in", "blocks.1.hook_in_grad"]
    assert cache["blocks.1.hook_in_grad"].shape == x.shape
    assert not cache["blocks.1.hook_in"].requires_grad


def test_a_cache_can_live_on_another_device(toy, x):
    _, cache = toy.run_with_cache(x, device="meta")
    assert {tensor.device.type for tensor in cache.values()} == {"meta"}


def test_a_cache_that_does_not_fit_is_refused_before_the_run(toy, x, monkeypatch):
    needed = toy.cache_bytes(None, *x.shape[:2])
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    toy.broken = True  # not reached
    with pytest.raises(MemoryError, match=r"names_filter= or pos_slice=.*device="):
        toy.run_with_cache(x)
    toy.broken = False
    toy.run_with_cache(x, pos_slice=-1)


def test_the_estimate_is_the_bytes_that_are_kept(toy, x):
    _, cache = toy.run_with_cache(x, names_filter=lambda name: True)
    kept = sum(tensor.nbytes for tensor in cache.values())
    assert toy.cache_bytes(lambda name: True, *x.shape[:2]) == kept


def test_the_table_of_points_says_what_each_is(toy):
    table = toy.hook_points()
    assert table[1] == ("blocks.0.hook_big", "batch pos d_model", torch.float32, "live", False)
    assert "blocks.0.hook_out  [batch head query key]  float64  live" in repr(table)
    pandas = pytest.importorskip("pandas")
    assert isinstance(table.to_pandas(), pandas.DataFrame)


def test_a_subclass_must_give_its_axis_sizes(x):
    with pytest.raises(TypeError, match="HookedRoot must implement axis_sizes"):
        HookedRoot().axis_sizes(1, 1)


def test_reset_at_a_level_takes_off_that_level_alone(toy):
    name = next(iter(toy.hook_dict))
    toy.add_hook(name, lambda x, hook: None, level=1)
    toy.add_hook(name, lambda x, hook: None)
    toy.reset_hooks(level=1)
    assert len(toy.hook_dict[name]._forward_functions) == 1
    toy.reset_hooks()


def test_a_cache_run_refuses_to_leave_its_hooks_on(toy, x):
    with pytest.raises(ValueError, match="add_hook"):
        toy.run_with_cache(x, reset_hooks_end=False)


def test_another_point_in_the_place_of_one_is_the_one_that_is_called():
    class Model(HookedRoot):
        def __init__(self):
            super().__init__()
            self.hook_x = HookPoint("batch")
            self.setup()

        def forward(self, x):
            return self.hook_x(x)

    model, seen = Model(), []
    model.hook_x = HookPoint("batch")
    model.hook_x.add_hook(lambda x, hook: seen.append(x))
    model(torch.zeros(1))
    twin = copy.deepcopy(model)
    twin(torch.ones(1))
    assert len(seen) == 2 and twin.hook_x is twin._modules["hook_x"] is not model.hook_x


def test_a_name_with_its_layer_is_one_name_and_a_tuple_of_names_several(toy):
    assert toy.hook_names(("in", 1)) == ["blocks.1.hook_in"]
    assert toy.hook_names(("in", -1)) == ["blocks.1.hook_in"]
    assert toy.hook_names(("in", "out")) == toy.hook_names(["in", "out"])
    assert toy.hook_names([("in", 0), "out"])[0] == "blocks.0.hook_in"
