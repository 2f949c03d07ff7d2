"""One hook point: what it calls, what it checks, and what it leaves alone."""

import pytest
import torch

from gptoss_hooks.points import EditError, HookPoint, Watched


def named(point, name="blocks.2.attn.hook_z"):
    point.name = name
    return point


@pytest.fixture
def point():
    return named(HookPoint("batch", "pos"))


@pytest.fixture
def read_only():
    return named(HookPoint("batch", instead="attn.hook_pattern"), "blocks.0.attn.hook_sink")


@pytest.fixture
def x():
    return torch.arange(6.0).reshape(2, 3)


def double(tensor, hook):
    return tensor * 2


def double_in_place(tensor, hook):
    tensor.mul_(2)


def test_without_an_observer_the_argument_comes_back(point, x):
    assert not point.observed and point(x) is x


def test_a_function_gets_the_tensor_and_its_point_by_keyword(point, x):
    seen = []
    point.add_hook(lambda tensor, hook: seen.append((tensor, hook)))
    assert point(x) is x
    assert seen[0][0] is x and seen[0][1] is point


def test_functions_run_in_the_order_they_were_added(point, x):
    point.add_hook(double)
    point.add_hook(lambda tensor, hook: tensor + 1)
    point.add_hook(lambda tensor, hook: tensor - 10, prepend=True)
    torch.testing.assert_close(point(x), (x - 10) * 2 + 1)


def test_detaching_removes_one_attachment_of_a_function_added_twice(point, x):
    detach = point.add_hook(double)
    point.add_hook(double)
    detach()
    detach()
    torch.testing.assert_close(point(x), x * 2)


def test_permanent_functions_stay_until_asked_for(point):
    point.add_hook(double, is_permanent=True)
    point.add_hook(double, "bwd")
    point.remove_hooks("fwd")
    assert len(point._backward_functions) == 1
    point.remove_hooks()
    assert point.observed and not point._backward_functions
    point.remove_hooks(including_permanent=True)
    assert not point.observed


def test_an_unknown_direction_is_refused(point):
    with pytest.raises(ValueError, match="'fwd' or 'bwd'"):
        point.add_hook(double, "sideways")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, hook: x[:1], r"hook_z \[batch pos\]: expected \(2, 3\) on cpu.*\(1, 3\)"),
        (lambda x, hook: x.double(), r"expected torch.float32.*float64.*activation\.dtype"),
        (lambda x, hook: x.to("meta"), "on meta"),
        (lambda x, hook: x.tolist(), "must return a tensor or None; got list"),
        (lambda x, hook: 0, "got int"),
    ],
    ids=["shape", "dtype", "device", "list", "int"],
)
def test_what_a_function_returns_must_fit(point, x, given, message):
    point.add_hook(given)
    with pytest.raises(EditError, match=message):
        point(x)


def test_what_a_torch_hook_returns_must_fit(point, x):
    handle = point.register_forward_hook(lambda module, args, out: out[:1])
    with pytest.raises(EditError, match=r"expected \(2, 3\)"):
        point(x)
    handle.remove()
    assert point(x) is x


def test_a_bad_return_value_is_caught_before_the_next_function_sees_it(point, x):
    seen = []
    point.add_hook(lambda tensor, hook: tensor[:1])
    point.add_hook(lambda tensor, hook: seen.append(tensor))
    with pytest.raises(EditError):
        point(x)
    assert not seen


@pytest.mark.parametrize("edit", [double, double_in_place])
@pytest.mark.parametrize("inference", [False, True])
def test_an_edit_of_a_read_only_point_names_the_live_one(read_only, edit, inference):
    read_only.add_hook(edit)
    with torch.inference_mode(inference), pytest.raises(EditError, match=r"edit attn.hook_pattern"):
        read_only(torch.ones(2))


def test_a_torch_hook_cannot_edit_a_read_only_point_either(read_only):
    read_only.register_forward_hook(lambda module, args, out: out * 2)
    with pytest.raises(EditError, match=r"attn.hook_pattern"):
        read_only(torch.ones(2))


def test_a_torch_pre_hook_cannot_edit_a_read_only_point_either(read_only):
    read_only.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    with pytest.raises(EditError, match=r"attn.hook_pattern"):
        read_only(torch.ones(2))


def test_returning_a_read_only_tensor_unchanged_is_no_edit(read_only):
    read_only.add_hook(lambda tensor, hook: tensor)
    read_only.add_hook(lambda tensor, hook: tensor.view_as(tensor))
    x = torch.ones(2)
    assert torch.equal(read_only(x), x)


@pytest.mark.parametrize("attach", ["function", "torch hook", "torch pre-hook"])
def test_an_edit_in_place_acts_at_a_shared_point_and_nowhere_else(x, attach):
    point, before = named(HookPoint("batch", "pos", shared=True)), x.clone()
    if attach == "function":
        point.add_hook(double_in_place)
    elif attach == "torch hook":
        point.register_forward_hook(lambda module, args, out: out.mul_(2))
    else:
        point.register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
    torch.testing.assert_close(point(x), before * 2)
    assert torch.equal(x, before)


def test_a_recorder_costs_a_shared_point_no_copy(x):
    point, seen = named(HookPoint("batch", "pos", shared=True)), []
    point.add_hook(lambda tensor, hook: seen.append(tensor), reads_only=True)
    assert point(x) is x and seen[0] is x
    assert point.observed and not point.edited_or_differentiated


def test_a_backward_function_sees_the_gradient_and_may_replace_it(point, x):
    seen = []
    point.add_hook(lambda grad, hook: seen.append((grad.clone(), hook.name)), "bwd")
    point.add_hook(lambda grad, hook: grad * 10, "bwd")
    x.requires_grad_()
    (point(x) * 3).sum().backward()
    assert torch.equal(seen[0][0], torch.full_like(x, 3)) and seen[0][1] == point.name
    assert torch.equal(x.grad, torch.full_like(x, 30))


def test_a_backward_function_leaves_a_tensor_without_a_graph_alone(point, x):
    point.add_hook(double, "bwd")
    assert not point(x).requires_grad


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_every_kind_of_torch_hook_counts_as_an_observer(point, register):
    handle = getattr(point, register)(lambda *args: None)
    assert point.observed and point.edited_or_differentiated
    handle.remove()
    assert not point.observed and not point.edited_or_differentiated


def test_the_context_is_kept_until_cleared(point, x):
    point.add_hook(lambda tensor, hook: hook.ctx.update(mean=float(tensor.mean())))
    point(x)
    assert point.ctx == {"mean": 2.5}
    point.clear_context()
    assert point.ctx == {}


def test_the_layer_is_read_from_the_name(point):
    assert point.layer() == 2
    with pytest.raises(ValueError, match=r"unembed.hook_out is not inside a block"):
        named(point, "unembed.hook_out").layer()


def test_a_point_shows_its_name_axes_and_access(point, read_only):
    assert repr(point) == "HookPoint(blocks.2.attn.hook_z [batch pos])"
    assert "read-only" in repr(read_only)


@pytest.mark.parametrize("inference", [False, True])
def test_watching_tells_a_change_from_a_look(inference):
    with torch.inference_mode(inference):
        x = torch.ones(3)
        watched = Watched(x)
        assert not watched.changed(x) and not watched.changed(x.view(3))
        assert watched.changed(x * 2)
        x[1] = 5
        assert watched.changed(x)
