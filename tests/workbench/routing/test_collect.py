"""trace_routing keeps what each token's routers chose, whatever the form of the corpus."""

from random import Random

import numpy as np
import pytest
import torch

from gptoss_workbench import routing
from gptoss_workbench.nano import data
from gptoss_workbench.routing import RoutingTrace, trace_routing
from gptoss_workbench.routing.record import VOICES


@pytest.fixture(scope="module")
def texts():
    rng = Random(0)
    return [data.sample(rng).text() for _ in range(6)]


def route(model, texts, **options):
    return trace_routing(model, texts, progress=False, **options)


@pytest.fixture
def corpus():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 256, n).tolist() for n in (5, 17, 9, 1, 30, 12)]


def test_routing_is_what_a_trace_of_each_prompt_shows(small, corpus):
    keep = ("logits", "margins", "norms", "peaks")
    record = route(small, corpus, keep=keep, batch_tokens=40, shard_tokens=35).record()
    assert np.bincount(record.prompt).tolist() == [len(tokens) for tokens in corpus]
    for number, tokens in enumerate(corpus):
        one = record.at(record.prompt == number)
        _, cache = small.run_with_cache(torch.tensor([tokens]))
        assert one.token.tolist() == tokens and one.pos.tolist() == list(range(len(tokens)))
        for layer in range(2):
            name = f"blocks.{layer}.mlp.hook_"
            out = cache[name + "expert_out"][0]
            logits = cache[name + "router_logits"][0].sort(-1, descending=True).values
            wanted = {
                "experts": cache[name + "expert_indices"][0],
                "weights": cache[name + "expert_weights"][0],
                "logits": cache[name + "router_logits"][0],
                "margins": logits[:, small.config.num_experts_per_tok - 1]
                - logits[:, small.config.num_experts_per_tok],
                "norms": out.norm(dim=-1),
                "peaks": out.abs().amax(-1),
            }
            for column, value in wanted.items():
                found = torch.from_numpy(getattr(one, column)[:, layer]).to(value.dtype)
                torch.testing.assert_close(found, value, rtol=2e-3, atol=2e-3, msg=column)


def test_experts_take_one_byte_and_weights_two(small, corpus):
    record = route(small, corpus).record()
    assert record.experts.dtype == np.int8 and record.weights.dtype == np.float16


def test_labels_are_those_of_the_tokens(nano, texts):
    routing = route(nano, texts[:2], batch_tokens=512)
    for number, text in enumerate(texts[:2]):
        trace = nano.trace(text)
        spans, record = trace.spans[0], routing.where(prompt=number).record()
        body = spans.mask(part="body")
        assert ((record.voice != VOICES.index("header")) == body).all()
        sentences = [label.sentence for label in spans]
        assert record.sentence.tolist() == sentences


def test_every_form_of_a_corpus_gives_the_same_routing(nano, texts):
    ids = [nano.tokenizer.encode(text)[:9] for text in texts[:3]]
    texts = [nano.tokenizer.decode(row) for row in ids]
    wanted = route(nano, texts[:3]).record()
    forms = [
        (text for text in texts[:3]),
        ids,
        [torch.tensor(row) for row in ids],
        [np.array(row) for row in ids],
        [{"text": text, "other": 1} for text in texts[:3]],
        [{"input_ids": row} for row in ids],
    ]
    for form in forms:
        found = route(nano, form).record()
        assert all((a == b).all() for a, b in zip(found[:10], wanted[:10], strict=True))


def test_messages_are_rendered(nano):
    messages = [{"role": "user", "content": "Given A is 1. Find A?"}]
    found = route(nano, [{"messages": messages}, messages])
    assert found.record().token.tolist() == nano.render(messages) * 2


def test_one_text_or_one_row_of_tokens_is_a_corpus_of_one(nano, texts):
    assert route(nano, texts[0]).n_prompts == 1
    assert route(nano, torch.tensor([5, 6, 7])).n_tokens == 3


def test_labels_come_from_items_or_apart(small):
    rows = [[5, 6], [7], [8, 9]]
    given = route(small, rows, labels=["a", "b", "a"])
    inside = route(small, [{"tokens": r, "label": n} for r, n in zip(rows, "aba", strict=True)])
    assert given.labels == inside.labels == ("a", "b", "a")
    assert given.where(label="a").n_tokens == 4
    with pytest.raises(ValueError, match="prompt 1 has no label"):
        route(small, [{"tokens": [5], "label": "a"}, [6]])
    with pytest.raises(ValueError):
        route(small, rows, labels=["a"])


