"""Sentence matrices equal what the whole pattern gives; rows on request equal the hook's rows."""

from random import Random

import numpy as np
import pytest
import torch

import gptoss_workbench as wb
from gptoss_workbench.heads import attention_rows, sentence_attention
from gptoss_workbench.nano.data import sample

LABELS = [-1, 0, 0, 0, 1, 1, -1, 2, 2, 2, 2, 3, 3]


def test_sentences_sum_the_pattern_of_their_tokens(tiny, tokens):
    row = tokens[:1]
    found = sentence_attention(tiny, row, sentences=LABELS)
    _, cache = tiny.run_with_cache(row, names_filter=["pattern", "sink"])
    member = torch.nn.functional.one_hot(torch.tensor(LABELS) + 1)[:, 1:].float()
    size = member.sum(0)
    for layer in range(4):
        pattern = cache["pattern", layer][0]
        mass = torch.einsum("qi,hqk,kj->hij", member, pattern, member) / size[:, None]
        torch.testing.assert_close(found.mass[layer], mass, atol=1e-6, rtol=1e-5)
        sink = cache["sink", layer][0] @ member / size
        torch.testing.assert_close(found.sink[layer], sink, atol=1e-6, rtol=1e-5)
    whole = found.mass.sum(-1) + found.outside + found.sink
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_means_run_over_reachable_pairs_only(tiny, tokens):
    found = sentence_attention(tiny, tokens[:1], sentences=LABELS)
    visible = torch.ones(13, 13).tril().bool()
    narrow = visible & ~torch.ones(13, 13).tril(-8).bool()
    member = torch.nn.functional.one_hot(torch.tensor(LABELS) + 1)[:, 1:].float()
    for layer, seen in ((0, narrow), (1, visible)):
        pairs = member.T @ seen.float() @ member
        assert torch.equal(found.pairs[layer], pairs)
        assert torch.equal(found.mean[layer, 0].isnan(), pairs == 0)
        even = member.T @ (seen / seen.sum(-1, keepdim=True)) @ member / member.sum(0)[:, None]
        torch.testing.assert_close(found.even[layer], even)
    assert int(found.pairs[0, 3, 0]) == 0 < int(found.pairs[1, 3, 0])  # out of the window of 8


def test_even_attention_has_lift_one_without_a_sink(make_model, tokens):
    """A head whose queries are zero attends evenly; with its sink off, lift is 1 everywhere."""
    model = make_model(num_hidden_layers=1, layer_types=("sliding_attention",))

    def nothing(q, hook):
        return torch.zeros_like(q)

    kept = model.blocks[0].attn.sinks.data
    try:
        model.blocks[0].attn.sinks.data = torch.full_like(kept, -1e4)
        with model.hooks([("blocks.0.attn.hook_rot_q", nothing)]):
            found = sentence_attention(model, tokens[:1], sentences=LABELS)
    finally:
        model.blocks[0].attn.sinks.data = kept
    lift = found.lift[~found.lift.isnan()]
    torch.testing.assert_close(lift, torch.ones_like(lift))
    control = sentence_attention(model, tokens[:1], sentences=LABELS).lift
    assert float((control[~control.isnan()] - 1).abs().max()) > 0.2


def test_a_harmony_prompt_brings_its_own_sentences():
    model = wb.load(dtype=torch.float32)
    text = sample(Random(3), task="vars", lang="en", effort="medium", n=3).text()
    found = sentence_attention(model, text, layers=1, heads=[2, 5])
    assert found.mass.shape[:2] == (1, 2) and len(found.texts or []) == found.mass.shape[-1]
    table = found.table()
    assert set(table["head"]) == {2, 5} and (table["from"] >= table["to"]).all()
    with pytest.raises(ValueError, match="no harmony message"):
        sentence_attention(model, "<|endoftext|>")


@pytest.mark.parametrize("labels", [[0] * 12, [0, 2] + [0] * 11, [-2] + [0] * 12])
def test_labels_with_gaps_are_refused(tiny, tokens, labels):
    with pytest.raises(ValueError, match="without gaps"):
        sentence_attention(tiny, tokens[:1], sentences=labels)


def test_rows_on_request_are_the_hooks_rows(tiny, tokens):
    _, cache = tiny.run_with_cache(tokens[:1], names_filter=["pattern", "sink"])
    for layer in (0, -1):
        found = attention_rows(tiny, tokens[:1], layer, heads=[6, 1], queries=[-1, 4])
        expected = cache["pattern", layer][0, [6, 1]][:, [12, 4]]
        torch.testing.assert_close(found.pattern, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.sink, cache["sink", layer][0, [6, 1]][:, [12, 4]])
        whole = found.pattern.sum(-1) + found.sink
        torch.testing.assert_close(whole, torch.ones_like(whole))
        assert found.queries.tolist() == [12, 4] and found.heads == (6, 1)


def test_rows_leave_padding_out(tiny, tokens):
    mask = torch.ones(1, 13, dtype=torch.bool)
    mask[0, :4] = False
    padded = attention_rows(tiny, tokens[:1], 1, queries=[0, -1], attention_mask=mask)
    plain = attention_rows(tiny, tokens[:1, 4:], 1, queries=[0, -1])
    torch.testing.assert_close(padded.pattern, plain.pattern)
    assert padded.queries.tolist() == [0, 8]
    table = plain.table(keys=3)
    assert set(table["key"]) >= {-1} and np.all(table["attention"] > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 8}, "heads: expected numbers between -8 and 7"),
        ({"queries": 13}, "positions: expected numbers between -13 and 12"),
    ],
)
def test_heads_and_rows_that_are_not_there_are_named(tiny, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        attention_rows(tiny, tokens[:1], 0, **options)
    with pytest.raises(ValueError, match="expected one prompt, got 2"):
        attention_rows(tiny, tokens, 0)
