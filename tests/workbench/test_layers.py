"""An edit changes exactly what it must: every live point against the dense model of `dense.py`."""

from dataclasses import replace

import pytest
import torch

from gptoss_hooks.points import EditError
from gptoss_kernels.backend import available
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import alternating_layers

CLOSE = {"atol": 2e-5, "rtol": 1e-5}
"""Two float32 computations in different order, through four layers."""
LAYERS = (0, 1)  # one slides, one sees everything
ROW, PLACE = 1, 9
UPSTREAM = [
    "hook_resid_pre",
    "hook_attn_in",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "ln1.hook_out",
]
ATTENTION = "attn.hook_q attn.hook_k attn.hook_v attn.hook_rot_q attn.hook_rot_k".split()
ATTENTION += "attn.hook_q_input attn.hook_k_input attn.hook_v_input".split()
ATTENTION += "attn.hook_attn_scores attn.hook_pattern attn.hook_z attn.hook_result".split()
MIDDLE = "hook_attn_out hook_resid_mid hook_mlp_in".split()
MIDDLE += "ln2.hook_scale ln2.hook_normalized ln2.hook_out".split()
EXPERTS = "router_logits expert_indices expert_weights expert_gate expert_up".split()
EXPERTS = [f"mlp.hook_{name}" for name in [*EXPERTS, "expert_post", "expert_out"]]
BLOCK = [*UPSTREAM, *ATTENTION, *MIDDLE, *EXPERTS, "hook_mlp_out", "hook_resid_post"]
ENDS = "hook_embed ln_final.hook_scale ln_final.hook_normalized ln_final.hook_out".split()
POINTS = [*ENDS, "unembed.hook_out", *(f"blocks.{layer}.{p}" for layer in LAYERS for p in BLOCK)]


@pytest.fixture(scope="module")
def oracle(dense):
    config = replace(TINY, num_hidden_layers=2, layer_types=alternating_layers(2))
    return dense.Dense(config, random_tensors(config, 0))


@pytest.fixture(params=available("cpu"))
def tiny(request, make_model):
    return make_model(backend=request.param, num_hidden_layers=2, layer_types=alternating_layers(2))


def edited(x):
    """Another value at one place of one row, differing along every other axis."""
    x = x.clone()
    at = (
        (ROW, slice(None), PLACE)
        if x.ndim == 4 and x.shape[2] == x.shape[3] == 13
        else (ROW, PLACE)
    )
    if x.dtype == torch.int64:
        x[at] = (x[at] + 3) % 8  # the two experts stay different
    else:
        x[at] = x[at].clamp_min(-1e4) * torch.linspace(0.5, 1.5, x[at].shape[-1]) + 0.1
    return x


def returned(tensor, hook):
    return edited(tensor)


def in_place(tensor, hook):
    tensor.copy_(edited(tensor))


@pytest.fixture(scope="module")
def clean_logits(oracle):
    tokens = torch.randint(3, 256, (2, 13), generator=torch.Generator().manual_seed(0))
    return oracle(tokens)


def test_the_dense_model_agrees_at_every_point(tiny, oracle, tokens):
    logits, cache = tiny.run_with_cache(tokens)
    torch.testing.assert_close(logits, oracle(tokens), **CLOSE)
    assert set(cache.keys()) <= set(oracle.kept)
    for name, value in cache.items():
        torch.testing.assert_close(value, oracle.kept[name], **CLOSE, msg=lambda m, n=name: n + m)


def test_every_live_point_is_edited_here(tiny):
    live = {row.name for row in tiny.hook_points() if row.access == "live"}
    assert live == set(POINTS)


@pytest.mark.parametrize("name", POINTS)
def test_an_edit_acts_as_in_the_dense_model_returned_or_in_place(
    tiny, oracle, tokens, clean_logits, name
):
    wanted = oracle(tokens, {name: edited})
    with torch.no_grad():
        for edit in (returned, in_place):
            logits = tiny.run_with_hooks(tokens, fwd_hooks=[(name, edit)])
            torch.testing.assert_close(logits, wanted, **CLOSE)
    changed = (wanted - clean_logits).abs().amax(-1) > 1e-4
    assert changed[ROW, PLACE:].any()
    assert not changed[1 - ROW].any() and not changed[ROW, :PLACE].any()


