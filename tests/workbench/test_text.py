"""Text in, text out: TransformerLens's methods on the model."""

import pytest
import torch

from gptoss_workbench.text import pad

RAGGED = ["B is 1.", "G is B plus 7. Find G?"]


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
