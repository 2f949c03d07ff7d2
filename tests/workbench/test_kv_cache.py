"""Keys and values of earlier tokens: what is kept, and for which positions."""

import pytest
import torch

from gptoss_workbench.checkpoint.synthetic import TINY
from gptoss_workbench.kv_cache import PAD, KVCache, LayerCache


def chunk(positions):
    """Keys and values that carry their position, so that what is kept can be read off."""
    positions = torch.tensor(positions)
    k = positions[:, :, None, None].float().expand(-1, -1, 2, 4)
    return k, k + 100, positions


def test_a_full_layer_keeps_everything_in_order():
    layer = LayerCache(None)
    layer.extend(*chunk([[0, 1, 2]]))
    k, v, positions = layer.extend(*chunk([[3, 4]]))
    assert positions.tolist() == [[0, 1, 2, 3, 4]]
    assert torch.equal(k[0, :, 0, 0], positions[0].float())
    assert torch.equal(v, k + 100)


@pytest.mark.parametrize("after", [[5, 6, 7, 8], [5, 6, 7, PAD]])
def test_a_gpu_is_not_asked_for_padding_and_keeps_the_same(monkeypatch, after):
    def kept():
        layer = LayerCache(4)
        layer.extend(*chunk([[PAD, 0, 1, 2, 3, 4]]))
        layer.extend(*chunk([after]))
        return layer.k, layer.v, layer.positions

    wanted = kept()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.Tensor, "__bool__", None)  # what would wait for the device
    assert all(map(torch.equal, kept(), wanted))


def test_within_its_room_a_full_layer_is_never_copied():
    layer = LayerCache(None, room=5)
    with torch.no_grad():
        first, *_ = layer.extend(*chunk([[0, 1, 2]]))
        second, *_ = layer.extend(*chunk([[3, 4]]))
        beyond, _, positions = layer.extend(*chunk([[5]]))
    assert first.data_ptr() == second.data_ptr() != beyond.data_ptr()
    assert torch.equal(beyond[0, :, 0, 0], positions[0].float())
    assert layer.k.untyped_storage().nbytes() == 9 * 2 * 4 * 4  # grown by half


def test_chunks_with_and_without_gradients_follow_each_other():
    layer = LayerCache(None)
    for start, keeps_graph in enumerate((False, True, True, False, False, True)):
        with torch.set_grad_enabled(keeps_graph):
            k, v, positions = layer.extend(*chunk([[2 * start, 2 * start + 1]]))
    assert positions[0].tolist() == list(range(12))
    assert torch.equal(k[0, :, 0, 0], positions[0].float()) and torch.equal(v, k + 100)


def test_a_graph_keeps_its_keys_when_the_cache_goes_on():
    layer, (k, v, positions) = LayerCache(None, room=8), chunk([[0, 1]])
    with torch.no_grad():
        layer.extend(k, v, positions)
    wanted = k.clone().requires_grad_()
    joined, *_ = layer.extend(wanted, v, positions + 2)
    loss = joined.square().sum()
    with torch.no_grad():
        layer.extend(*chunk([[4]]))
    loss.backward()
    assert torch.equal(wanted.grad, 2 * k)


def test_a_cache_begun_under_inference_mode_goes_on_without():
    layer = LayerCache(None, room=8)
    with torch.inference_mode():
        layer.extend(*chunk([[0, 1]]))
    with torch.no_grad():
        _, _, positions = layer.extend(*chunk([[2]]))
    assert positions.tolist() == [[0, 1, 2]]


def test_a_sliding_layer_keeps_what_the_next_token_can_reach():
    layer = LayerCache(4)
    _, _, positions = layer.extend(*chunk([[0, 1, 2, 3, 4, 5]]))
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5]]  # this chunk still sees all of it
    assert layer.positions.tolist() == [[3, 4, 5]]
    _, _, positions = layer.extend(*chunk([[6]]))
    assert positions.tolist() == [[3, 4, 5, 6]] and layer.positions.tolist() == [[4, 5, 6]]


def test_what_slid_out_is_given_back_to_memory():
    layer = LayerCache(4)
    layer.extend(*chunk([list(range(50))]))
    assert layer.k.untyped_storage().nbytes() == layer.k.nbytes == 3 * 2 * 4 * 4


def test_padding_never_pushes_a_real_key_out_of_the_window():
    layer = LayerCache(4)
    layer.extend(*chunk([[0, 1, 2, 3], [0, 1, PAD, PAD]]))
    layer.extend(*chunk([[4, 5], [PAD, 2]]))
    assert layer.positions.tolist() == [[3, 4, 5], [0, 1, 2]]
    assert torch.equal(layer.k[1, :, 0, 0], torch.tensor([0.0, 1.0, 2.0]))


def test_a_window_of_one_keeps_nothing():
    layer = LayerCache(1)
    layer.extend(*chunk([[0, 1, 2]]))
    assert layer.k.shape[1] == 0


def test_rows_count_their_own_real_tokens():
    cache = KVCache(TINY)
    assert len(cache) == 0 and cache.nbytes == 0
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert cache.positions(mask).tolist() == [[PAD, 0, 1], [0, 1, 2]]
    stored = chunk(cache.positions(mask).tolist())
    for layer in cache.layers:
        layer.extend(*stored)
    cache.advance(mask)
    assert len(cache) == 3 and cache.lengths.tolist() == [2, 3]
    assert cache.positions(torch.tensor([[True], [False]])).tolist() == [[2], [PAD]]


def test_layers_slide_as_the_config_says():
    assert [layer.window for layer in KVCache(TINY).layers] == [8, None, 8, None]


def test_a_cache_shows_what_it_holds(tiny, tokens):
    cache = tiny.new_cache()
    tiny(tokens, past_key_values=cache, return_type=None)
    assert cache.nbytes == 2 * (2 * 7 + 2 * 13) * 2 * 2 * 16 * 4
    assert repr(cache) == "KVCache(13 tokens seen, at most 13 kept, 0.0 MB)"


def test_a_cache_that_only_some_layers_filled_is_refused(tiny, tokens):
    cache = tiny.new_cache()
    tiny(tokens, stop_at_layer=2, past_key_values=cache)
    with pytest.raises(ValueError, match=r"half written; start again with model\.new_cache"):
        tiny(tokens, past_key_values=cache)