def recorded(model, tokens):
    """Every activation of a run, as a recorder sees it: not copied."""
    kept = {}

    def keep(tensor, point):
        kept[point.name] = tensor

    with torch.no_grad(), model.recording(lambda name: True, keep):
        model(tokens)
    return kept


@pytest.fixture(scope="module")
def kept_clean():
    return {}


@pytest.fixture
def clean(tiny, tokens, kept_clean):
    """Every activation without an edit, computed once for each backend."""
    if tiny.backend not in kept_clean:
        kept_clean[tiny.backend] = recorded(tiny, tokens)
    return kept_clean[tiny.backend]


@pytest.mark.parametrize("name", POINTS)
def test_an_edit_in_place_leaves_what_came_before_as_it_was(tiny, tokens, clean, name):
    """In layer 0 by a function, elsewhere by a torch hook."""
    point = tiny.hook_dict[name]
    if name.startswith("blocks.0"):
        detach = point.add_hook(in_place)
    else:
        detach = point.register_forward_hook(lambda module, args, out: in_place(out, module)).remove
    kept = recorded(tiny, tokens)
    detach()
    order = list(clean)
    for earlier in order[: order.index(name)]:
        assert torch.equal(kept[earlier], clean[earlier]), earlier
    assert not torch.equal(kept["unembed.hook_out"], clean["unembed.hook_out"])


def test_points_fire_in_the_order_of_their_table(tiny, tokens):
    fired = []
    with torch.no_grad(), tiny.recording(lambda n: True, lambda x, point: fired.append(point.name)):
        tiny(tokens)
    assert fired == list(tiny.hook_dict) == [row.name for row in tiny.hook_points()]


def test_the_router_fires_before_the_experts_in_the_stated_order(tiny, tokens):
    fired = []
    chosen = lambda name: name.startswith("blocks.1.mlp.")  # noqa: E731
    with torch.no_grad(), tiny.recording(chosen, lambda x, point: fired.append(point.name)):
        tiny(tokens)
    assert [name.removeprefix("blocks.1.mlp.hook_") for name in fired] == [
        "router_logits",
        "expert_indices",
        "expert_weights",
        "expert_gate",
        "expert_up",
        "expert_post",
        "expert_out",
    ]


# -- attention ---


def under(model, tokens, edits, wanted):
    """Activations `wanted` of a run under edits (name -> function of the tensor)."""
    hooks = [(name, lambda x, hook, edit=edit: edit(x)) for name, edit in edits.items()]
    with torch.no_grad(), model.hooks(hooks):
        return model.run_with_cache(tokens, names_filter=wanted)[1]


def zero_head(x):
    x = x.clone()
    x[ROW, PLACE, 3] = 0
    return x


@pytest.mark.parametrize("point", ["hook_z", "hook_result"])
def test_zeroing_a_head_equals_its_rows_of_the_output_weight_being_zero(tiny, tokens, point):
    name = f"blocks.1.attn.{point}"
    out = under(tiny, tokens, {name: zero_head}, ["blocks.1.hook_attn_out", "blocks.1.attn.hook_z"])
    weight = tiny.blocks[1].attn.o_proj.weight.float().clone()
    weight[:, 3 * 16 : 4 * 16] = 0
    z = out["blocks.1.attn.hook_z"][ROW, PLACE].flatten()
    wanted = weight @ z + tiny.blocks[1].attn.b_O.float()
    torch.testing.assert_close(out["blocks.1.hook_attn_out"][ROW, PLACE], wanted)


def test_heads_and_bias_sum_to_the_attention_output(tiny, tokens):
    out = under(tiny, tokens, {}, ["blocks.0.attn.hook_result", "blocks.0.hook_attn_out"])
    total = out["result", 0].sum(2) + tiny.blocks[0].attn.b_O
    torch.testing.assert_close(out["attn_out", 0], total)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_pattern_row_and_its_sink_sum_to_one(tiny, tokens, layer):
    out = under(tiny, tokens, {}, lambda name: f"blocks.{layer}.attn" in name)
    pattern, sink = out["pattern", layer], out["sink", layer]
    torch.testing.assert_close(pattern.sum(-1) + sink, torch.ones_like(sink))
    assert sink.min() > 0


