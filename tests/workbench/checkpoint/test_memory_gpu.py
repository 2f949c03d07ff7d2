"""The plan for a GPU counts what is there: weights as kernels read them, the cache of a decoder."""

from dataclasses import replace

import pytest
import torch

from gptoss_hooks.memory import in_bytes
from gptoss_workbench.checkpoint import longest_context, memory_needed
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import GPT_OSS_20B, GPT_OSS_120B, alternating_layers
from gptoss_workbench.fixed_cache import SLACK, FixedCache
from gptoss_workbench.kv_cache import KVCache
from gptoss_workbench.model import GptOss

CONFIGS = {
    "padded": TINY,
    "exact": replace(TINY, hidden_size=128, intermediate_size=256),
    "wide": replace(TINY, hidden_size=160, num_hidden_layers=2, layer_types=alternating_layers(2)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_as_large_as_on_the_device(name):
    config = CONFIGS[name]
    model = GptOss(config, random_tensors(config, seed=0), backend="triton")
    experts = sum(buffer.nbytes for buffer in model.buffers())
    dense = sum(parameter.nbytes for parameter in model.parameters())
    needed = memory_needed(config, gpu=True)
    assert (needed["experts"], needed["dense"]) == (experts, dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("context", [5, 2000])
def test_the_cache_is_as_large_as_a_decoder_makes_it(context, dtype):
    cache, heads = KVCache(TINY), (TINY.num_key_value_heads, TINY.head_dim)
    positions = torch.arange(3)[None]
    for layer in cache.layers:
        layer.extend(*(torch.zeros(1, 3, *heads, dtype=dtype) for _ in range(2)), positions)
    cache.advance(torch.ones(1, 3, dtype=torch.bool))
    fixed = FixedCache(cache, TINY, room=context)
    held = sum(each.nbytes for layer in fixed.layers for each in (layer.k, layer.v))
    held += sum(place.positions.nbytes for place in fixed.places.values())
    needed = memory_needed(TINY, dtype_bytes=dtype.itemsize, context=context, gpu=True)
    assert needed["kv_cache"] == held
    assert fixed.layers[0].k.shape[1] == min(context, TINY.sliding_window - 1 + SLACK)


@pytest.mark.parametrize(
    ("config", "device", "at_least"),
    [
        (GPT_OSS_20B, "16GB", 32_768),
        (GPT_OSS_20B, "24GB", 131_072),
        (GPT_OSS_120B, "80GB", 131_072),
    ],
)
def test_released_models_fit_where_they_are_promised_to(config, device, at_least):
    assert longest_context(config, in_bytes(device), gpu=True) >= at_least


def test_a_gpu_needs_more_than_a_cpu_that_maps_its_weights():
    on_gpu, on_cpu = (memory_needed(GPT_OSS_20B, gpu=gpu) for gpu in (True, False))
    assert on_gpu["runtime"] > on_cpu["runtime"] == 0
    assert on_cpu["experts"] < on_gpu["experts"] < 1.03 * on_cpu["experts"]
