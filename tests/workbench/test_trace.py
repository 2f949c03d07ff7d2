"""Trace: recorded, sliced, tabled, saved, compared; and interrupted."""

import json
from dataclasses import replace

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from gptoss_hooks import memory
from gptoss_workbench import trace_store
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.model import GptOss
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.tokenizer import Tokenizer
from gptoss_workbench.trace import Trace
from gptoss_workbench.trace_run import trace_run

SPECIAL = ("start", "message", "end", "channel", "return", "call", "constrain")
SPECIAL += ("startoftext", "endoftext")
SIZES = {"num_attention_heads": 4, "num_local_experts": 6, "intermediate_size": 32}
SMALL = replace(TINY, vocab_size=272, **SIZES)
USER = "<|start|>user<|message|>3+4?<|end|><|start|>assistant<|channel|>analysis<|message|>"
TEXTS = [USER + "Add them. It is 7.<|end|>", "<|start|>user<|message|>Hi <b>&"]
LAYERS, HEADS, K = 4, 4, 2
NAMES = ["embed", ("resid_post", -1), ("pattern", 1), ("expert_post", 2), ("sink", 0)]


@pytest.fixture(scope="module")
def model():
    """A random model over single bytes and harmony's special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({each: i for i, each in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([f"<|{name}|>" for name in SPECIAL])
    named = {"tokenizer": Tokenizer(inner), "name": "small", "fingerprint": "f00d"}
    tensors = random_tensors(SMALL, 0)
    return GptOss(SMALL, tensors, dtype=torch.float32, backend="reference", **named)


@pytest.fixture(scope="module")
def batch(model):
    return model.encode_batch(TEXTS, "left")


@pytest.fixture(scope="module")
def trace(model, batch):
    return trace_run(model, *batch, names_filter=NAMES, router_logits=True)


def same(a, b):
    assert a.activations.keys() == b.activations.keys()
    for name, value in a.activations.items():
        assert value.dtype == b.activations[name].dtype
        assert torch.equal(value, b.activations[name]), name
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask)
    assert (a.strings, a.spans, a.layers, a.places) == (b.strings, b.spans, b.layers, b.places)
    assert (a.axes, a.config, a.provenance) == (b.axes, b.config, b.provenance)
    for ours, theirs in zip(a.routing or (), b.routing or (), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


def test_it_holds_what_a_cache_holds(model, batch, trace):
    with torch.no_grad():
        _, cache = model.run_with_cache(batch.tokens, attention_mask=batch.mask)
    for name, value in trace.activations.items():
        assert torch.equal(value, cache[name])
    for layer in range(LAYERS):
        assert torch.equal(trace.routing.experts[layer].long(), cache["expert_indices", layer])
        assert torch.equal(trace.routing.weights[layer], cache["expert_weights", layer])
        assert torch.equal(trace.routing.logits[layer], cache["router_logits", layer])
    assert trace.routing.experts.dtype == torch.int16
    assert trace.routing.weights.sum(-1)[:, trace.mask].allclose(torch.ones(1))


def test_tracing_changes_no_logit_and_leaves_no_hook(model, batch):
    before = model(batch.tokens, attention_mask=batch.mask)
    trace_run(model, *batch, names_filter=lambda name: not name.startswith("unembed"))
    assert not any(point.observed for point in model.hook_dict.values())
    assert torch.equal(before, model(batch.tokens, attention_mask=batch.mask))


def test_the_models_method_takes_text(model):
    traced = model.trace("Hi", names_filter="resid_post")
    assert list(traced.activations) == [f"blocks.{i}.hook_resid_post" for i in range(LAYERS)]
    assert traced.routing is not None and traced.strings == [["H", "i"]]
    with pytest.raises(KeyError, match="hook_resid_post"):
        model.trace("Hi", names_filter=["blocks.0.hook_resid_pos"])


def test_a_row_keeps_its_batch_axis(trace):
    row = trace[1]
    assert row.tokens.shape[0] == 1 and row.strings == [trace.strings[1]]
    assert torch.equal(row.routing.experts, trace.routing.experts[:, 1:])
    assert torch.equal(row.activations["hook_embed"], trace.activations["hook_embed"][1:])
    assert len(trace[-1:]) == 1 and len(trace[[1, 0]]) == 2


def test_places_cut_every_axis_but_the_keys(trace):
    cut = trace[0, 10:20]
    pattern = cut.activations["blocks.1.attn.hook_pattern"]
    whole = trace.activations["blocks.1.attn.hook_pattern"]
    assert torch.equal(pattern, whole[:1, :, 10:20])
    assert cut.activations["blocks.0.attn.hook_sink"].shape == (1, HEADS, 10)
    assert cut.activations["blocks.2.mlp.hook_expert_post"].shape[:3] == (1, 10, K)
    assert cut.places == tuple(range(10, 20)) and cut[:, 2:4].places == (12, 13)
    assert cut[:, 2:4].spans[0].pieces == trace.spans[0].pieces[12:14]
    assert cut[:, 2:4].whole.strings == [trace.strings[0]]
    assert cut[0, -1].tokens.shape == (1, 1)


def test_layers_can_be_picked(trace):
    one = trace.select(layers=2)
    assert one.layers == (2,) and torch.equal(one.routing.weights, trace.routing.weights[2:3])
    assert list(one.activations) == ["hook_embed", "blocks.2.mlp.hook_expert_post"]
    with pytest.raises(ValueError, match=r"among \[0, 1, 2, 3\]"):
        trace.select(layers=[4])


def test_wrong_indices_are_named(trace):
    with pytest.raises(IndexError, match="row between -2 and 1"):
        trace[2]
    with pytest.raises(IndexError, match="got 3 indices"):
        trace[0, 0, 0]
    assert [row.n_tokens for row in trace] == trace.mask.sum(1).tolist()
    with pytest.raises(ValueError, match="neighbouring"):
        trace[0, ::2]
    with pytest.raises(ValueError, match="neighbouring"):
        trace[0, 9:9]


def test_a_position_slice_records_only_those_places(model, batch, trace):
    last = trace_run(model, *batch, names_filter=NAMES, router_logits=True, pos_slice=-1)
    cut = trace[:, -1]
    same(replace(last, provenance={}), replace(cut, provenance={}))
    assert torch.equal(last.whole.tokens, batch.tokens)
    with pytest.raises(ValueError, match="neighbouring"):
        trace_run(model, *batch, pos_slice=[0, 3])


def test_tables_leave_padding_out(trace):
    tokens = trace.to_pandas()
    assert len(tokens) == trace.n_tokens == int(trace.mask.sum())
    assert set(tokens[tokens.row == 0].role) == {"user", "assistant"}
    assert "".join(tokens[tokens.row == 1].string) == TEXTS[1]
    routing = trace.to_pandas("routing")
    assert len(routing) == trace.n_tokens * LAYERS * K
    sums = routing.groupby(["row", "pos", "layer"]).weight.sum()
    assert (sums - 1).abs().max() < 1e-6
    last = trace.places[-1]
    one = routing[(routing.row == 1) & (routing.pos == last) & (routing.layer == 3)]
    assert one.expert.tolist() == trace.routing.experts[3, 1, -1].tolist()


def test_the_routing_table_says_whose_tokens_went_where(trace):
    for part in (trace, trace[:, 40:43]):
        table, corpus = part.to_pandas("routing"), RoutingTrace.from_trace(part).to_pandas()
        assert table.columns.tolist()[:7] == "row pos string voice role channel part".split()
        assert table.voice.tolist() == corpus.voice.tolist()
        assert table.expert.tolist() == corpus.expert.tolist()
        assert table.channel.fillna("").tolist() == corpus.channel.tolist()
        tokens = part.to_pandas().set_index(["row", "pos"])
        same_token = tokens.loc[list(zip(table.row, table.pos, strict=True))]
        assert table.string.tolist() == same_token.string.tolist()
    analysis = trace.to_pandas("routing").query("voice == 'analysis' and layer == 0")
    assert "".join(analysis[analysis["rank"] == 0].string) == "Add them. It is 7."


def test_a_cut_trace_tables_the_same_numbers(trace):
    name = "blocks.1.attn.hook_pattern"
    whole, cut = trace.to_pandas(name), trace[:, 40:43].to_pandas(name)
    wanted = whole[whole["query"].between(40, 42)].reset_index(drop=True)
    assert wanted.equals(cut)
    both = trace.mask[1].sum()
    assert len(whole[whole.row == 1]) == HEADS * both * both
    assert list(trace.to_pandas("hook_embed").columns) == ["row", "pos", "d_model", "value"]
    with pytest.raises(ValueError, match="hook_embed"):
        trace.to_pandas("embedding")


@pytest.mark.parametrize("cut", [False, True])
def test_a_saved_trace_is_read_back_exactly(trace, tmp_path, cut):
    kept = trace[:, 20:] if cut else trace
    half = {"blocks.3.hook_resid_post": kept.activations["blocks.3.hook_resid_post"].bfloat16()}
    kept = replace(kept, activations=kept.activations | half)
    kept.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trace.json", "trace.safetensors"]
    same(kept, Trace.load(tmp_path))
    back = Trace.load(tmp_path / "trace.safetensors")
    assert back.whole.strings == trace.strings and torch.equal(back.whole.mask, trace.mask)


def test_a_path_without_a_folder_names_the_pair(trace, tmp_path):
    written = trace[0].save(tmp_path / "runs" / "v1.2")
    assert written.name == "v1.2.json" and written.with_name("v1.2.safetensors").exists()
    same(trace[0], Trace.load(tmp_path / "runs" / "v1.2"))


def test_a_trace_of_tokens_alone_can_be_saved(tmp_path):
    bare = Trace(torch.tensor([[1, 2]]), torch.tensor([[True, False]]))
    bare.save(tmp_path / "bare")
    same(bare, Trace.load(tmp_path / "bare"))
    assert "1 of them padding" in repr(bare) and bare.to_pandas().token.tolist() == [1]
    with pytest.raises(ValueError, match="routing=True"):
        bare.to_pandas("routing")


@pytest.mark.parametrize(("version", "remedy"), [(0, "trace the prompt again"), (2, "update")])
def test_other_versions_are_refused(trace, tmp_path, monkeypatch, version, remedy):
    with monkeypatch.context() as patched:
        patched.setattr(trace_store, "VERSION", version)
        trace.save(tmp_path)
    with pytest.raises(ValueError, match=f"version {version}.*reads version 1.*{remedy}"):
        Trace.load(tmp_path)


def test_a_torn_or_foreign_pair_is_refused(trace, tmp_path):
    file = trace.save(tmp_path)
    tensors = file.with_suffix(".safetensors")
    file.write_text(file.read_text().replace('"strings"', '"strings" '))
    with pytest.raises(ValueError, match="do not belong together"):
        Trace.load(tmp_path)
    save_file(load_file(tensors), tensors)
    with pytest.raises(ValueError, match="to hold format"):
        Trace.load(tmp_path)
    tensors.write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="not a readable safetensors"):
        Trace.load(tmp_path)
    file.write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="format 'gptoss-workbench trace'"):
        Trace.load(tmp_path)
    file.write_text("{")
    with pytest.raises(ValueError, match="not readable json"):
        Trace.load(tmp_path)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"trace\.safetensors is missing"):
        Trace.load(tmp_path)


def test_a_failed_save_leaves_the_old_files(trace, tmp_path):
    trace.save(tmp_path)
    unwritable = replace(trace, provenance={"model": object()})
    with pytest.raises(TypeError):
        unwritable.save(tmp_path)
    same(trace, Trace.load(tmp_path))


def test_a_trace_does_not_differ_from_itself(trace):
    difference = trace.diff(trace)
    assert len(difference.pairs) == trace.n_tokens
    assert difference.only_a == difference.only_b == 0
    assert not difference.experts_changed.any() and not difference.weight_l1.any()
    assert set(difference.activation_l2) == {"hook_embed", "blocks.3.hook_resid_post"}
    assert "no expert changed" in repr(difference)


def test_a_diff_aligns_around_an_inserted_sentence(model):
    kept = [("resid_post", 3)]
    a = model.trace(USER + "Add them. It is 7.<|end|>", names_filter=kept)
    b = model.trace(USER + "Add them. Wait. It is 7.<|end|>", names_filter=kept)
    difference = a.diff(b)
    assert difference.only_a == 0 and difference.only_b == b.n_tokens - a.n_tokens > 0
    shift = difference.to_pandas("tokens").eval("pos_b - pos_a")
    assert shift.is_monotonic_increasing and set(shift) == {0, difference.only_b}
    before = difference.to_pandas("routing").query("pos_a == pos_b")
    assert (before.experts_changed == 0).all() and (before.weight_l1 < 1e-5).all()
    after = difference.to_pandas("activations").query("pos_a != pos_b")
    assert (
        len(after) and (after.l2 > 0.01).all() and after.name.eq("blocks.3.hook_resid_post").all()
    )
    assert "only in b" in repr(difference)


def test_messages_pair_up_by_role_and_channel(model):
    question = "<|start|>user<|message|>7<|end|>"
    thought = "<|start|>assistant<|channel|>analysis<|message|>7<|end|>"
    answer = "<|start|>assistant<|channel|>final<|message|>7<|return|>"
    difference = model.trace(question + answer).diff(model.trace(question + thought + answer))
    assert difference.only_a == 0
    assert set(difference.to_pandas("tokens").channel.dropna()) == {"final"}


def test_changed_experts_are_counted_per_token_and_layer(trace):
    routing = trace.routing
    swapped = routing.experts.clone()
    unused = next(e for e in range(6) if e not in routing.experts[2, 0, -1])
    swapped[2, 0, -1, 0] = unused
    other = replace(trace, routing=routing._replace(experts=swapped))
    table = trace.diff(other).to_pandas("routing")
    changed = table[table.experts_changed > 0]
    assert len(changed) == 1 and changed.layer.item() == 2
    weight = float(routing.weights[2, 0, -1, 0])
    assert changed.weight_l1.item() == pytest.approx(2 * weight)


def test_without_spans_the_whole_row_is_aligned(trace):
    bare = replace(trace, spans=None, strings=None)
    assert len(trace.diff(bare[:, 3:]).pairs) == bare[:, 3:].n_tokens


def test_without_common_tokens_nothing_is_compared(trace):
    other = replace(trace, tokens=trace.tokens + 20000)
    difference = trace.diff(other)
    assert difference.pairs == () and len(difference.to_pandas("routing")) == 0
    assert difference.only_a == trace.n_tokens and "0 tokens in both" in repr(difference)
    with pytest.raises(ValueError, match="as many rows"):
        trace.diff(trace[0])


def stop(tensor, hook):
    raise KeyboardInterrupt


def test_an_interrupt_keeps_what_was_finished(model, batch):
    at = [("blocks.2.hook_resid_mid", stop)]
    with model.hooks(fwd_hooks=at), pytest.raises(KeyboardInterrupt) as caught:
        trace_run(model, *batch, names_filter="resid_post")
    assert "model.last_trace" in caught.value.__notes__[0]
    partial = model.last_trace
    assert partial.layers == (0, 1) and partial.provenance["complete"] is False
    assert list(partial.activations) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert "interrupted after 2 layers" in repr(partial)
    assert not any(point.observed for point in model.hook_dict.values())


def test_an_interrupt_before_the_first_layer_keeps_the_tokens(model, batch):
    with model.hooks(fwd_hooks=[("hook_embed", stop)]), pytest.raises(KeyboardInterrupt):
        trace_run(model, *batch)
    assert model.last_trace.routing is None and model.last_trace.layers == ()


def test_what_would_not_fit_is_refused_before_it_runs(model, batch, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 100_000)
    trace_run(model, *batch, names_filter="embed")
    with pytest.raises(MemoryError, match=r"names_filter=.*pos_slice=.*device="):
        trace_run(model, *batch, names_filter="resid_post")
    trace_run(model, *batch, names_filter="resid_post", pos_slice=-1)


def test_provenance_repeats_and_names_what_watched(model, batch, trace):
    again = trace_run(model, *batch, names_filter=NAMES, router_logits=True)
    assert again.provenance == trace.provenance and trace.provenance["complete"]
    assert (trace.provenance["model"], trace.provenance["fingerprint"]) == ("small", "f00d")
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z * 0)]):
        edited = trace_run(model, *batch)
    assert edited.provenance["hooks"] == ["blocks.1.attn.hook_z"]
    assert not trace.diff(edited).weight_l1[:, 0].any() and trace.diff(edited).weight_l1.any()


def test_the_notebook_view_escapes_text(trace):
    page = trace._repr_html_()
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page and "&lt;|start|&gt;" in page
    assert "currentColor" in page and "#" not in page
    assert "batch 2, pos" in repr(trace)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\[batch, pos\]"):
        Trace(torch.tensor([1]), torch.tensor([True]))
    row = torch.tensor([[1]])
    with pytest.raises(ValueError, match="axes"):
        Trace(row, row.bool(), activations={"hook_embed": torch.zeros(1, 1, 4)})
