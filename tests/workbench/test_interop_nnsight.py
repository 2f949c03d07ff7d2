"""NNsight drives the same modules: reads, edits and gradients equal those of our own hooks."""

from dataclasses import replace

import pytest
import torch

from gptoss_hooks.points import EditError
from gptoss_kernels.backend import available
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.model import GptOss

nnsight = pytest.importorskip("nnsight")

SMALL = replace(
    TINY,
    num_hidden_layers=2,
    layer_types=alternating_layers(2),
    num_attention_heads=4,
    num_local_experts=4,
    intermediate_size=32,
    sliding_window=2,
)
TOKENS = torch.tensor([[11, 5, 200, 31, 7], [17, 90, 4, 77, 3]])
PER_LAYER = [
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "ln1.hook_out",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_sink",
    "attn.hook_z",
    "attn.hook_result",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "ln2.hook_out",
    "mlp.hook_router_logits",
    "mlp.hook_expert_indices",
    "mlp.hook_expert_weights",
    "mlp.hook_expert_gate",
    "mlp.hook_expert_up",
    "mlp.hook_expert_post",
    "mlp.hook_expert_out",
    "hook_mlp_out",
    "hook_resid_post",
]
ONE_LAYER = [f"blocks.1.{point}" for point in PER_LAYER]
OUTSIDE = ["hook_embed", "ln_final.hook_scale", "ln_final.hook_normalized", "ln_final.hook_out"]


@pytest.fixture(scope="module", params=available("cpu"))
def model(request):
    return GptOss(SMALL, random_tensors(SMALL, 0), dtype=torch.float32, backend=request.param)


@pytest.fixture(scope="module")
def sight(model):
    return nnsight.NNsight(model)


class Batched(nnsight.NNsight):
    """Rows of several invokes as one batch, as nnsight's own language models do."""

    def _batch_size(self, *inputs, **kwargs):
        return len(inputs[0]) if inputs else 0

    def _batch(self, invokes, fn):
        return (torch.cat([inputs[0] for inputs, _ in invokes]),), {}


@pytest.fixture(scope="module")
def run(model):
    with torch.no_grad():
        return model.run_with_cache(TOKENS, names_filter=lambda name: True)


def in_firing_order(model, names):
    """The order the points come by in, which is the order a trace must ask in."""
    fired = []

    def note(tensor, hook):
        fired.append(hook.name)

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, note) for name in names]):
        model(TOKENS)
    return fired


def test_every_kind_of_point_reads_the_same_in_one_trace(model, sight, run):
    names = in_firing_order(model, [*OUTSIDE, *ONE_LAYER, "unembed.hook_out"])
    assert set(ONE_LAYER + OUTSIDE) <= set(names)
    logits, cache = run
    with torch.no_grad(), sight.trace(TOKENS):
        seen = nnsight.save({})
        for name in names:
            seen[name] = sight.get(name).output
        out = sight.output.save()
    for name in names:
        assert torch.equal(seen[name], cache[name]), name
    assert torch.equal(out, logits)


@pytest.mark.parametrize("name", ONE_LAYER)
def test_a_point_reads_the_same_alone(sight, run, name):
    logits, cache = run
    with torch.no_grad(), sight.trace(TOKENS):
        value = sight.get(name).output.save()
        out = sight.output.save()
    assert torch.equal(value, cache[name]) and torch.equal(out, logits)


def test_plain_submodules_can_be_read(sight, run):
    with torch.no_grad(), sight.trace(TOKENS):
        normed = sight.blocks[1].ln1.output.save()
        block = sight.blocks[1].output.save()
    assert torch.equal(block, run[1]["resid_post", 1])
    assert torch.equal(normed, run[1]["blocks.1.ln1.hook_out"])


EDITABLE = [
    "hook_resid_pre",
    "attn.hook_q",
    "attn.hook_rot_k",
    "attn.hook_v",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "hook_attn_out",
    "ln2.hook_normalized",
    "mlp.hook_router_logits",
    "mlp.hook_expert_weights",
    "mlp.hook_expert_gate",
    "mlp.hook_expert_up",
    "mlp.hook_expert_post",
    "mlp.hook_expert_out",
    "hook_mlp_out",
    "hook_resid_post",
]


