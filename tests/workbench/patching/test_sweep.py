"""A sweep equals the plain loop: one hooked forward pass of the whole prompt for every cell."""

from random import Random

import numpy as np
import pytest
import torch

from gptoss_hooks.edits import ban
from gptoss_hooks.edits import scale as scaled
from gptoss_workbench.nano import sample
from gptoss_workbench.patching import (
    SITES,
    activation_patching,
    kl_divergence,
    log_prob,
    logit_difference,
    loss,
)
from gptoss_workbench.patching.nodes import ALL

ODD = {
    "num_hidden_layers": 3,
    "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
    "num_attention_heads": 6,
    "num_local_experts": 5,
    "num_experts_per_tok": 3,
    "sliding_window": 4,
}
"""Odd numbers of layers, heads, experts and slots, and a window shorter than the prompt."""


@pytest.fixture
def odd(make_model):
    return make_model(**ODD)


def prompts(width=9, batch=1, seed=0):
    draw = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, 250, (batch, width), generator=draw)
    corrupted = clean.clone()
    corrupted[:, 2:4] = torch.randint(3, 250, (batch, 2), generator=draw)
    return clean, corrupted


def expert_delta(source, base, layer, pos, expert):
    """What the expert's weighted contribution changes by, written out for one token."""
    total = 0
    for sign, run in ((1, source), (-1, base)):
        mlp = f"blocks.{layer}.mlp.hook_expert_"
        for slot, chosen in enumerate(run[mlp + "indices"][0, pos].tolist()):
            if chosen == expert:
                total += sign * run[mlp + "weights"][0, pos, slot] * run[mlp + "out"][0, pos, slot]
    return total


def put(site, cell, source, base):
    """The hook of the plain loop, for one prompt."""

    def hook(tensor, hook):
        out = tensor.clone()
        here = (
            range(out.shape[2 if site == "pattern" else 1]) if cell["pos"] == ALL else [cell["pos"]]
        )
        for pos in here:
            src = pos if cell["pos"] == ALL else cell["source"]
            theirs = source[hook.name][0]
            if site == "pattern":
                out[0, cell["head"], pos] = theirs[cell["head"], src]
            elif "head" in SITES[site].parts:
                out[0, pos, cell["head"]] = theirs[src, cell["head"]]
            elif site == "expert_out":
                out[0, pos, cell["slot"]] = theirs[src, cell["slot"]]
            elif site == "expert":
                out[0, pos] += expert_delta(source, base, cell["layer"], pos, cell["expert"])
            elif site == "expert_post":
                ids = [run[hook.name.replace("post", "indices")][0] for run in (base, source)]
                slot = ids[1][src].tolist().index(int(ids[0][pos, cell["slot"]]))
                out[0, pos, cell["slot"], cell["neuron"]] = theirs[src, slot, cell["neuron"]]
            else:
                out[0, pos] = theirs[src]
        return out

    return hook


@torch.no_grad()
def plain_loop(model, cells, base, source, metric):
    """One forward pass a cell; NaN where the other run did not choose the slot's expert."""
    runs = [model.run_with_cache(each)[1] for each in (base, source)]
    values = []
    for i in range(len(cells)):
        names = ("layer", "pos", "source", "head", "slot", "expert", "neuron")
        cell = {name: int(getattr(cells, name)[i]) for name in names}
        site = str(cells.site[i])
        hook = put(site, cell, runs[1], runs[0])
        name = SITES[site].hook.format(layer=cell["layer"])
        try:
            logits = model.run_with_hooks(base, fwd_hooks=[(name, hook)])
        except ValueError:
            assert site == "expert_post"
            values.append(float("nan"))
            continue
        values.append(float(metric(logits)))
    return np.array(values)


def scale(model, tokens):
    with torch.no_grad():
        return float(model(tokens).std())


STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "q", "k", "v", "rot_q", "rot_k", "pattern")


CASES = [
    (site, positions)
    for site in (*STREAM, *HEADS, "expert_out", "expert", "expert_post")
    for positions in (None, "all", [0, 5, -1])
    if (site, positions) != ("expert_post", "all")  # a slot's expert differs between positions
]


