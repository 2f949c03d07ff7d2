"""Gradients to activations equal autograd through the dense model of `dense.py`."""

from dataclasses import replace

import pytest
import torch

from gptoss_kernels.backend import available
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import alternating_layers

POINTS = [f"blocks.{layer}.{point}" for layer in (0, 1) for point in (
    "hook_resid_pre", "ln1.hook_out", "ln2.hook_scale",
    "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_attn_scores", "attn.hook_pattern",
    "attn.hook_z", "attn.hook_result", "hook_resid_mid", "mlp.hook_router_logits",
    "mlp.hook_expert_weights", "mlp.hook_expert_gate", "mlp.hook_expert_up",
    "mlp.hook_expert_post", "mlp.hook_expert_out", "hook_mlp_out",
)]  # fmt: skip
POINTS += ["hook_embed", "ln_final.hook_out", "unembed.hook_out"]
TOLERANCE = 1e-4


@pytest.fixture(params=available("cpu"))
def model(request, make_model):
    return make_model(backend=request.param, num_hidden_layers=2, layer_types=alternating_layers(2))


@pytest.fixture(scope="module")
def wanted(dense):
    """d logit / d point for every point, by autograd through the dense model."""
    config = replace(TINY, num_hidden_layers=2, layer_types=alternating_layers(2))
    oracle = dense.Dense(config, random_tensors(config, 0))
    tokens = torch.randint(3, 256, (2, 13), generator=torch.Generator().manual_seed(0))
    logits = oracle(tokens, {"hook_embed": lambda x: x.requires_grad_()})
    grads = torch.autograd.grad(logit(logits), [oracle.kept[name] for name in POINTS])
    return dict(zip(POINTS, grads, strict=True))


def logit(logits):
    return logits[0, -1, 7] - logits[1, 8, 9]


def apart(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def gradients(model, tokens, names=POINTS):
    """Gradients seen by backward hooks, by name."""
    seen = {}

    def keep(grad, hook):
        seen[hook.name] = grad.clone()

    with model.hooks(bwd_hooks=[(name, keep) for name in names]):
        logit(model(tokens)).backward()
    return seen


def test_backward_hooks_see_the_gradients_of_the_dense_model(model, tokens, wanted):
    seen = gradients(model, tokens)
    assert set(seen) == set(POINTS)
    for name in POINTS:
        assert apart(seen[name], wanted[name]) < TOLERANCE, name


def test_a_tensor_captured_in_a_forward_hook_can_be_differentiated(model, tokens, wanted):
    names = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_q", "blocks.1.mlp.hook_expert_post"]
    captured = {}

    def capture(tensor, hook):
        captured[hook.name] = tensor

    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, capture) for name in names])
    grads = torch.autograd.grad(logit(logits), [captured[name] for name in names])
    for name, grad in zip(names, grads, strict=True):
        assert apart(grad, wanted[name]) < TOLERANCE, name


def test_a_tensor_captured_by_a_torch_hook_can_be_differentiated(model, tokens, wanted):
    captured, name = [], "blocks.1.attn.hook_pattern"
    point = model.hook_dict[name]
    handle = point.register_forward_hook(lambda module, args, out: captured.append(out))
    (grad,) = torch.autograd.grad(logit(model(tokens)), captured)
    handle.remove()
    assert apart(grad, wanted[name]) < TOLERANCE


def test_a_cache_keeps_gradients_beside_activations(model, tokens):
    names = ["blocks.0.attn.hook_z", "blocks.1.mlp.hook_expert_out"]
    loss, cache = model.run_with_cache(
        tokens, return_type="loss", names_filter=names, incl_bwd=True
    )
    assert list(cache.keys()) == [n for name in names for n in (name, f"{name}_grad")]
    wanted = gradients_of_loss(model, tokens, names)
    for name in names:
        assert cache[f"{name}_grad"].shape == cache[name].shape
        assert apart(cache[f"{name}_grad"], wanted[name]) < TOLERANCE
    assert not loss.isnan()


def gradients_of_loss(model, tokens, names):
    captured = {}

    def capture(tensor, hook):
        captured[hook.name] = tensor

    loss = model.run_with_hooks(
        tokens, return_type="loss", fwd_hooks=[(name, capture) for name in names]
    )
    grads = torch.autograd.grad(loss, [captured[name] for name in names])
    return dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("reads_only", [True, False])
def test_observing_everything_leaves_the_gradients_as_they_are(model, tokens, wanted, reads_only):
    inputs = [f"blocks.{layer}.attn.hook_{part}_input" for layer in (0, 1) for part in "qkv"]
    look = lambda tensor, hook: None  # noqa: E731
    chosen = (
        list(model.hook_dict) if reads_only else [n for n in model.hook_dict if n not in inputs]
    )
    detach = [model.hook_dict[name].add_hook(look, reads_only=reads_only) for name in chosen]
    try:
        seen = gradients(model, tokens)
    finally:
        for each in detach:
            each()
    for name in POINTS:
        assert apart(seen[name], wanted[name]) < TOLERANCE, name


def test_split_inputs_have_gradients_that_sum_to_the_attention_input(model, tokens):
    layer = "blocks.1"
    splits = [f"{layer}.attn.hook_{part}_input" for part in "qkv"]
    seen = gradients(model, tokens, [*splits, f"{layer}.hook_attn_in"])
    total = sum(seen[name].sum(2) for name in splits)
    assert apart(total, seen[f"{layer}.hook_attn_in"]) < TOLERANCE


def test_weights_stay_packed_in_the_graph(model, tokens):
    saved = []

    def note(tensor):
        saved.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        model.hooks([("hook_embed", lambda tensor, hook: None)]),
    ):
        model(tokens)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    packed = [t for t in saved if t.dtype == torch.uint8]
    assert len(packed) >= 2 * 2 * 2
    copies = [
        t for t in saved if t.ndim > 1 and t.is_floating_point() and t.data_ptr() not in weights
    ]
    decoded = [t for t in copies if t.shape[-2:] in [(192, 64), (64, 96), (256, 64), (128, 64)]]
    assert not decoded


def test_weights_are_frozen(model):
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_edit_with_parameters_can_be_trained(model, tokens):
    direction = torch.zeros(64, requires_grad=True)
    hooks = [("blocks.1.hook_resid_pre", lambda x, hook: x + direction)]
    logit(model.run_with_hooks(tokens, fwd_hooks=hooks)).backward()
    assert direction.grad is not None and direction.grad.norm() > 0


@pytest.mark.parametrize("backend", available("cpu"))
def test_in_bfloat16_gradients_point_the_same_way(make_model, backend, tokens, wanted):
    model = make_model(
        torch.bfloat16, backend, num_hidden_layers=2, layer_types=alternating_layers(2)
    )
    name = "blocks.1.mlp.hook_expert_post"
    seen = gradients(model, tokens, [name])[name]
    assert seen.dtype == torch.bfloat16
    cosine = torch.cosine_similarity(seen.float().flatten(), wanted[name].flatten(), 0)
    assert cosine > 0.98  # bfloat16 keeps 8 bits a step
