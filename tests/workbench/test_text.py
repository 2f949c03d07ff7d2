"""Text in, text out: TransformerLens's methods on the model."""

import pytest
import torch

from gptoss_hooks import ban, load_edits, save_edits
from gptoss_workbench.text import pad

RAGGED = ["B is 1.", "G is B plus 7. Find G?"]
QUESTION = [{"role": "user", "content": RAGGED[1]}]


@pytest.mark.parametrize(("side", "first"), [("left", [0, 0, 5]), ("right", [5, 0, 0])])
def test_padding_goes_to_the_side_asked_for(side, first):
    tokens, mask = pad([[5], [7, 8, 9]], 0, side)
    assert tokens.tolist() == [first, [7, 8, 9]]
    assert mask.sum(1).tolist() == [1, 3] and bool(tokens[0][mask[0]] == 5)


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="'left' or 'right'; got 'middle'"):
        pad([[1]], 0, "middle")


def test_text_becomes_rows_of_tokens_and_back(nano):
    tokens = nano.to_tokens(RAGGED[1])
    assert tokens.shape[0] == 1 and nano.to_string(tokens) == [RAGGED[1]]
    assert nano.to_string(tokens[0]) == nano.to_string(tokens[0].tolist()) == RAGGED[1]


def test_ragged_rows_are_padded_on_the_right_unless_told(nano):
    right, left = nano.to_tokens(RAGGED), nano.to_tokens(RAGGED, padding_side="left")
    assert right[0, -1] == left[0, 0] == nano.pad_id
    assert torch.equal(right[1], left[1])


def test_no_token_is_put_in_front_unless_asked(nano):
    tokens = nano.to_tokens(RAGGED[0])[0].tolist()
    assert tokens == nano.tokenizer.encode(RAGGED[0])
    bos = nano.tokenizer.id("<|startoftext|>")
    if bos is None:
        with pytest.raises(ValueError, match=r"no <\|startoftext\|>"):
            nano.to_tokens(RAGGED[0], prepend_bos=True)
        with pytest.raises(ValueError, match=r"no <\|startoftext\|>"):
            nano(RAGGED[0], prepend_bos=True)
        return
    for side in ("left", "right"):
        rows = nano.to_tokens(RAGGED, prepend_bos=True, padding_side=side)
        for row, text in zip(rows.tolist(), RAGGED, strict=True):
            real = [token for token in row if token != nano.pad_id]
            assert real == [bos, *nano.tokenizer.encode(text)]
            assert len(real) == len(row) or (row[-1] == real[-1]) == (side == "left")


def test_display_strings_are_one_a_token_nested_for_several_rows(nano):
    one, several = nano.to_str_tokens(RAGGED[0]), nano.to_str_tokens(RAGGED)
    assert "".join(one) == RAGGED[0] and several[0] == one
    assert nano.to_str_tokens(nano.to_tokens(RAGGED[0])) == one
    assert nano.to_str_tokens(nano.to_tokens(RAGGED[0])[0]) == one
    assert [len(row) for row in nano.to_str_tokens(nano.to_tokens(RAGGED))] == [len(several[1])] * 2


def test_a_single_token_is_single(nano):
    token = nano.to_single_token(" 7")
    assert nano.to_single_str_token(token) == " 7"
    with pytest.raises(ValueError, match=r"'B is' is \d tokens, not one: \["):
        nano.to_single_token("B is")


def test_the_model_takes_text_where_it_takes_tokens(nano):
    with torch.no_grad():
        logits = nano(RAGGED)
        assert logits.shape[:2] == (2, nano.to_tokens(RAGGED).shape[1])
        assert torch.equal(nano(RAGGED[1]), nano(nano.to_tokens(RAGGED[1])))


@pytest.mark.parametrize("text", ["", [], ["B", ""]])
def test_empty_text_is_refused(nano, text):
    with pytest.raises(ValueError, match="empty"):
        nano(text)


def test_without_a_tokenizer_text_says_what_is_missing(tiny):
    for call in (tiny.to_tokens, tiny.to_single_token, tiny.to_str_tokens, tiny.generate):
        with pytest.raises(ValueError, match=r"no tokenizer\.json.*o200k_harmony"):
            call("text")