@pytest.mark.parametrize(("site", "positions"), CASES)
def test_every_site_equals_the_plain_loop(odd, site, positions):
    clean, corrupted = prompts()
    metric = logit_difference(7, 9)
    options = {"neurons": [0, 50]} if site == "expert_post" else {}
    layers = [0, 2] if positions is None else None
    few = {"heads": [0, 1]} if site in HEADS else {}
    found = activation_patching(
        odd, clean, corrupted, metric=metric, sites=site, positions=positions, layers=layers,
        batch_tokens=100, **options, **few,
    )  # fmt: skip
    pick = np.random.default_rng(0).permutation(len(found))[:14]
    wanted = plain_loop(odd, found.cells[pick], corrupted, clean, metric)
    limit = 1e-5 * scale(odd, corrupted)
    np.testing.assert_allclose(found.value[pick, 0], wanted, atol=limit, rtol=0)
    assert np.nanmax(np.abs(found.value - found.corrupted)) > 100 * limit


def test_noising_patches_the_clean_run(odd):
    clean, corrupted = prompts()
    metric = logit_difference(7, 9)
    found = activation_patching(
        odd, clean, corrupted, metric=metric, sites=("z", "mlp_out"), positions=[2, 4],
        direction="noise",
    )  # fmt: skip
    wanted = plain_loop(odd, found.cells, clean, corrupted, metric)
    np.testing.assert_allclose(found.value[:, 0], wanted, atol=1e-5 * scale(odd, clean), rtol=0)
    other = activation_patching(
        odd, clean, corrupted, metric=metric, sites=("z", "mlp_out"), positions=[2, 4]
    )
    assert np.abs(found.value - other.value).max() > 1e-3


def test_the_cut_into_batches_changes_nothing(odd):
    clean, corrupted = prompts()
    sweeps = [
        activation_patching(
            odd, clean, corrupted, metric=logit_difference(7, 9), sites=("resid_pre", "z"),
            layers=[0, 1], heads=[3], positions=[1, 4, 7], batch_tokens=tokens,
        ).value
        for tokens in (1, 37, 100_000)
    ]  # fmt: skip
    limit = 1e-5 * scale(odd, corrupted)
    np.testing.assert_allclose(sweeps[1], sweeps[0], atol=limit, rtol=0)
    np.testing.assert_allclose(sweeps[2], sweeps[0], atol=limit, rtol=0)


def count_calls(monkeypatch, model):
    """How often a model is called, and the halves of each of its layers, from now on."""
    runs = {"model": 0, "attn": [0] * model.n_layers, "mlp": [0] * model.n_layers}

    def watch(module, counts, key):
        forward = module.forward

        def counted(*args, **options):
            counts[key] += 1
            return forward(*args, **options)

        monkeypatch.setattr(module, "forward", counted)

    watch(model, runs, "model")
    for layer, block in enumerate(model.blocks):
        watch(block.attn, runs["attn"], layer)
        watch(block.mlp, runs["mlp"], layer)
    return runs


def test_cells_that_change_nothing_have_the_value_of_the_base_and_no_run(odd, monkeypatch):
    clean, corrupted = prompts(batch=2)
    runs = count_calls(monkeypatch, odd)
    options = {"metric": logit_difference(7, 9), "layers": [0, 2]}
    before = activation_patching(
        odd, clean, corrupted, positions=[0, 1], sites=HEADS[:6], **options
    )
    behind = activation_patching(
        odd, clean, corrupted, sites="mlp_out", positions=range(8), **options
    )
    last = behind.cells.layer == 2
    both = 2
    assert runs == {"model": both, "attn": [both, both + 1, both + 1],
                    "mlp": [both, both + 1, both + 1]}  # fmt: skip
    for found, silent in ((before, slice(None)), (behind, last)):
        np.testing.assert_array_equal(found.value[silent] - found.corrupted, 0)
    assert np.abs(behind.value[~last][2:7] - behind.corrupted).min() > 1e-6


