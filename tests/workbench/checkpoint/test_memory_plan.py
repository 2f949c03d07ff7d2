"""The plan of what fits where: its rows are the estimate's, its longest context is the longest."""

import pytest

from gptoss_hooks.memory import in_bytes
from gptoss_workbench.checkpoint import longest_context, memory_needed, memory_plan
from gptoss_workbench.config import GPT_OSS_20B, GPT_OSS_120B


def total(config, context):
    return memory_needed(config, context=context)["total"]


def test_a_row_holds_the_estimate_of_its_context():
    plan = memory_plan(GPT_OSS_20B, contexts=[100, 4096])
    for i, context in enumerate((100, 4096)):
        wanted = memory_needed(GPT_OSS_20B, context=context)
        assert {part: plan[part][i] * 1e9 for part in wanted} == pytest.approx(wanted)
    assert "fits" not in plan.columns


@pytest.mark.parametrize(
    ("config", "device"), [(GPT_OSS_20B, "16GB"), (GPT_OSS_20B, "24GB"), (GPT_OSS_120B, "80GB")]
)
def test_the_longest_context_fits_and_one_more_token_does_not(config, device):
    room = in_bytes(device)
    longest = longest_context(config, room)
    assert total(config, longest) <= room
    assert longest == config.max_position_embeddings or total(config, longest + 1) > room
    plan = memory_plan(config, room=room)
    assert plan["fits"].tolist() == [n <= longest for n in plan["context"]]
    assert f"a context of {longest:,} tokens" in plan.notes[-1]


def test_the_20b_fits_16_gb_and_the_120b_fits_80_gb_with_room_to_think():
    assert longest_context(GPT_OSS_20B, in_bytes("16GB")) > 16_384
    assert longest_context(GPT_OSS_120B, in_bytes("80GB")) == 131_072


def test_a_device_too_small_is_told_what_is_needed():
    plan = memory_plan(GPT_OSS_120B, room=in_bytes("24GB"))
    assert not plan["fits"].any() and "do not hold the model" in plan.notes[-1]
    assert longest_context(GPT_OSS_120B, in_bytes("24GB")) == 0


def test_a_context_beyond_the_models_is_refused():
    with pytest.raises(ValueError, match=r"contexts are 1 to 131,072 tokens; got \[0, 200000\]"):
        memory_plan(GPT_OSS_20B, contexts=[0, 200_000])


@pytest.mark.parametrize(
    ("words", "size"), [("16GB", 16e9), ("80 GiB", 80 * 2**30), ("1.5m", 1.5e6), ("512", 512)]
)
def test_sizes_are_read_as_written(words, size):
    assert in_bytes(words) == size


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ValueError, match="a number and a unit, as 16GB or 80GiB; got 'much'"):
        in_bytes("much")
