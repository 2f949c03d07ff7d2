"""Generation: the same tokens however they are computed, reproducible draws, clean endings."""

import warnings

import pytest
import torch

from gptoss_workbench.config import alternating_layers
from gptoss_workbench.sampling import Draw, Sampling
from gptoss_workbench.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "B is 1. G is B plus 7. Find G?"}]


@pytest.fixture
def model(small):
    return small


@pytest.fixture
def ragged(tokens):
    """Two prompts of 13 and 5 tokens, padded on the left."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, :8] = False
    return tokens, mask


def by_hand(model, prompt, n):
    """Greedy continuation without a cache."""
    row = prompt.tolist()
    with torch.no_grad():
        for _ in range(n):
            row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    return row[len(prompt) :]


def completions(model, tokens, n=6, **options):
    options = {"stop_at_eos": False, "return_type": "generation"} | options
    return model.generate(tokens, n, **options).completions


def test_greedy_rows_equal_single_runs_without_a_cache(model, ragged):
    tokens, mask = ragged
    wanted = [by_hand(model, row[keep], 6) for row, keep in zip(tokens, mask, strict=True)]
    assert completions(model, tokens, attention_mask=mask) == wanted
    assert completions(model, tokens, attention_mask=mask, chunk=4) == wanted
    assert completions(model, tokens, attention_mask=mask, use_past_kv_cache=False) == wanted
    assert completions(model, tokens, attention_mask=mask, do_sample=True, temperature=0) == wanted


@pytest.mark.parametrize("idle", [{"top_k": 20}, {"top_p": 0.9}, {"temperature": 3.0}], ids=str)
def test_settings_of_a_draw_warn_where_nothing_is_drawn(model, tokens, idle):
    greedy = completions(model, tokens)
    with pytest.warns(UserWarning, match=f"{next(iter(idle))}= does nothing in greedy decoding"):
        assert completions(model, tokens, **idle) == greedy
    assert completions(model, tokens, do_sample=True, seed=3, **idle) != greedy


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 3}, {"temperature": 1.0, "top_p": 1.0}], ids=str
)
def test_what_leaves_the_choice_alone_goes_with_greedy(model, tokens, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert completions(model, tokens, **options) == completions(model, tokens)


# -- where it stops ---


def test_a_chat_has_room_to_answer_and_a_text_has_transformer_lens_s_ten(nano):
    answer = nano.generate(messages=QUESTION)
    assert answer.final == "8" and "no final message" not in repr(answer)
    assert "".join(piece.text for piece in nano.stream(messages=QUESTION)) == answer.text
    bare = nano.generate(nano.to_tokens("B is 1."), stop_at_eos=False, return_type="generation")
    assert len(bare.completions[0]) == 10 and "no final message" not in repr(bare)


def test_a_thought_that_is_cut_off_says_so_and_can_go_on(nano):
    whole = nano.generate(messages=QUESTION)
    part = nano.generate(messages=QUESTION, max_new_tokens=10)
    for shown in (repr(part), part._repr_html_()):
        assert part.final == "" and "no final message yet: raise max_new_tokens" in shown
    assert "no final message" not in whole._repr_html_()
    rest = nano.generate(part, 200)
    assert part.analysis + rest.analysis == whole.analysis and rest.final == whole.final


def test_a_stopped_row_stays_as_it_is_while_others_go_on(model, ragged):
    tokens, mask = ragged
    free = completions(model, tokens, 8, attention_mask=mask)
    stop = next(t for t in free[0] if t not in free[1])
    n = free[0].index(stop) + 1
    out = model.generate(
        tokens, 8, eos_token_id=stop, attention_mask=mask, return_type="generation"
    )
    assert out.completions == [free[0][:n], free[1]]
    assert out.stopped == [str(stop), "length"]
    assert out.mask.sum(1).tolist() == [13 + n, 5 + 8]
    assert (out.tokens[~out.mask] == out.pad_id).all()


def test_each_row_runs_to_its_own_end_of_the_context(make_model, ragged):
    tokens, mask = ragged
    model = make_model(
        num_hidden_layers=2, layer_types=alternating_layers(2), max_position_embeddings=16
    )
    out = model.generate(
        tokens, 20, stop_at_eos=False, attention_mask=mask, return_type="generation"
    )
    assert [len(row) for row in out.completions] == [3, 11]
    assert out.stopped == ["context", "context"]
    with pytest.raises(ValueError, match="prompt too long: 17 tokens"):
        model.generate(torch.ones(1, 17, dtype=torch.long))


def test_stop_tokens_are_looked_up_by_name(nano):
    wanted = {nano.tokenizer.special[name] for name in ("<|return|>", "<|endoftext|>")}
    assert wanted <= nano._stops(True, None)
    assert wanted <= set(nano.tokenizer.stop_ids({}))
    assert not wanted & set(range(200000, 201088)), "other ids than the released vocabulary's"
    assert nano._stops(False, 5) == frozenset() and nano._stops(True, [4, 5]) == {4, 5}


def test_without_a_tokenizer_the_config_s_end_token_stops(model):
    assert model._stops(True, None) == {2}


def test_zero_new_tokens_give_the_prompt_back(model, tokens):
    assert torch.equal(model.generate(tokens, 0), tokens)


# -- what comes out ---


def test_the_result_is_of_the_kind_of_the_input(nano):
    prompt = "B is 1."
    text = nano.generate(prompt, 2, stop_at_eos=False)
    assert isinstance(text, str) and text.startswith(prompt)
    assert nano.generate([prompt, prompt], 2, stop_at_eos=False) == [text, text]
    tokens = nano.to_tokens(prompt)
    assert nano.generate(tokens, 2, stop_at_eos=False).shape == (1, tokens.shape[1] + 2)
    assert nano.generate(tokens, 2, stop_at_eos=False, return_type="str") == text
    rows = nano.generate(tokens.repeat(2, 1), 2, stop_at_eos=False, return_type="str")
    assert rows == [text, text]
    assert nano.generate(prompt, 2, stop_at_eos=False, return_type="tokens").shape[0] == 1


@pytest.fixture(scope="module")
def conversation(nano):
    pieces = []
    answer = nano.generate(messages=QUESTION, max_new_tokens=80, stream=pieces.append)
    return answer, pieces


def test_nano_thinks_and_then_answers(conversation):
    answer, _ = conversation
    assert [m.channel for m in answer.messages] == ["analysis", "final"]
    assert answer.analysis and answer.final == answer.messages[-1].content
    assert answer.stopped == ["<|return|>"] and answer.tool_calls == []
    assert answer.text in repr(answer).replace("\\n", "\n")


def test_streamed_pieces_join_to_the_text(conversation):
    answer, pieces = conversation
    assert "".join(piece.text for piece in pieces) == answer.text
    assert [piece.token for piece in pieces] == answer.completions[0]


def test_streaming_draws_the_same_tokens(model, nano, tokens):
    wanted = completions(model, tokens, 5, do_sample=True, seed=2)
    pieces = list(model.stream(tokens, 5, do_sample=True, seed=2, stop_at_eos=False))
    assert [[p.token for p in pieces if p.row == row] for row in (0, 1)] == wanted
    assert model.last_generation.completions == wanted
    shown = "".join(piece.text for piece in nano.stream(messages=QUESTION, max_new_tokens=4))
    assert shown.startswith("<|channel|>analysis<|message|>")


def test_verbose_prints_the_text(nano, capsys):
    text = nano.generate("B is 1.", 3, verbose=True, stop_at_eos=False)
    assert "B is 1." + capsys.readouterr().out == text


def test_tokens_alone_have_no_text(model, tokens):
    out = model.generate(tokens, 2, return_type="generation", stop_at_eos=False)
    assert "Generation([[" in repr(out)
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        out.text  # noqa: B018


# -- interruptions ---


def test_an_interrupt_keeps_what_was_written(model, tokens):
    wanted, seen = completions(model, tokens, 3), []

    def interrupt(piece):
        seen.append(piece)
        if len(seen) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        model.generate(tokens, 9, stop_at_eos=False, stream=interrupt)
    assert "model.last_generation" in caught.value.__notes__[0]
    assert model.last_generation.completions == wanted
    assert model.last_generation.stopped == ["interrupted", "interrupted"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_a_hook_leaves_no_function(model, tokens, error):
    steps = []

    def fail(tensor, hook):
        steps.append(tensor.shape[1])
        if len(steps) == 3:
            raise error

    with pytest.raises(error), model.hooks([("blocks.1.hook_resid_pre", fail)]):
        model.generate(tokens, 9, stop_at_eos=False)
    assert steps == [13, 1, 1]
    assert [len(row) for row in model.last_generation.completions] == [2, 2]


def test_a_stream_left_early_says_so(model, tokens):
    pieces = model.stream(tokens, 9, stop_at_eos=False)
    next(pieces)
    pieces.close()
    assert model.last_generation.stopped == ["interrupted", "interrupted"]


def test_hooks_act_at_every_step(model, tokens):
    def towards_seven(logits, hook):
        logits[..., 7] = 100.0

    with model.hooks([("unembed.hook_out", towards_seven)]):
        assert completions(model, tokens, 3) == [[7, 7, 7]] * 2


def test_generating_needs_no_graph(model, tokens):
    seen = []
    with model.hooks([("blocks.0.hook_resid_pre", lambda x, hook: seen.append(x.requires_grad))]):
        model.generate(tokens, 2, stop_at_eos=False)
    assert seen == [False, False]


def test_another_vocabulary_works_by_its_names(nano):
    assert isinstance(nano.tokenizer, Tokenizer)
    assert nano.render(QUESTION)[0] == nano.tokenizer.special["<|start|>"]


def test_a_cache_on_request_is_one_clean_pass_over_the_whole_text(model, tokens):
    out, cache = model.generate(tokens, 3, return_cache=True, names_filter="resid_post")
    _, again = model.run_with_cache(out, names_filter="resid_post")
    assert list(cache) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert all(torch.equal(cache[name], again[name]) for name in again)


def test_every_seed_and_row_has_a_stream_of_its_own():
    rows = torch.zeros(8, 5000)
    drawn = [Draw(Sampling(do_sample=True), seed, 8)(rows, [[]] * 8) for seed in range(8)]
    assert len({token for row in drawn for token in row}) > 60
