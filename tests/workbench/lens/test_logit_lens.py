"""What the logit lens reads: the model's own words at the end, nothing about pads, known facts."""

from random import Random

import pytest
import torch

import gptoss_workbench as wb
from gptoss_workbench.lens import logit_lens
from gptoss_workbench.nano.data import sample


@pytest.fixture(scope="module")
def nano32():
    return wb.load(dtype=torch.float32)


def test_the_last_layer_says_what_the_model_says(tiny, tokens):
    seen = logit_lens(tiny, tokens, k=4)
    expected = tiny(tokens).log_softmax(-1)
    top = expected.topk(4)
    assert torch.equal(seen.tokens[-1], top.indices)
    torch.testing.assert_close(seen.log_probs[-1], top.values)
    assert float(seen.kl[-1].max()) == 0
    following = expected[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(seen.target_log_prob[-1, :, :-1], following)
    assert bool(seen.target_log_prob[-1, :, -1].isnan().all())


def test_the_last_layer_says_it_in_bfloat16_too(tiny_bf16, tokens):
    seen = logit_lens(tiny_bf16, tokens)
    expected = tiny_bf16(tokens).float().log_softmax(-1).topk(1).values
    # The model rounds its logits to bfloat16: 2^-8 of their size.
    torch.testing.assert_close(seen.log_probs[-1, ..., :1], expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"])
def test_a_site_is_read_through_the_final_norm(tiny, tokens, site):
    seen = logit_lens(tiny, tokens, sites=site, layers=[1, -1], k=2)
    _, cache = tiny.run_with_cache(tokens, names_filter=[site])
    expected = tiny.unembed(tiny.ln_final(cache[site, 1])).log_softmax(-1).topk(2)
    assert torch.equal(seen.tokens[0], expected.indices)
    torch.testing.assert_close(seen.log_probs[0], expected.values)
    assert seen.layers == (1, 3) and seen.sites == (site, site)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_and_is_left_out(tiny, tokens, side):
    short = tokens[1:, :9]
    pad = torch.full((1, 4), tiny.pad_id)
    row = torch.cat([pad, short] if side == "left" else [short, pad], 1)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, slice(0, 4) if side == "left" else slice(9, 13)] = False
    both = logit_lens(tiny, torch.cat([tokens[:1], row]), attention_mask=mask)
    alone = logit_lens(tiny, short)
    real = mask[1]
    torch.testing.assert_close(both.log_probs[:, 1, real], alone.log_probs[:, 0])
    assert torch.equal(both.rank[:, 1, real], alone.rank[:, 0])
    assert bool(both.entropy[:, 1, ~real].isnan().all())
    assert (both.tokens[:, 1, ~real] == -1).all() and (both.commitment()[1, ~real] == -1).all()
    assert len(both.table()) == 4 * (13 + 9)
    last = logit_lens(tiny, torch.cat([tokens[:1], row]), attention_mask=mask, positions=-1)
    torch.testing.assert_close(last.log_probs[:, 1, 0], alone.log_probs[:, 0, -1])


def test_lists_of_any_length_are_prompts(tiny, tokens):
    rows = [tokens[0].tolist(), tokens[1, :5].tolist()]
    seen = logit_lens(tiny, rows, batch=1)
    assert seen.mask.sum(1).tolist() == [13, 5]
    again = logit_lens(tiny, rows, batch=2)
    torch.testing.assert_close(seen.log_probs, again.log_probs, equal_nan=True)


def test_few_residuals_at_a_time_give_the_same(tiny, tokens, monkeypatch):
    import sys

    import gptoss_workbench.lens.residuals  # noqa: F401

    expected = logit_lens(tiny, tokens)
    monkeypatch.setattr(sys.modules["gptoss_workbench.lens.residuals"], "KEPT", 1)
    seen = logit_lens(tiny, tokens)
    assert torch.equal(seen.log_probs, expected.log_probs)
    assert torch.equal(seen.kl, expected.kl)


def test_a_trace_is_read_without_running_again(tiny, tokens):
    trace = tiny.trace(tokens, names_filter=["resid_post"])
    seen, expected = logit_lens(tiny, trace), logit_lens(tiny, tokens)
    torch.testing.assert_close(seen.log_probs, expected.log_probs)
    assert torch.equal(seen.target, expected.target)
    cut = logit_lens(tiny, trace[:, 2:5])
    torch.testing.assert_close(cut.target_log_prob, expected.target_log_prob[:, :, 2:5])
    with pytest.raises(ValueError, match=r"did not keep .*resid_mid"):
        logit_lens(tiny, trace, sites="resid_mid")


def test_commitment_is_the_first_layer_that_keeps_its_word(tiny, tokens):
    seen = logit_lens(tiny, tokens)
    top = seen.tokens[..., 0]
    for row in range(2):
        for pos in range(13):
            kept = [i for i in range(4) if (top[i:, row, pos] == top[-1, row, pos]).all()]
            assert int(seen.commitment()[row, pos]) == kept[0]


def test_a_given_target_is_followed(tiny, tokens):
    seen = logit_lens(tiny, tokens, target=77, positions=[0, -1])
    expected = tiny(tokens).log_softmax(-1)[:, [0, -1], 77]
    torch.testing.assert_close(seen.target_log_prob[-1], expected)
    each = torch.tensor([[5, 6], [7, 8]])
    assert torch.equal(logit_lens(tiny, tokens, target=each, positions=[0, -1]).target, each)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "hook_z"}, "sites are resid_pre"),
        ({"sites": "blocks.1.hook_resid_mid"}, r"that is sites='resid_mid', layers=\[1\]"),
        ({"layers": [9]}, "layers: expected numbers between -4 and 3"),
        ({"positions": 13}, "positions: expected numbers between -13 and 12"),
        ({"target": 256}, "target: expected token ids between 0 and 255"),
        ({"target": torch.zeros(3, 3, dtype=torch.long)}, "broadcast to the places"),
        ({"batch": 0}, "batch is the number of prompts"),
    ],
)
def test_wrong_options_are_named(tiny, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        logit_lens(tiny, tokens, **options)


def digits_to_look_up(model, n=6):
    """Prompts of task pairs, and the places before a digit that only a look-up can give."""
    rng = Random(5)
    texts = [sample(rng, task="pairs", lang="en").text() for _ in range(n)]
    tokens, mask = model.encode_batch(texts)
    found = torch.zeros_like(mask)
    for i, row in enumerate(tokens.tolist()):
        strings = model.require_tokenizer().strings(row)
        end = int(mask[i].sum())
        answer = max(j for j in range(end) if strings[j] == "<|message|>")
        for j in range(answer + 1, end - 1):
            found[i, j] = strings[j + 1].strip().isdigit()
    return texts, found


def share_right(seen, entry, where):
    return float((seen.tokens[entry, ..., 0] == seen.target)[where].float().mean())


def test_a_looked_up_digit_is_committed_by_the_look_up_layer(nano32):
    texts, where = digits_to_look_up(nano32)
    seen = logit_lens(nano32, texts, sites=("resid_mid", "resid_post"))
    right = [share_right(seen, i, where) for i in range(8)]
    assert max(right[:2]) < 0.3  # layer 0 cannot know it
    assert min(right[-2:]) > 0.9  # the last layer does
    depth = seen.commitment()[where].float()
    assert float((depth >= 1).float().mean()) > 0.8
    assert float(seen.kl[1][where].mean()) > 20 * float(seen.kl[-3][where].mean())


def test_through_another_unembedding_nothing_is_seen(nano32):
    texts, where = digits_to_look_up(nano32, 3)
    seen = logit_lens(nano32, texts)
    weight = nano32.unembed.weight
    kept = weight.data
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    try:
        weight.data = kept[order]
        control = logit_lens(nano32, texts)
    finally:
        weight.data = kept
    assert share_right(seen, -1, where) > 0.9 > 0.2 > share_right(control, -1, where)


def test_in_another_order_of_layers_nothing_is_committed(nano32):
    """Negative control of commitment: the same predictions, layers drawn anew for every place."""
    from dataclasses import replace

    texts, where = digits_to_look_up(nano32, 3)
    seen = logit_lens(nano32, texts)
    dice = torch.Generator().manual_seed(0)
    order = torch.rand(seen.rank.shape, generator=dice).argsort(0)[..., None]
    mixed = replace(seen, tokens=seen.tokens.gather(0, order.expand(seen.tokens.shape)))
    assert share_right(mixed, -1, where) < 0.9
    assert float((mixed.commitment()[where] == 1).float().mean()) < 0.7


def test_a_summary_speaks_of_layers_and_shows_itself(nano32):
    texts, _ = digits_to_look_up(nano32, 3)
    seen = logit_lens(nano32, texts)
    table = seen.summary()
    assert table["kl"][-1] == 0 and (table["low"] <= table["kl"]).all()
    assert (table["kl"] <= table["high"]).all()
    assert "committed" in repr(seen) and "<table>" in seen._repr_html_()
    frame = seen.to_pandas()
    assert len(frame) == 4 * int(seen.mask.sum()) and frame.top.map(bool).all()