def test_edited_scores_go_through_the_softmax_with_the_sink(tiny, tokens):
    name, scores = "blocks.1.attn.hook_attn_scores", {}

    def flat(x):
        scores["edited"] = torch.where(x > -1e30, 0.5, x)
        return scores["edited"]

    out = under(tiny, tokens, {name: flat}, lambda n: n.startswith("blocks.1.attn"))
    sinks = tiny.blocks[1].attn.sinks.float()
    n = torch.arange(1, 14)
    total = n * torch.tensor(0.5).exp() + sinks.exp()[:, None]
    torch.testing.assert_close(out["sink", 1][0], sinks.exp()[:, None] / total)
    torch.testing.assert_close(
        out["pattern", 1][0, :, -1, 0], torch.tensor(0.5).exp() / total[:, -1]
    )


def test_an_edited_pattern_is_what_mixes_the_values(tiny, tokens):
    def look_back(x):
        x = torch.zeros_like(x)
        x[..., 0] = 2.0
        return x

    name = "blocks.1.attn.hook_pattern"
    out = under(tiny, tokens, {name: look_back}, lambda n: n.startswith("blocks.1.attn"))
    first = out["v", 1][:, :1].repeat_interleave(4, 2)
    torch.testing.assert_close(out["z", 1], 2 * first.expand_as(out["z", 1]))


def test_the_sink_is_read_only_and_names_the_pattern(tiny, tokens):
    for edit in (lambda x, hook: x + 1, lambda x, hook: x.zero_()):
        with pytest.raises(EditError, match=r"attn\.hook_sink is read-only: edit .*hook_pattern"):
            tiny.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_sink", edit)])


@pytest.mark.parametrize("part", "qkv")
def test_a_split_input_edited_for_one_head_moves_that_head_alone(tiny, tokens, part):
    names = [f"blocks.1.attn.hook_{part}"]
    clean = under(tiny, tokens, {}, names)[names[0]]

    def second_head(x):
        x = x.clone()
        x[:, :, 1] += torch.linspace(-1, 1, 64)
        return x

    moved = under(tiny, tokens, {f"blocks.1.attn.hook_{part}_input": second_head}, names)[names[0]]
    same = (moved - clean).abs().amax((0, 1, 3)) < 1e-5
    assert same.tolist() == [head != 1 for head in range(clean.shape[2])]


def test_a_split_input_and_the_query_it_makes_are_the_same_edit(tiny, tokens):
    logits = []
    block, q = tiny.blocks[1], {}

    def other(x):
        return x * torch.linspace(0.5, 1.5, 64)

    def keep(x, hook):
        q["edited"] = x.clone()

    with torch.no_grad():
        hooks = [(f"{block.attn.hook_q_input.name}", lambda x, hook: other(x))]
        logits += [tiny.run_with_hooks(tokens, fwd_hooks=[*hooks, (block.attn.hook_q.name, keep)])]
        hooks = [(block.attn.hook_q.name, lambda x, hook: q["edited"])]
        logits += [tiny.run_with_hooks(tokens, fwd_hooks=hooks)]
    assert torch.equal(*logits)


# -- experts ---

ROUTER = "blocks.1.mlp.hook_router_logits"
INDICES, WEIGHTS = "blocks.1.mlp.hook_expert_indices", "blocks.1.mlp.hook_expert_weights"
MLP = [ROUTER, INDICES, WEIGHTS]


def test_banning_the_best_expert_promotes_the_next(tiny, tokens):
    clean = under(tiny, tokens, {}, MLP)
    third = clean[ROUTER].sort(-1, descending=True).indices[..., 2]

    def ban(x):
        return x.scatter(-1, clean[INDICES][..., :1], -torch.inf)

    out = under(tiny, tokens, {ROUTER: ban}, MLP)
    assert torch.equal(out[INDICES], torch.stack([clean[INDICES][..., 1], third], -1))
    logits = clean[ROUTER].gather(-1, out[INDICES])
    torch.testing.assert_close(out[WEIGHTS], logits.softmax(-1))