@pytest.mark.parametrize("point", EDITABLE)
def test_an_edit_acts_as_our_own_hook_does(model, sight, run, point):
    name = f"blocks.1.{point}"

    def ours(tensor, hook):
        out = tensor.clone()
        out[:, 1:, ..., 0] *= -2.0
        return out

    with torch.no_grad():
        wanted = model.run_with_hooks(TOKENS, fwd_hooks=[(name, ours)])
        with sight.trace(TOKENS):
            changed = sight.get(name).output.clone()
            changed[:, 1:, ..., 0] *= -2.0
            sight.get(name).output = changed
            out = sight.output.save()
    assert torch.equal(out, wanted) and not torch.equal(out, run[0])


def test_experts_can_be_chosen_from_a_trace(model, sight, run):
    other = (run[1]["expert_indices", 1] + 1) % SMALL.num_local_experts
    with torch.no_grad():
        wanted = model.run_with_hooks(
            TOKENS, fwd_hooks=[("blocks.1.mlp.hook_expert_indices", lambda x, hook: other)]
        )
        with sight.trace(TOKENS):
            sight.blocks[1].mlp.hook_expert_indices.output = other
            weights = sight.blocks[1].mlp.hook_expert_weights.output.save()
            out = sight.output.save()
    assert torch.equal(out, wanted)
    assert weights.sum(-1).allclose(torch.ones(()))


def test_an_edit_that_cannot_act_raises_here_too(sight):
    with pytest.raises(EditError, match="hook_pattern"), torch.no_grad(), sight.trace(TOKENS):
        sight.blocks[0].attn.hook_sink.output = torch.zeros(2, 4, 5)


@pytest.mark.parametrize(
    "point",
    ["hook_resid_pre", "attn.hook_z", "attn.hook_pattern", "mlp.hook_expert_post", "hook_mlp_out"],
)
def test_gradients_equal_those_of_our_backward_hooks(model, sight, point):
    name, wanted = f"blocks.1.{point}", {}

    def keep(grad, hook):
        wanted["grad"] = grad.clone()

    with model.hooks(bwd_hooks=[(name, keep)]):
        model(TOKENS)[:, -1, 7].sum().backward()
    with sight.trace(TOKENS):
        value = sight.get(name).output
        loss = sight.output[:, -1, 7].sum()
        with loss.backward():
            grad = value.grad.save()
    torch.testing.assert_close(grad, wanted["grad"], atol=1e-6, rtol=1e-5)
    assert grad.abs().max() > 0


def test_two_invokes_in_one_batch_do_not_leak(model):
    sight = Batched(model)
    with torch.no_grad():
        alone = [model(TOKENS[i : i + 1]) for i in range(2)]
        with sight.trace() as tracer:
            with tracer.invoke(TOKENS[:1]):
                logits = sight.blocks[1].mlp.hook_router_logits.output
                seen = logits.shape
                nnsight.save(seen)
                sight.blocks[1].mlp.hook_router_logits.output = logits * 0 + torch.arange(4.0)
                sight.blocks[1].mlp.hook_expert_out.output[:] = 0
                first = sight.output.save()
            with tracer.invoke(TOKENS[1:]):
                post = sight.blocks[1].mlp.hook_expert_post.output.save()
                second = sight.output.save()
    _, cache = model.run_with_cache(TOKENS[1:], names_filter="blocks.1.mlp.hook_expert_post")
    assert seen == (1, 5, 4)
    torch.testing.assert_close(second, alone[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(post, cache["expert_post", 1], atol=1e-5, rtol=1e-5)
    assert (first - alone[0]).abs().max() > 0.01


def test_after_a_trace_the_model_is_as_it_was(model, sight):
    with torch.no_grad():
        before = model(TOKENS)
        with sight.trace(TOKENS):
            sight.blocks[0].hook_resid_post.output[:] = 0
        assert torch.equal(model(TOKENS), before)
    assert not any(point.observed for point in model.hook_dict.values())