def test_prompts_that_are_the_same_have_no_effect_anywhere(odd):
    clean, corrupted = prompts(batch=2)
    corrupted[0] = clean[0]
    options = {"metric": logit_difference(7, 9), "sites": (*STREAM, *HEADS, "expert_out", "expert")}
    for positions in (None, "all"):
        found = activation_patching(odd, clean, corrupted, positions=positions, **options)
        np.testing.assert_allclose(found.value[:, 0], found.corrupted[0], atol=1e-5)
        assert np.abs(found.value[:, 1] - found.corrupted[1]).max() > 1e-3


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out"])
def test_hooks_of_the_caller_see_whole_prompts_and_act(odd, site):
    clean, corrupted = prompts()
    metric, widths = logit_difference(7, 9), set()

    def doubled(tensor, hook):
        widths.add(tensor.shape[1])
        return 2 * tensor

    with odd.hooks([("blocks.2.hook_mlp_out", doubled)]):
        found = activation_patching(odd, clean, corrupted, metric=metric, sites=site, heads=[1])
        wanted = plain_loop(odd, found.cells, corrupted, clean, metric)
    assert widths == {9}
    limit = 1e-5 * scale(odd, corrupted)
    np.testing.assert_allclose(found.value[:, 0], wanted, atol=limit, rtol=0)


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out"])
def test_edits_act_on_patched_runs_too(odd, site):
    clean, corrupted = prompts()
    metric = logit_difference(7, 9)
    options = {"metric": metric, "sites": site, "heads": [1], "positions": [3, 5]}
    plain = activation_patching(odd, clean, corrupted, **options)
    with odd.edited(ban(1), ban(2, tokens=[-1]), scaled("k", 0.5, layers=2)):
        found = activation_patching(odd, clean, corrupted, **options)
        wanted = plain_loop(odd, found.cells, corrupted, clean, metric)
    limit = 1e-5 * scale(odd, corrupted)
    np.testing.assert_allclose(found.value[:, 0], wanted, atol=limit, rtol=0)
    assert np.abs(found.value - plain.value).min() > limit


def test_an_edit_behind_the_layers_acts_on_every_value(odd):
    clean, corrupted = prompts()
    with odd.edited(scaled("ln_final.hook_out", 2.0)):
        found = activation_patching(
            odd, clean, corrupted, metric=logit_difference(7, 9), sites="z", positions="all"
        )
    plain = activation_patching(
        odd, clean, corrupted, metric=logit_difference(7, 9), sites="z", positions="all"
    )
    np.testing.assert_allclose(found.value, 2 * plain.value, atol=1e-5 * scale(odd, corrupted))
    np.testing.assert_array_equal(found.corrupted, 2 * plain.corrupted)


@pytest.mark.parametrize("kind", ["log_prob", "kl", "loss", "function"])
def test_every_metric_is_read_as_in_the_plain_loop(odd, kind):
    clean, corrupted = prompts()
    with torch.no_grad():
        reference = odd(clean)[:, -2]
    metric = {
        "log_prob": log_prob(11, position=-3),
        "kl": kl_divergence(reference, position=-2),
        "loss": loss(corrupted),
        "function": lambda logits: logits[:, 4, 8].mean(),
    }[kind]
    found = activation_patching(
        odd, clean, corrupted, metric=metric, sites="resid_mid", layers=[1], batch_tokens=64
    )
    wanted = plain_loop(odd, found.cells, corrupted, clean, metric)
    np.testing.assert_allclose(found.value[:, 0], wanted, atol=1e-5 * scale(odd, corrupted), rtol=0)
    logits = {"clean": odd(clean), "corrupted": odd(corrupted)}
    for name, each in logits.items():
        np.testing.assert_allclose(getattr(found, name), [float(metric(each))], atol=1e-5)


def test_examples_of_a_batch_keep_their_own_values(odd):
    clean, corrupted = prompts(batch=3)
    right, wrong = torch.tensor([7, 8, 9]), torch.tensor([20, 21, 22])
    options = {"sites": ("attn_out", "expert_out"), "positions": [2, 6], "layers": [1]}
    metric = logit_difference(right, wrong)
    both = activation_patching(odd, clean, corrupted, metric=metric, batch_tokens=90, **options)
    for i in range(3):
        metric = logit_difference(int(right[i]), int(wrong[i]))
        alone = activation_patching(odd, clean[i], corrupted[i], metric=metric, **options)
        np.testing.assert_allclose(both.value[:, i], alone.value[:, 0], atol=1e-4)
        np.testing.assert_allclose(both.clean[i], alone.clean[0], atol=1e-4)
    np.testing.assert_allclose(both.effect, both.effects.mean(1))
    assert set(both.table(per_example=True)["batch"]) == {0, 1, 2}


def test_one_number_for_a_batch_stands_as_one_example(odd):
    clean, corrupted = prompts(batch=2)

    def mean(logits):
        return (logits[:, -1, 7] - logits[:, -1, 9]).mean()

    options = {"sites": "resid_pre", "layers": [1], "positions": [2, 5]}
    found = activation_patching(odd, clean, corrupted, metric=mean, **options)
    each = activation_patching(odd, clean, corrupted, metric=logit_difference(7, 9), **options)
    assert found.value.shape == (2, 1)
    np.testing.assert_allclose(found.value[:, 0], each.value.mean(1), atol=1e-5)


