"""TransformerLens's own tools, run on our model as it is, agree with our API."""

from dataclasses import replace

import pandas
import pytest
import torch

from gptoss_kernels.backend import available
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.model import GptOss

pytest.importorskip("transformer_lens")

from transformer_lens import ActivationCache as TheirCache
from transformer_lens import patching
from transformer_lens.model_protocol import TransformerLensModelWithWeights
from transformer_lens.tools.analysis import (
    attribution_patching,
    direct_logit_attribution,
    logit_lens,
)
from transformer_lens.utilities import Slice, get_act_name

SMALL = replace(
    TINY,
    num_hidden_layers=2,
    layer_types=alternating_layers(2),
    num_attention_heads=4,
    num_local_experts=4,
    intermediate_size=32,
    sliding_window=2,
)
LAYERS, HEADS, KV_HEADS, PLACES, RIGHT, WRONG = 2, 4, 2, 3, 7, 9
SAME = {"atol": 1e-5, "rtol": 1e-5}
"""Same forward passes; only the patched tensor is put together differently."""


@pytest.fixture(scope="module", params=available("cpu"))
def model(request):
    return GptOss(SMALL, random_tensors(SMALL, 0), dtype=torch.float32, backend=request.param)


@pytest.fixture(scope="module")
def clean():
    return torch.tensor([[11, 5, 31], [17, 90, 77]])


@pytest.fixture(scope="module")
def corrupted(clean):
    return torch.where(torch.tensor([False, True, False]), clean + 20, clean)


@pytest.fixture(scope="module")
def run(model, clean):
    with torch.no_grad():
        return model.run_with_cache(clean)


@pytest.fixture(autouse=True)
def without_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def metric(logits):
    return (logits[:, -1, RIGHT] - logits[:, -1, WRONG]).mean()


def patched(model, corrupted, cache, name, index):
    """Our API: replace one part of one activation by the clean run's."""

    def put(tensor, hook):
        out = tensor.clone()
        out[index] = cache[name][index]
        return out

    with model.hooks(fwd_hooks=[(name, put)]):
        return metric(model(corrupted))


ALL = slice(None)


def test_the_model_has_what_transformer_lens_asks_for(model):
    assert isinstance(model, TransformerLensModelWithWeights)
    assert get_act_name("z", 1) in model.hook_dict


def test_block_sweeps_equal_a_plain_loop(model, corrupted, run):
    cache = run[1]
    swept = patching.get_act_patch_block_every(model, corrupted, cache, metric)
    names = ("resid_pre", "attn_out", "mlp_out")
    own = [
        [
            [
                patched(model, corrupted, cache, get_act_name(name, layer), (ALL, place))
                for place in range(PLACES)
            ]
            for layer in range(LAYERS)
        ]
        for name in names
    ]
    torch.testing.assert_close(swept, torch.tensor(own), **SAME)
    assert swept.std() > 0
    alone = patching.get_act_patch_resid_pre(model, corrupted, cache, metric)
    torch.testing.assert_close(alone, swept[0])


def test_head_sweeps_equal_a_plain_loop(model, corrupted, run):
    cache = run[1]
    swept = patching.get_act_patch_attn_head_all_pos_every(model, corrupted, cache, metric)
    own = torch.zeros(5, LAYERS, HEADS)
    for i, name in enumerate(("z", "q", "k", "v", "pattern")):
        for layer in range(LAYERS):
            for head in range(KV_HEADS if name in "kv" else HEADS):
                index = (ALL, head) if name == "pattern" else (ALL, ALL, head)
                own[i, layer, head] = patched(
                    model, corrupted, cache, get_act_name(name, layer), index
                )
    torch.testing.assert_close(swept, own, **SAME)
    assert all(kind.std() > 0 for kind in swept)


def test_pattern_rows_by_place_equal_a_plain_loop(model, corrupted, run):
    cells = [(0, 3, 2), (1, 0, 1), (1, 2, 2)]
    swept = patching.generic_activation_patch(
        model,
        corrupted,
        run[1],
        metric,
        patching.layer_head_pos_pattern_patch_setter,
        "pattern",
        index_df=pandas.DataFrame(cells, columns=["layer", "head_index", "dest_pos"]),
    )
    own = [
        patched(model, corrupted, run[1], get_act_name("pattern", layer), (ALL, head, place))
        for layer, head, place in cells
    ]
    torch.testing.assert_close(swept, torch.stack(own), **SAME)


def test_a_sweep_leaves_no_hook(model, corrupted, run):
    patching.get_act_patch_resid_mid(model, corrupted, run[1], metric)
    assert not any(point.observed for point in model.hook_dict.values())
    torch.testing.assert_close(model(corrupted[:1]), model(corrupted)[:1], **SAME)


def test_a_direct_path_reaches_one_heads_query_only(model, corrupted, run):
    _, theirs = model.run_with_cache(corrupted)
    swept = patching.get_act_patch_direct_path(
        model, corrupted, run[1], theirs, metric, src_layer=0, src_head=1, verbose=False
    )
    write = (run[1]["z", 0] - theirs["z", 0])[:, :, 1] @ model.blocks[0].attn.W_O[1]
    for head in range(HEADS):
        block = model.blocks[1]
        moved = block.ln1(theirs["resid_pre", 1] + write) @ block.attn.W_Q[head]
        moved = moved + block.attn.b_Q[head]

        def put(q, hook, head=head, moved=moved):
            out = q.clone()
            out[:, :, head] = moved
            return out

        with model.hooks(fwd_hooks=[("blocks.1.attn.hook_q", put)]):
            own = metric(model(corrupted))
        torch.testing.assert_close(swept[1, head], own, atol=1e-4, rtol=1e-4)
    assert swept[1].std() > 0 and not model.cfg.use_split_qkv_input


