"""In float32 the model gives transformers' logits and takes its experts."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import gptoss_workbench as wb
from gptoss_workbench.model import GptOss

CASES = range(32)


@pytest.mark.parametrize("seed", CASES)
def test_logits_and_routing_equal_transformers(oracle, backend, seed):
    """One pass, chunks and single steps through a cache; padded left (odd seeds) or right."""
    case = oracle.random_case(seed, gentle=seed % 4 != 3)
    expected = oracle.oracle_run(
        oracle.transformers_model(case.config, case.tensors), case.tokens, case.mask
    )
    model = GptOss(case.config, case.tensors, dtype=torch.float32)
    assert model.backend == backend
    for chunks in (None, chunked(case.tokens.shape[1], seed)):
        found = oracle.gap(
            oracle.our_run(model, case.tokens, case.mask, chunks), expected, case.mask
        )
        print(f"{backend} seed {seed} chunks {chunks}: {found}")
        assert found.parity, (chunks, found)


def chunked(n: int, seed: int) -> list[int]:
    """Cut n tokens into four chunks and four single steps."""
    prompt = n - 4
    cuts = sorted(random.Random(seed).sample(range(1, prompt), 3))
    return [end - start for start, end in pairwise([0, *cuts, prompt])] + [1] * 4


def test_the_cases_cover_what_they_should(oracle):
    configs = [oracle.random_config(seed) for seed in CASES]
    groups = {c.num_attention_heads // c.num_key_value_heads for c in configs}
    assert groups == set(range(1, 9))
    assert {c.num_experts_per_tok for c in configs} == {1, 2, 3, 4}
    assert {c.sliding_window for c in configs} == set(oracle.WINDOWS)
    assert all(c.hidden_size != c.intermediate_size for c in configs)
    assert all(c.num_local_experts % 2 for c in configs)
    assert all(c.rope_scaling.factor > 1 and not c.rope_scaling.truncate for c in configs)
    case = oracle.random_case(0)
    assert case.tokens.shape[1] > 128
    trivial = [n for n, t in case.tensors.items() if t.is_floating_point() and (t == 0).any()]
    assert not trivial


@pytest.mark.parametrize("seed", range(4))
def test_a_saved_folder_loads_alike_in_transformers(oracle, tmp_path, seed):
    case = oracle.random_case(100 + seed, oracle.random_config(9 * seed))
    folder = wb.save_checkpoint(case.tensors, tmp_path / "saved", config=case.config)
    expected = oracle.oracle_run(oracle.from_folder(folder), case.tokens, case.mask)
    model = wb.load(folder, dtype=torch.float32)
    found = oracle.gap(oracle.our_run(model, case.tokens, case.mask), expected, case.mask)
    print(f"folder {seed}: {found}")
    assert found.parity, found


def test_cached_decoding_equals_transformers_cached_decoding(oracle):
    case = oracle.random_case(7)
    tokens = case.tokens[:1]
    theirs = oracle.transformers_model(case.config, case.tensors)
    with torch.no_grad():
        first = theirs(tokens[:, :-6], use_cache=True)
        steps, past = [first.logits], first.past_key_values
        for i in range(-6, 0):
            token = tokens[:, i : i + 1 or None]
            steps.append(theirs(token, past_key_values=past, use_cache=True).logits)
    expected = torch.cat(steps, 1)
    model = GptOss(case.config, case.tensors, dtype=torch.float32)
    found = oracle.our_run(model, tokens, chunks=[tokens.shape[1] - 6] + [1] * 6).logits
    assert (found - expected).abs().max() <= oracle.LIMIT * expected.std()


@pytest.mark.parametrize("truncate", [False, True])
def test_rounded_and_exact_yarn_ranges_both_follow_the_config(oracle, truncate):
    config = oracle.random_config(3)
    config = replace(config, rope_scaling=replace(config.rope_scaling, truncate=truncate))
    case = oracle.random_case(3, config)
    expected = oracle.oracle_run(
        oracle.transformers_model(config, case.tensors), case.tokens, case.mask
    )
    model = GptOss(config, case.tensors, dtype=torch.float32)
    assert oracle.gap(oracle.our_run(model, case.tokens, case.mask), expected, case.mask).parity