def test_pairs_of_places_join_prompts_of_different_length(odd):
    clean, _ = prompts(width=9)
    corrupted, _ = prompts(width=7, seed=1)
    metric = logit_difference(7, 9)
    found = activation_patching(
        odd, clean, corrupted, metric=metric, sites=("resid_mid", "v"), positions=[(3, 1), (8, 6)]
    )
    assert set(found.cells.pos) == {1, 6} and set(found.cells.source) == {3, 8}
    wanted = plain_loop(odd, found.cells, corrupted, clean, metric)
    np.testing.assert_allclose(found.value[:, 0], wanted, atol=1e-5 * scale(odd, corrupted), rtol=0)


@pytest.mark.parametrize("site", ["resid_mid", "resid_pre", "v", "z", "mlp_out"])
def test_padded_prompts_equal_themselves_alone(nano32, site):
    rng = Random(3)
    texts = [sample(rng, task="vars", lang="en", effort="low", n=n).prompt_text() for n in (2, 4)]
    others = [text.replace("low", "high") for text in texts]
    metric = logit_difference(40, 50)
    options = {"sites": site, "layers": [1, 3], "heads": [1], "positions": range(-25, 0)}
    both = activation_patching(nano32, texts, others, metric=metric, **options)
    assert set(both.cells.pos) == set(range(-25, 0))
    for i, (text, other) in enumerate(zip(texts, others, strict=True)):
        alone = activation_patching(nano32, text, other, metric=metric, **options)
        np.testing.assert_allclose(both.value[:, i], alone.value[:, 0], atol=1e-3)


def test_nano_equals_the_plain_loop_on_every_kind_of_site(nano32):
    text = sample(Random(0), task="vars", lang="en", effort="low", n=3).prompt_text()
    clean = nano32.to_tokens(text)
    corrupted = clean.clone()
    corrupted[0, 16] += 1
    metric = logit_difference(40, 50)
    found = activation_patching(
        nano32, clean, corrupted, metric=metric,
        sites=("resid_pre", "attn_out", "mlp_out", "z", "expert_out", "expert", "expert_post"),
        positions=[16, 30], heads=[0, 5], experts=[0, 9], neurons=[3],
    )  # fmt: skip
    pick = np.random.default_rng(0).permutation(len(found))[:40]
    wanted = plain_loop(nano32, found.cells[pick], corrupted, clean, metric)
    limit = 1e-5 * scale(nano32, corrupted)
    np.testing.assert_allclose(found.value[pick, 0], wanted, atol=limit, rtol=0)


def test_unequal_lengths_name_the_spans_that_differ(nano32):
    with pytest.raises(ValueError, match=r"clean: positions 13 to 14 .*: position 13 \("):
        a = torch.arange(100, 130)
        b = torch.cat([a[:13], a[14:]])
        b[13] = 500
        activation_patching(nano32, a, b, metric=logit_difference(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "resid"}, "sites are among"),
        ({"sites": "blocks.1.hook_resid_pre"}, r"that is sites='resid_pre', layers=\[1\]"),
        ({"sites": ["z", "blocks.0.attn.hook_z"]}, r"that is sites='z', layers=\[0\]"),
        ({"positions": []}, "give at least one place"),
        ({"layers": [9]}, "layers: expected numbers from -3 to 2"),
        ({"positions": "each"}, "positions: None"),
        ({"sites": "expert_post"}, "name some with neurons="),
        ({"direction": "up"}, "direction is"),
    ],
)
def test_what_cannot_be_swept_says_why(odd, options, message):
    clean, corrupted = prompts()
    with pytest.raises(ValueError, match=message):
        activation_patching(odd, clean, corrupted, metric=logit_difference(1, 2), **options)


def test_a_result_knows_its_axes_and_its_tokens(nano32):
    text = sample(Random(0), task="vars", lang="en", effort="low", n=2).prompt_text()
    other = text.replace("low", "high")
    found = activation_patching(
        nano32, text, other, metric=logit_difference(40, 50), sites=("resid_pre", "z"),
        layers=[1, 3], positions="all",
    )  # fmt: skip
    grid = found.grid("z")
    assert grid.axes == ("layer", "head") and grid.values.shape == (2, 8)
    assert grid.labels["layer"].tolist() == [1, 3]
    np.testing.assert_allclose(grid.values.ravel(), found.where(site="z").effect)
    np.testing.assert_allclose(found.grid("resid_pre").values, 1, atol=1e-3)
    assert "effect" in found.to_pandas() and found.direction == "denoise"
    best = found.top(3)
    again = activation_patching(
        nano32, text, other, metric=logit_difference(40, 50), cells=best.cells
    )
    np.testing.assert_allclose(again.value, best.value, atol=1e-4)
