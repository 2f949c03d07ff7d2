"""Rotary positions: YaRN's frequencies are not rounded, pairs are half a head apart."""

import math
import random

import pytest
import torch
from transformers import GptOssConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gptoss_kernels import rope

PUBLISHED = {
    8: 0.0508132748,
    9: 0.0317056962,
    13: 0.00386035932,
    17: 1.29318701e-4,
    18: 3.83088124e-5,
    31: 3.02351143e-7,
}
"""Inverse frequencies of the released models, 9 digits, from OpenAI's own code."""
ROUNDED = (0.9973, 1.006, 1.0173, 1.0325, 1.0542, 1.0876, 1.1459, 1.2727, 1.7627)
"""What rounding the range would do to frequencies 9 to 17."""


def released(truncate=False):
    return rope.yarn(64, 150000.0, factor=32.0, original_context=4096, truncate=truncate)


def test_the_published_table():
    inverse, concentration = released()
    for i, value in PUBLISHED.items():
        assert abs(float(inverse[i]) - value) <= 1e-7 * value, i
    assert abs(concentration - 1.3465735902799727) < 1e-15


def test_every_frequency_equals_the_formula_in_float64():
    inverse = released().inverse
    low, high = 8.092779115512402, 17.39802450158856
    for i in range(32):
        plain = 150000.0 ** (-i / 32)
        keep = 1 - min(max((i - low) / (high - low), 0.0), 1.0)
        exact = plain * (keep + (1 - keep) / 32)
        assert abs(float(inverse[i]) - exact) <= 1e-7 * exact, i


def test_rounding_the_range_changes_frequencies_9_to_17_only():
    ratio = released(truncate=True).inverse / released().inverse
    torch.testing.assert_close(ratio[9:18], torch.tensor(ROUNDED), rtol=0, atol=6e-5)
    outside = torch.cat([ratio[:9], ratio[18:]])
    torch.testing.assert_close(outside, torch.ones_like(outside))


@pytest.mark.parametrize("seed", range(12))
def test_random_parameters_equal_transformers(seed):
    draw = random.Random(seed)
    d_head, theta = draw.choice((8, 10, 24, 64, 128)), draw.choice((1e4, 1.5e5, 1e6))
    factor, context = draw.choice((1.0, 2.0, 32.0, 40.0)), draw.choice((64, 256, 4096, 32768))
    fast, slow, truncate = draw.choice((32.0, 16.0)), draw.choice((1.0, 2.0)), seed % 2 == 1
    config = GptOssConfig(
        head_dim=d_head,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": theta, "factor": factor, "beta_fast": fast,
            "beta_slow": slow, "original_max_position_embeddings": context, "truncate": truncate,
        },
        max_position_embeddings=int(factor * context),
    )  # fmt: skip
    expected, concentration = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    found = rope.yarn(
        d_head, theta, factor=factor, original_context=context,
        beta_fast=fast, beta_slow=slow, truncate=truncate,
    )  # fmt: skip
    torch.testing.assert_close(found.inverse, expected, rtol=1e-6, atol=1e-7)
    assert math.isclose(found.concentration, concentration)


def test_without_yarn_the_frequencies_are_powers_of_theta():
    inverse, concentration = rope.plain(10, 10000.0)
    expected = torch.tensor([10000.0 ** (-i / 5) for i in range(5)])
    torch.testing.assert_close(inverse, expected)
    assert concentration == 1


def test_pairs_half_a_head_apart_turn_by_their_angle():
    frequencies = rope.yarn(6, 150000.0, factor=32.0, original_context=4096)
    positions = torch.tensor([[0, 1, 130], [5, 77, 4000]])
    x = torch.randn(2, 3, 3, 6, generator=torch.Generator().manual_seed(0))
    y = rope.rotate(x, *rope.tables(positions, frequencies))
    for row, place, head, i in [(0, 2, 0, 0), (1, 1, 2, 1), (1, 2, 1, 2)]:
        angle = float(positions[row, place]) * float(frequencies.inverse[i])
        cos, sin = (f(angle) * frequencies.concentration for f in (math.cos, math.sin))
        first, second = float(x[row, place, head, i]), float(x[row, place, head, i + 3])
        found = y[row, place, head, [i, i + 3]]
        expected = torch.tensor([first * cos - second * sin, second * cos + first * sin])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)  # angles in float32


def test_only_the_distance_of_two_positions_counts():
    frequencies = rope.plain(16, 10000.0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def dot(i, j):
        turned = [
            rope.rotate(x, *rope.tables(torch.tensor([[at]]), frequencies))
            for x, at in ((q, i), (k, j))
        ]
        return float((turned[0] * turned[1]).sum())

    assert math.isclose(dot(7, 3), dot(107, 103), abs_tol=1e-4)
    assert not math.isclose(dot(7, 3), dot(7, 0), abs_tol=0.1)


def test_position_0_and_padding_are_not_turned():
    cos, sin = rope.tables(torch.tensor([[-1, 0]]), rope.plain(8, 10000.0))
    assert (cos == 1).all() and (sin == 0).all()


def test_bfloat16_is_rounded_once():
    frequencies = rope.plain(8, 10000.0)
    turn = rope.tables(torch.arange(50)[None], frequencies)
    x = torch.randn(1, 50, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(rope.rotate(x, *turn), rope.rotate(x.float(), *turn).bfloat16())
