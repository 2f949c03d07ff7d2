"""Names: other spellings find the same point, wrong ones are told what to use."""

import pytest

from gptoss_hooks.names import ABSENT, ALIASES, UnknownHook, canonical


def test_every_alias_means_a_point_of_the_model(tiny):
    for pattern, target in ALIASES:
        spelled = (
            pattern.replace(r"(\d+)", "2")
            .replace("([qkv])", "k")
            .replace(r"(hook_expert_\w+)", "hook_expert_indices")
            .replace("(?:router\\.)?", "router.")
            .replace("\\", "")
        )
        found = tiny.canonical_hook_name(spelled)
        assert found in tiny.hook_dict and spelled not in tiny.hook_dict, (spelled, target)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("embed.hook_out", "hook_embed"),
        ("blocks.1.hook_out", "blocks.1.hook_resid_post"),
        ("blocks.1.ln2.hook_in", "blocks.1.hook_mlp_in"),
        ("blocks.1.attn.v.hook_out", "blocks.1.attn.hook_v"),
        ("blocks.1.attn.o.hook_in", "blocks.1.attn.hook_z"),
        ("blocks.1.mlp.router.hook_out", "blocks.1.mlp.hook_router_logits"),
        ("blocks.1.mlp.hook_router_scores", "blocks.1.mlp.hook_expert_weights"),
        ("blocks.1.mlp.router.hook_expert_indices", "blocks.1.mlp.hook_expert_indices"),
        ("ln_final.hook_in", "blocks.3.hook_resid_post"),
        ("unembed.hook_in", "ln_final.hook_out"),
    ],
)
def test_transformer_lens_spellings_mean_the_same_tensor(tiny, alias, name):
    assert tiny.canonical_hook_name(alias) == name


@pytest.mark.parametrize("name", ["blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post"])
def test_dense_neuron_names_are_refused_and_point_to_the_experts(tiny, name):
    for call in (tiny.canonical_hook_name, tiny.hook_axes, tiny.hook_names):
        with pytest.raises(
            UnknownHook, match=r"hook_expert_gate, hook_expert_up .* or hook_expert_post"
        ):
            call(name)


def test_names_of_single_experts_point_to_the_slots(tiny):
    with pytest.raises(UnknownHook, match=r"\[batch, pos, k, d_ff\].*hook_expert_indices"):
        tiny.canonical_hook_name("blocks.0.mlp.experts.3.hook_post")


def test_absolute_positions_point_to_the_rotated_queries(tiny):
    with pytest.raises(UnknownHook, match="hook_rot_q"):
        tiny.canonical_hook_name("hook_pos_embed")


def test_no_absent_name_hides_a_real_one(tiny):
    import re

    assert not [n for n in tiny.hook_dict for p, _ in ABSENT if re.fullmatch(p, n)]


def test_a_wrong_name_lists_near_ones_and_reads_as_a_sentence():
    with pytest.raises(UnknownHook) as caught:
        canonical("blocks.0.attn.hook_pattren", ["blocks.0.attn.hook_pattern"], 1)
    assert str(caught.value) == (
        "no hook point 'blocks.0.attn.hook_pattren'. Near: blocks.0.attn.hook_pattern. "
        "model.hook_points() lists them all."
    )


def test_a_layer_beyond_the_model_is_unknown(tiny):
    with pytest.raises(UnknownHook, match=r"no hook point 'blocks\.4\.hook_out'"):
        tiny.canonical_hook_name("blocks.4.hook_out")