def test_a_tie_goes_to_the_lower_expert(tiny, tokens):
    out = under(tiny, tokens, {ROUTER: torch.zeros_like}, MLP)
    assert torch.equal(out[INDICES], torch.tensor([0, 1]).expand(2, 13, 2))


def test_selected_experts_are_weighed_by_the_current_logits(tiny, tokens):
    forced = torch.tensor([6, 2]).expand(2, 13, 2)
    edits = {ROUTER: lambda x: x * 2, INDICES: lambda x: forced}
    out = under(tiny, tokens, edits, MLP)
    assert torch.equal(out[INDICES], forced)
    torch.testing.assert_close(out[WEIGHTS], out[ROUTER][..., [6, 2]].softmax(-1))


def test_weights_are_used_as_given(tiny, tokens):
    names = ["blocks.1.mlp.hook_expert_out", "blocks.1.hook_mlp_out"]
    given = torch.tensor([2.0, -0.5])
    out = under(tiny, tokens, {WEIGHTS: lambda x: given.expand_as(x)}, names)
    parts = out["expert_out", 1]
    torch.testing.assert_close(out["mlp_out", 1], 2 * parts[:, :, 0] - 0.5 * parts[:, :, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([8, 0], "experts are 0 to 7; the edit holds 0 to 8"),
        ([-1, 0], "the edit holds -1 to 0"),
        ([3, 3], "the 2 experts of a token must differ"),
    ],
)
@pytest.mark.parametrize("way", ["returned", "in place", "inference"])
def test_impossible_experts_are_refused(tiny, tokens, given, message, way):
    def edit(x, hook):
        if way != "in place":
            return torch.tensor(given).expand_as(x)
        x.copy_(torch.tensor(given))

    with torch.inference_mode(way == "inference"), pytest.raises(EditError, match=message):
        tiny.run_with_hooks(tokens, fwd_hooks=[(INDICES, edit)])


def test_expert_numbers_must_stay_integers(tiny, tokens):
    with pytest.raises(EditError, match=r"expected torch\.int64; the hook returned torch\.int32"):
        tiny.run_with_hooks(tokens, fwd_hooks=[(INDICES, lambda x, hook: x.int())])


def test_the_parts_of_an_expert_are_its_formula(tiny, tokens):
    out = under(tiny, tokens, {}, lambda name: name.startswith("blocks.1."))
    gate, up = out["expert_gate", 1].clamp(max=7), out["expert_up", 1].clamp(-7, 7)
    post = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    torch.testing.assert_close(out["expert_post", 1], post)
    weighed = out["expert_weights", 1][..., None] * out["expert_out", 1]
    torch.testing.assert_close(out["mlp_out", 1], weighed.sum(2))


@pytest.mark.parametrize("part", ["gate", "up"])
def test_halves_are_edited_before_the_clamp(tiny, tokens, part):
    def huge(x):
        return torch.full_like(x, 100.0)

    edits = {f"blocks.1.mlp.hook_expert_{part}": huge}
    out = under(tiny, tokens, edits, lambda name: name.startswith("blocks.1."))
    gate, up = out["expert_gate", 1].clamp(max=7), out["expert_up", 1].clamp(-7, 7)
    torch.testing.assert_close(out["expert_post", 1], gate * torch.sigmoid(1.702 * gate) * (up + 1))


def test_edits_of_a_split_input_and_of_its_norm_both_act(tiny, tokens):
    """q reads its own input through the norm; what the norm's hooks add is not lost."""
    norm, split = "blocks.1.ln1.hook_out", "blocks.1.attn.hook_q_input"

    def shift(x, hook):
        return x + 0.5

    def scale(x, hook):
        return x * torch.linspace(0.5, 1.5, x.shape[-1])

    def queries(*edits):
        with torch.no_grad(), tiny.hooks(fwd_hooks=edits):
            _, cache = tiny.run_with_cache(tokens, names_filter="blocks.1.attn.hook_q")
        return cache["q", 1]

    plain = queries()
    by_norm, by_split = queries((norm, shift)) - plain, queries((split, scale)) - plain
    both = queries((norm, shift), (split, scale)) - plain
    assert by_norm.abs().max() > 0.1
    assert by_split.abs().max() > 0.1
    torch.testing.assert_close(both, by_norm + by_split, rtol=0, atol=1e-5)