def test_a_mask_beside_text_is_refused(nano):
    with pytest.raises(ValueError, match="text makes its own mask"):
        nano("B is 1.", attention_mask=torch.ones(1, 3))


def test_lists_of_different_length_are_padded_as_texts_are(nano):
    rows = [nano.tokenizer.encode(text) for text in RAGGED]
    with torch.no_grad():
        assert torch.equal(nano(rows), nano(RAGGED))
        assert torch.equal(nano(rows, padding_side="left"), nano(RAGGED, padding_side="left"))
    with pytest.raises(ValueError, match="row 1 is empty"):
        nano([[1, 2], []])


def test_a_conversation_and_a_generation_are_taken_wherever_tokens_are(nano):
    said = nano.generate(messages=QUESTION, max_new_tokens=5)
    asked = torch.tensor(said.prompts)
    with torch.no_grad():
        assert torch.equal(nano(messages=QUESTION), nano(asked))
        assert torch.equal(nano.run_with_cache(messages=QUESTION)[0], nano(asked))
        assert torch.equal(nano(said), nano(said.tokens))
    assert torch.equal(nano.trace(said).tokens, said.tokens)
    with pytest.raises(ValueError, match="either input= or messages="):
        nano("B", messages=QUESTION)


@pytest.mark.parametrize("given", [QUESTION[0], QUESTION, ["B", 3], [["B"], ["G"]]], ids=str)
def test_what_is_no_input_is_told_what_is(nano, given):
    for call in (nano, nano.run_with_cache, nano.trace):
        with pytest.raises(ValueError, match=r"expected text.*conversation is messages=\[...\]"):
            call(given)


def test_the_last_place_of_ragged_rows_is_not_padding(nano):
    for call in (nano.run_with_cache, nano.trace):
        with pytest.raises(ValueError, match="pos_slice=-1 counts padding: row 0"):
            call(RAGGED, pos_slice=-1)
    names = {"names_filter": ["resid_post"], "pos_slice": -1}
    _, cache = nano.run_with_cache(RAGGED, padding_side="left", **names)
    trace = nano.trace(RAGGED, padding_side="left", **names)
    assert trace.mask.all() and len(trace.to_pandas("tokens")) == 2
    for row, text in enumerate(RAGGED):
        alone = nano.run_with_cache(text, **names)[1]["resid_post", -1][0]
        assert torch.equal(cache["resid_post", -1][row], alone)
        assert torch.equal(trace.activations["blocks.3.hook_resid_post"][row, 0], alone)


def test_a_trace_is_taken_where_its_tokens_are_whole(nano):
    trace = nano.trace(RAGGED)
    with torch.no_grad():
        assert torch.equal(nano(trace), nano(RAGGED))
        assert torch.equal(nano(trace, padding_side="left"), nano(RAGGED, padding_side="left"))
        assert torch.equal(nano(trace[:, :2].whole), nano(RAGGED))
    with pytest.raises(ValueError, match=r"cut to some places; give its \.whole"):
        nano(trace[:, :2])


def test_one_edit_needs_no_list(nano):
    edit = ban([0, 1, 2, 3], layers=2)
    with torch.no_grad():
        edited = nano(RAGGED[1], edits=[edit])
        assert torch.equal(nano(RAGGED[1], edits=edit), edited)
        assert not torch.equal(nano(RAGGED[1]), edited)
    for run in (nano.run_with_cache, nano.trace, nano.generate):
        run(RAGGED[1], edits=edit)
    assert nano.trace(RAGGED[1], edits=edit).provenance["edits"] == [repr(edit)]


def test_an_edit_in_the_place_of_a_path_is_named(tmp_path):
    edit = ban(3, layers=2)
    assert load_edits(save_edits(tmp_path / "one", edit)) == [edit]
    with pytest.raises(TypeError, match=r"save_edits\(path, edits\): the path comes first"):
        save_edits([edit], tmp_path / "one")  # pyright: ignore[reportArgumentType]
