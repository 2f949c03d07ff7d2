"""The parts of a logit sum to it, and each is what taking its write away would cost."""

import pytest
import torch

import gptoss_workbench as wb
from gptoss_workbench.attribution import logit_attribution

ODD = {"vocab_size": 257, "num_local_experts": 6, "num_experts_per_tok": 3}
WIDE = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32, "hidden_size": 128}


@pytest.mark.parametrize("changes", [{}, ODD, WIDE], ids=["tiny", "odd", "wide"])
@pytest.mark.parametrize("positions", [-1, None, [0, 5]])
def test_parts_sum_to_the_logit(make_model, tokens, changes, positions):
    model = make_model(**changes)
    logits = model(tokens)
    found = logit_attribution(model, tokens, 17, positions=positions)
    chosen = slice(None) if positions is None else [positions] if positions == -1 else positions
    torch.testing.assert_close(found.logit, logits[:, chosen, 17])
    assert float(found.residue.abs().max()) < 1e-4
    for by in ("part", "component", "layer"):
        total = found.stack(by)[0].sum(0)
        torch.testing.assert_close(total, logits[:, chosen, 17], atol=1e-4, rtol=0)


def test_parts_of_a_difference_sum_to_the_difference(tiny, tokens):
    found = logit_attribution(tiny, tokens, torch.tensor([[3], [4]]), against=9)
    logits = tiny(tokens)[:, -1]
    expected = torch.stack([logits[0, 3] - logits[0, 9], logits[1, 4] - logits[1, 9]])
    torch.testing.assert_close(found.total[:, 0], expected, atol=1e-4, rtol=0)


def test_in_bfloat16_the_residue_is_the_streams_rounding(tiny_bf16, tokens):
    found = logit_attribution(tiny_bf16, tokens, 17, positions=None)
    spread = float(tiny_bf16(tokens).float().std())
    assert 0 < float(found.residue.abs().max()) < 0.05 * spread


def linear_cost(model, cache, write, pos, token):
    """What the logit loses when a write is taken out of the last stream, the scale frozen."""
    scale = cache["scale"][:, pos]
    norm, column = model.ln_final.weight.float(), model.unembed.weight[token].float()
    x = cache["resid_post", -1][:, pos]
    return ((x / scale * norm) @ column) - (((x - write) / scale * norm) @ column)


def test_every_part_is_what_taking_it_away_costs(small, tokens):
    pos, token = 6, 40
    found = logit_attribution(small, tokens, token, positions=pos)
    names = ["embed", "resid_post", "scale", "result", "expert_out", "expert_weights"]
    _, cache = small.run_with_cache(tokens, names_filter=[*names, "expert_indices"])

    def check(value, write):
        expected = linear_cost(small, cache, write, pos, token)
        torch.testing.assert_close(value[:, 0], expected, atol=2e-5, rtol=1e-4)

    check(found.embed, cache["embed"][:, pos])
    for layer in range(2):
        check(found.biases[layer], small.blocks[layer].attn.b_O.float().expand(2, -1))
        for head in range(8):
            check(found.heads[layer, ..., head], cache["result", layer][:, pos, head])
        weights, out = cache["expert_weights", layer], cache["expert_out", layer]
        for slot in range(2):
            write = weights[:, pos, slot, None] * out[:, pos, slot]
            check(found.slots[layer, ..., slot], write)
        assert torch.equal(found.experts[layer, :, 0], cache["expert_indices", layer][:, pos])


def test_folding_b_v_as_if_rows_summed_to_one_breaks_the_sum(tiny, tokens):
    """Negative control: without sinks b_V could move into b_O; with them the sum is off."""
    found = logit_attribution(tiny, tokens, 17)
    _, cache = tiny.run_with_cache(tokens, names_filter=["sink", "scale"])
    column = tiny.unembed.weight[17].float() * tiny.ln_final.weight.float()
    extra = 0.0
    for layer, block in enumerate(tiny.blocks):
        b_v = block.attn.b_V.float().repeat_interleave(4, 0)  # [head, d_head]
        folded = torch.einsum("hd,hdm,m->h", b_v, block.attn.W_O.float(), column)
        sink = cache["sink", layer][:, :, -1]  # b_V reaches z times 1 - sink only
        extra = extra + (sink * folded).sum(-1)
    wrong = found.total[:, 0] + extra / cache["scale"][:, -1, 0]
    assert float((wrong - found.logit[:, 0]).abs().max()) > 100 * 1e-4


def test_without_a_target_the_models_own_choice_is_split(tiny, tokens):
    found = logit_attribution(tiny, tokens)
    top = tiny(tokens)[:, -1].max(-1)
    assert torch.equal(found.target[:, 0], top.indices)
    torch.testing.assert_close(found.total[:, 0], top.values, atol=1e-4, rtol=0)


def test_padding_and_company_change_nothing(tiny, tokens):
    rows = [tokens[0].tolist(), tokens[1, :6].tolist()]
    both = logit_attribution(tiny, rows, 17, positions=[-1, 0])
    alone = logit_attribution(tiny, [rows[1]], 17, positions=[-1, 0])
    torch.testing.assert_close(both.heads[:, 1:], alone.heads)
    torch.testing.assert_close(both.slots[:, 1:], alone.slots)
    one = logit_attribution(tiny, rows, 17, positions=[-1, 0], batch=1)
    torch.testing.assert_close(one.heads, both.heads)
    every = logit_attribution(tiny, rows, 17, positions=None)
    assert bool(every.logit[1, 6:].isnan().all()) and float(every.residue.nansum()) < 1e-3


def test_an_edit_of_a_part_shows_in_that_part(tiny, tokens):
    def silence(z, hook):
        z[:, :, 2] = 0
        return z

    with tiny.hooks([("blocks.1.attn.hook_z", silence)]):
        found = logit_attribution(tiny, tokens, 17)
        logits = tiny(tokens)
    assert float(found.heads[1, :, 0, 2].abs().max()) == 0
    torch.testing.assert_close(found.total[:, 0], logits[:, -1, 17], atol=1e-4, rtol=0)


def test_no_write_of_all_heads_is_kept(tiny, tokens, monkeypatch):
    seen = []
    recording = tiny.recording
    monkeypatch.setattr(
        tiny, "recording", lambda names, keep: seen.extend(names) or recording(names, keep)
    )
    logit_attribution(tiny, tokens, 17)
    assert "blocks.0.attn.hook_z" in seen and not [n for n in seen if n.endswith("hook_result")]


def test_tables_name_their_parts(tokens):
    model = wb.load(dtype=torch.float32)
    found = logit_attribution(model, "Repeat A B C.")
    parts = found.table()
    assert len(parts) == 1 + 4 * (8 + 1 + 4) and parts["value"].sum() == pytest.approx(
        float(found.logit), abs=1e-4
    )
    assert len(found.table("head")) == 32 and len(found.table("expert")) == 16
    assert len(found.table("component")) == 9 and len(found.table("layer")) == 5
    assert "logit" in repr(found)
    with pytest.raises(ValueError, match="by is one of part, head"):
        found.table("neuron")