def test_only_the_layers_asked_for_are_recorded(small, corpus):
    whole, last = route(small, corpus), route(small, corpus, layers=[1])
    assert last.layers == (1,)
    assert (last.record().experts[:, 0] == whole.record().experts[:, 1]).all()
    assert (whole.where(layer=1).record().experts == last.record().experts).all()


def test_empty_prompts_keep_their_number(small):
    routing = route(small, [[], [5, 6], [], [7]], shard_tokens=2)
    assert routing.record().prompt.tolist() == [1, 1, 3]
    assert routing.provenance["prompts"] == 4
    with pytest.raises(ValueError, match="no token"):
        route(small, [[]]).record()


def test_long_prompts_are_cut_only_when_asked_and_it_is_said(small, corpus):
    routing = route(small, corpus, max_tokens=10)
    assert np.bincount(routing.record().prompt).max() == 10
    assert "3 prompts cut to 10 tokens" in repr(routing)
    limit = small.config.max_position_embeddings
    with pytest.raises(ValueError, match=r"prompt 1 .*max_tokens="):
        route(small, [[5], [5] * (limit + 1)])


def test_the_corpus_is_read_as_it_is_run(small):
    ahead = []

    def stream():
        for number in range(40):
            ahead.append(number)
            if number == 30:
                raise KeyboardInterrupt
            yield [5, 6, 7, 8, 9]

    with pytest.raises(KeyboardInterrupt) as caught:
        route(small, stream(), shard_tokens=20)
    assert "kept at model.last_trace" in caught.value.__notes__[0]
    partial = small.last_trace
    assert not partial.complete and partial.n_prompts == 28
    assert "INCOMPLETE" in repr(partial)
    small.last_trace = None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "weights"}, "keep= is among"),
        ({"layers": [9]}, "layers are distinct"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_impossible_options_are_refused(small, options, message):
    with pytest.raises(ValueError, match=message):
        route(small, [[5]], **options)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3.5, "prompt 0 is float"),
        ([[1, 2]], "one dimension"),
        ({"words": "x"}, "prompt 0 has 'words'"),
        ([300], "vocabulary is 0 to"),
    ],
)
def test_items_that_are_no_prompt_are_refused_by_number(small, item, message):
    with pytest.raises(ValueError, match=message):
        route(small, [item])


def test_no_hook_and_no_gradient_stays_behind(small, corpus):
    route(small, corpus)
    assert not [name for name, point in small.hook_dict.items() if point.observed]


def test_a_trace_becomes_a_routing_trace(nano, texts):
    trace = nano.trace(texts[:2], router_logits=True)
    found, wanted = RoutingTrace.from_trace(trace, labels="ab"), route(nano, texts[:2])
    a, b = found.record(), wanted.record()
    for column in ("prompt", "pos", "token", "role", "channel", "part", "message", "sentence"):
        assert (getattr(a, column) == getattr(b, column)).all(), column
    assert found.labels == ("a", "b") and found.k == wanted.k
    assert a.margins.shape == b.margins.shape and (a.margins >= 0).all()


def test_repr_and_page_say_what_is_in_it(nano, texts):
    routing = route(nano, texts[:2], labels=["x", "<y>"])
    assert "2 prompts" in repr(routing) and "<y> 1, x 1" in repr(routing)
    assert "&lt;y&gt;" in routing._repr_html_() and "analysis" in routing._repr_html_()


@pytest.mark.parametrize(("count", "said"), [(1, "labels end after 1"), (3, "texts end after 2")])
def test_labels_are_one_a_prompt(nano, count, said):
    with pytest.raises(ValueError, match=said):
        trace_routing(nano, ["Given E", "Given B"], labels=["a"] * count, progress=False)


def test_an_expert_is_named_with_its_layer(nano):
    trace = trace_routing(nano, ["Given E"], progress=False)
    with pytest.raises(ValueError, match=r"expected expert=\(layer, expert\); got 3"):
        trace.where(expert=3)


def test_completion_offers_public_names_only():
    assert set(dir(routing)) == set(routing.__all__)