def test_attribution_patching_is_difference_times_gradient(model, clean, corrupted):
    result = attribution_patching.attribution_patch(
        model,
        clean[:1],
        corrupted[:1],
        metric,
        attribution_patching.EdgeAttributionConfig(granularity="node"),
    )
    with torch.no_grad():
        _, wanted = model.run_with_cache(clean[:1])
    names = ["hook_embed"] + [get_act_name(n, i) for i in range(LAYERS) for n in ("z", "mlp_out")]
    live = {}

    def keep(tensor, hook):
        live[hook.name] = tensor

    def gradient(grad, hook):
        live[hook.name + "_grad"] = grad

    with model.hooks([(n, keep) for n in names], [(n, gradient) for n in names]):
        metric(model(corrupted[:1])).backward()
    for node, score in result.node_scores.items():
        name = node.hook_name
        part = (wanted[name] - live[name].detach()) * live[name + "_grad"]
        part = part[0, node.position]
        own = part[node.head].sum() if node.kind == "attn_head_out" else part.sum()
        assert score == pytest.approx(float(own), abs=1e-5)
    assert max(map(abs, result.node_scores.values())) > 1e-3


@pytest.mark.parametrize("positions", [-1, None])
def test_the_logit_lens_reads_our_cache(model, clean, run, positions):
    logits, cache = run
    ours = logit_lens(model, cache=cache, incl_mid=True, positions=positions)
    theirs = logit_lens(model, clean, incl_mid=True, positions=positions)
    assert ours.labels == theirs.labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    torch.testing.assert_close(ours.values, theirs.values, **SAME)
    last = logits if positions is None else logits[:, positions]
    torch.testing.assert_close(ours.values[-1], last, atol=1e-4, rtol=1e-4)
    stack = cache.accumulated_resid(incl_mid=True, apply_ln=True, pos_slice=positions)
    torch.testing.assert_close(ours.values, stack @ model.W_U, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("unit", ["component", "head"])
def test_direct_logit_attribution_sums_to_the_logit_difference(model, clean, run, unit):
    logits, cache = run
    found = direct_logit_attribution(model, clean, RIGHT, WRONG, unit=unit)
    wanted = logits[:, -1, RIGHT] - logits[:, -1, WRONG]
    torch.testing.assert_close(found.attribution.sum(0), wanted, atol=1e-4, rtol=1e-4)
    if unit == "component":
        parts, labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
    else:
        parts, labels = cache.stack_head_results(
            pos_slice=-1, incl_remainder=True, return_labels=True
        )
    assert found.labels == labels
    own = cache.logit_attrs(parts, RIGHT, WRONG, pos_slice=-1)
    torch.testing.assert_close(found.attribution, own)


def test_direct_logit_attribution_by_layer_ends_at_the_logit(model, run):
    logits, cache = run
    found = direct_logit_attribution(
        model, cache=cache, answer_tokens=torch.tensor([RIGHT, WRONG]), unit="layer", pos=None
    )
    wanted = torch.stack([logits[0, :, RIGHT], logits[1, :, WRONG]])
    torch.testing.assert_close(found.attribution[-1], wanted, atol=1e-4, rtol=1e-4)


def test_direct_logit_attribution_of_one_row_without_batch_axis(model, clean):
    logits, cache = model.run_with_cache(clean[:1], remove_batch_dim=True)
    found = direct_logit_attribution(model, cache=cache, answer_tokens=RIGHT, unit="head")
    torch.testing.assert_close(found.attribution.sum(), logits[0, -1, RIGHT], atol=1e-4, rtol=1e-4)


def test_their_cache_answers_on_our_activations(model, run):
    ours = run[1]
    theirs = TheirCache(dict(ours.cache_dict), model)
    for key in (("resid_post", 1), ("q", 0, "attn"), ("scale", 1, "ln2"), "embed", "scale"):
        assert theirs[key] is ours[key]
    for pos in (None, -1, (1, 3)):
        for name, extra in (
            ("accumulated_resid", {"incl_mid": True}),
            ("decompose_resid", {}),
            ("stack_head_results", {"incl_remainder": True}),
        ):
            given = {"return_labels": True, "pos_slice": pos, **extra}
            stack, labels = getattr(ours, name)(**given)
            wanted, wanted_labels = getattr(theirs, name)(**given)
            assert labels == wanted_labels
            torch.testing.assert_close(stack, wanted, **SAME)
    full, labels = ours.get_full_resid_decomposition(return_labels=True)
    wanted, wanted_labels = theirs.get_full_resid_decomposition(
        expand_neurons=False, return_labels=True
    )
    assert labels == wanted_labels
    torch.testing.assert_close(full, wanted, **SAME)


def test_their_norm_leaves_the_weight_out_and_ours_applies_it(model, run):
    ours, theirs = run[1], TheirCache(dict(run[1].cache_dict), model)
    parts = ours.decompose_resid()
    torch.testing.assert_close(
        ours.apply_ln_to_stack(parts),
        theirs.apply_ln_to_stack(parts) * model.ln_final.weight.float(),
        **SAME,
    )


def test_their_slices_are_understood(run):
    for given in (None, -1, (1, 3), [0, 2]):
        ours = run[1].accumulated_resid(pos_slice=given)
        torch.testing.assert_close(run[1].accumulated_resid(pos_slice=Slice(given)), ours)
        rows = run[1].apply_slice_to_batch_dim(Slice(-1))
    assert not rows.has_batch_dim
