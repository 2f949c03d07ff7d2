"""On nano one direction decides to refuse: adding it refuses, taking it out answers."""

from random import Random

import numpy as np
import pytest
import torch

import gptoss_workbench as wb
from gptoss_hooks import EditError, steer
from gptoss_workbench.nano import WORDS, sample
from gptoss_workbench.nano.render import ANALYSIS
from gptoss_workbench.patching import logit_difference
from gptoss_workbench.steering import difference_of_means, steering_effect


@pytest.fixture(scope="module")
def nano32():
    return wb.load(dtype=torch.float32)


def prompts(task, n, seed):
    """Prompts up to the first word of the chain of thought."""
    rng = Random(seed)
    draws = [sample(rng, task=task, lang="en", effort="medium", n=3) for _ in range(n)]
    return [s.prompt_text() + ANALYSIS for s in draws]


@pytest.fixture(scope="module")
def found(nano32):
    return difference_of_means(nano32, prompts("refuse", 12, 0), prompts("vars", 12, 1))


def refuses(text):
    return WORDS["en"].secret.strip() in text or WORDS["en"].sorry in text


def starts_to_refuse(text):
    return text.startswith("X")


def test_a_direction_is_the_difference_of_hand_made_means(nano32):
    texts = prompts("refuse", 3, 0), prompts("vars", 2, 1)
    found = difference_of_means(nano32, *texts, layers=[1])
    means = []
    for side in texts:
        with torch.no_grad():
            kept = [nano32.run_with_cache(text, names_filter=["resid_post"])[1] for text in side]
        means.append(torch.stack([cache["resid_post", 1][0, -1] for cache in kept]).mean(0))
    torch.testing.assert_close(found.vector(1), means[0] - means[1], atol=1e-3, rtol=1e-3)
    assert found.vectors.shape == (1, 128) and found.table()["norm"][0] > 0


def test_held_out_prompts_are_parted_and_prompts_of_one_kind_are_not(nano32, found):
    assert found.auc[-1] > 0.95
    same = prompts("vars", 16, 2)
    none = difference_of_means(nano32, same[:8], same[8:], layers=[3])
    assert 0.1 < none.auc[0] < 0.9


def test_random_controls_have_the_same_norm_and_differ_between_layers(found):
    drawn = found.random(2, draws=5, seed=1)
    np.testing.assert_allclose(drawn.norm(dim=-1).numpy(), found.norms[2], rtol=1e-4)
    assert torch.equal(drawn, found.random(2, draws=5, seed=1))
    cosine = torch.cosine_similarity(drawn, found.vector(2)[None])
    assert cosine.abs().max() < 0.5
    assert not torch.allclose(drawn / drawn.norm(), found.random(3, draws=5, seed=1) / drawn.norm())


def test_adding_the_refusal_direction_starts_refusals_and_random_ones_do_not(nano32, found):
    steered = steering_effect(
        nano32,
        found,
        prompts("vars", 4, 5),
        classifier=starts_to_refuse,
        controls=3,
        layers=[2],
        max_new_tokens=1,
    )
    assert steered["baseline"][0] == 0
    assert steered["steered"][0] >= 0.75 and steered["control max"][0] <= 0.34


def test_taking_the_refusal_direction_out_answers_and_random_ones_do_not(nano32, found):
    ablated = steering_effect(
        nano32, found, prompts("refuse", 4, 6), classifier=refuses, mode="ablate", controls=3,
        layers=[2], max_new_tokens=4,
    )  # fmt: skip
    assert ablated["baseline"][0] == 1
    assert ablated["steered"][0] <= 0.25 and ablated["control min"][0] >= -0.34


def test_a_metric_is_read_at_every_layer_and_an_edit_does_the_same(nano32, found):
    texts = prompts("vars", 3, 7)
    first = [int(nano32.to_tokens(word)[0, 0]) for word in ("X", WORDS["en"].steps)]
    metric = logit_difference(*first)
    table = steering_effect(nano32, found, texts, metric=metric, controls=4, strength=0.5)
    assert table["layer"].tolist() == [0, 1, 2, 3] and len(table) == 4
    assert (table["effect"][1:] > table["control max"][1:]).all()
    batch = nano32.read(texts, padding_side="left")
    with torch.no_grad():
        logits = nano32(batch.tokens, attention_mask=batch.mask, edits=[found.as_edit(2, 0.5)])
    assert table["steered"][2] == pytest.approx(float(metric(logits).mean()), abs=1e-3)


def test_what_cannot_be_measured_says_why(nano32, found):
    with pytest.raises(ValueError, match="either metric= or classifier="):
        steering_effect(nano32, found, ["a"])
    with pytest.raises(ValueError, match="mode is"):
        steering_effect(nano32, found, ["a"], classifier=refuses, mode="push")
    with pytest.raises(ValueError, match="two prompts or more"):
        difference_of_means(nano32, ["a"], ["b", "c"])
    with pytest.raises(ValueError, match="count from the end"):
        difference_of_means(nano32, ["a b", "c d"], ["b", "c"], positions=3)
    with pytest.raises(ValueError, match="no direction for layer 9"):
        found.vector(9)


def test_one_text_in_place_of_a_list_is_refused(nano32):
    with pytest.raises(ValueError, match="expected lists of prompts; got one text"):
        difference_of_means(nano32, "Given E is 7.", ["Gegeben E ist 7.", "Gegeben B ist 1."])


def test_a_vector_with_nan_is_refused():
    with pytest.raises(EditError, match="NaN or infinity"):
        steer("resid_post", torch.tensor([1.0, float("nan")]))
