"""Path patching equals its definition run step by step on whole prompts, one sender at a time."""

import numpy as np
import pytest
import torch

from gptoss_workbench.patching import logit_difference, path_patching

METRIC = logit_difference(7, 9)


def prompts():
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(3, 250, (1, 9), generator=draw)
    corrupted = clean.clone()
    corrupted[:, 2:4] = torch.randint(3, 250, (1, 2), generator=draw)
    return clean, corrupted


def setting(value, index=None):
    """A hook that puts a value in place of an activation, or of one head of it."""

    def hook(tensor, hook):
        out = tensor.clone()
        if index is None:
            out[:] = value
        else:
            out[:, :, index] = value[:, :, index]
        return out

    return hook


@torch.no_grad()
def by_definition(model, base, other, site, layer, part, end, between):
    """The three steps of Wang et al., each one whole forward pass under plain hooks."""
    (_, kept), (_, theirs) = (model.run_with_cache(each) for each in (base, other))
    kind, at, head = end
    target = f"blocks.{at}.hook_mlp_out" if kind == "mlp" else f"blocks.{at}.attn.hook_{kind}"
    hooks = []
    for each in range(model.n_layers):
        z = kept["z", each].clone()
        if (site, each) == ("z", layer):
            z[:, :, part] = theirs["z", each][:, :, part]
        hooks.append((f"blocks.{each}.attn.hook_z", setting(z)))
        mixed = kept["mlp_out", each].clone()
        if (site, each) == ("expert_out", layer):
            for sign, run in ((1, theirs), (-1, kept)):
                weight = run["expert_weights", each][:, :, part, None]
                mixed += sign * weight * run["expert_out", each][:, :, part]
        name = f"blocks.{each}.hook_mlp_out"
        sends = (site, each) == ("expert_out", layer)
        if name != target and (between == "frozen" or each < layer or sends):
            hooks.append((name, setting(mixed)))
    seen = {}
    with model.hooks([*hooks, (target, lambda x, hook: seen.update({target: x.clone()}))]):
        model(base)
    logits = model.run_with_hooks(base, fwd_hooks=[(target, setting(seen[target], head))])
    return float(METRIC(logits))


CASES = [
    ("z", ("q", 3, 1), "frozen"),
    ("z", ("k", 2, 0), "recomputed"),
    ("z", ("mlp", 2, None), "recomputed"),
    ("expert_out", ("v", 3, 1), "recomputed"),
    ("expert_out", ("mlp", 2, None), "frozen"),
]


@pytest.mark.parametrize(("site", "end", "between"), CASES)
def test_a_path_equals_its_definition(tiny, site, end, between):
    clean, corrupted = prompts()
    options = {"heads": [3]} if site == "z" else {"slots": [1]}
    found = path_patching(
        tiny, clean, corrupted, metric=METRIC, receivers=end, senders=site, layers=[0, 1],
        between=between, batch_tokens=27, **options,
    )  # fmt: skip
    part = found.cells.head if site == "z" else found.cells.slot
    wanted = [
        by_definition(tiny, corrupted, clean, site, int(layer), int(p), end, between)
        for layer, p in zip(found.cells.layer, part, strict=True)
    ]
    np.testing.assert_allclose(found.value[:, 0], wanted, atol=2e-5)
    assert np.abs(found.value - found.corrupted).max() > 2e-4


def test_the_path_to_the_logits_is_the_direct_effect(tiny):
    clean, corrupted = prompts()
    options = {"metric": METRIC, "receivers": ("final",), "layers": [1], "heads": [2]}
    held = path_patching(tiny, clean, corrupted, final_norm="frozen", **options)
    real = path_patching(tiny, clean, corrupted, **options)
    (_, theirs), (_, kept) = (tiny.run_with_cache(each) for each in (clean, corrupted))
    write = (theirs["z", 1] - kept["z", 1])[0, -1, 2] @ tiny.blocks[1].attn.W_O[2].float()
    direct = write / kept["scale"][0, -1] * tiny.ln_final.weight.float() @ tiny.W_U.float()
    assert held.value[0, 0] == pytest.approx(
        held.corrupted[0] + float(direct[7] - direct[9]), abs=1e-4
    )
    logits = tiny.unembed(tiny.ln_final(kept["resid_post", -1][:, -1:] + write))
    assert real.value[0, 0] == pytest.approx(float(METRIC(logits)), abs=1e-4)
    assert abs(real.value - held.value)[0, 0] > 1e-5


def test_direct_paths_of_all_senders_add_up_under_a_held_norm(tiny):
    """Embedding aside, everything the residual gains is written by a head, an expert or a bias."""
    clean, corrupted = prompts()
    options = {"metric": METRIC, "receivers": ("final",), "final_norm": "frozen"}
    sums = [
        (found.value - found.corrupted).sum()
        for site in ("z", "expert")
        for found in [path_patching(tiny, clean, corrupted, senders=site, **options)]
    ]
    (_, theirs), (_, kept) = (tiny.run_with_cache(each) for each in (clean, corrupted))
    moved = (theirs["resid_post", -1] - kept["resid_post", -1])[0, -1]  # last tokens are the same
    direct = moved / kept["scale"][0, -1] * tiny.ln_final.weight.float() @ tiny.W_U.float()
    assert sum(sums) == pytest.approx(float(direct[7] - direct[9]), abs=1e-3)


@pytest.mark.parametrize(
    ("site", "layer", "end"),
    [("z", 2, ("q", 2, 0)), ("expert_out", 2, ("mlp", 2)), ("z", 3, ("v", 1))],
)
def test_a_sender_that_is_not_upstream_is_refused(tiny, site, layer, end):
    clean, corrupted = prompts()
    with pytest.raises(ValueError, match="not upstream"):
        path_patching(
            tiny, clean, corrupted, metric=METRIC, receivers=end, senders=site, layers=[layer]
        )


def test_the_end_can_be_named_alone(tiny):
    clean, corrupted = prompts()
    options = {"metric": METRIC, "layers": [1], "heads": [2]}
    named, listed = (
        path_patching(tiny, clean, corrupted, receivers=ends, **options)
        for ends in ("final", [("final",)])
    )
    np.testing.assert_array_equal(named.value, listed.value)
    assert named.table()["pos"].tolist() == ["all"]
    with pytest.raises(ValueError, match="q needs a layer"):
        path_patching(tiny, clean, corrupted, receivers="q", **options)


def test_receivers_are_checked(tiny):
    clean, corrupted = prompts()
    for ends, message in (
        (("pattern", 1), "receiver is one of"),
        ([("final",), ("q", 2)], "give it alone"),
        (("q",), "needs a layer"),
        (("q", 0), "nothing is upstream"),
    ):
        with pytest.raises(ValueError, match=message):
            path_patching(tiny, clean, corrupted, metric=METRIC, receivers=ends)
