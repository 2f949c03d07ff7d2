"""The fused readout equals the naive one, and never makes a [row, vocab] tensor."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_kernels import lens as plain
from gptoss_kernels.backend import available
from gptoss_workbench.lens import logit_lens, readout

ODD = 257
FULL = 201_088


@pytest.fixture(params=available("cpu"))
def odd(request, make_model, monkeypatch):
    """A vocabulary of 257 walked in tiles of 50, a few rows at a time."""
    modules = [plain]
    if request.param == "native":
        from gptoss_kernels.native import lens as native

        modules.append(native)
        monkeypatch.setattr(native, "ROWS", 6)
    for module in modules:
        monkeypatch.setattr(module, "WIDTH", 50)
    monkeypatch.setattr(plain, "LOGITS", 50 * 2 * 3)
    return make_model(backend=request.param, vocab_size=ODD)


def states(rows=7, d_model=64, layers=2):
    return torch.randn(layers, rows, d_model, generator=torch.Generator().manual_seed(1))


def naive(model, x):
    scale = (x.square().mean(-1, keepdim=True) + model.ln_final.eps).sqrt()
    return (x / scale * model.ln_final.weight.float()) @ model.unembed.weight.float().T


def test_tiles_give_what_the_whole_logits_give(odd):
    x, final = states(), states(layers=1)[0]
    targets = torch.tensor([0, 49, 50, 256, -1, 120, 7])
    seen = readout(odd, x, k=6, targets=targets, final=final)
    logits = naive(odd, x)
    log_p, log_f = logits.log_softmax(-1), naive(odd, final).log_softmax(-1)
    top = log_p.topk(6)
    assert torch.equal(seen.tokens, top.indices)
    torch.testing.assert_close(seen.log_probs, top.values)
    torch.testing.assert_close(seen.log_sum_exp, logits.logsumexp(-1))
    torch.testing.assert_close(seen.entropy, -(log_p.exp() * log_p).sum(-1))
    kl = (log_f.exp() * (log_f - log_p)).sum(-1)
    torch.testing.assert_close(seen.kl, kl, atol=1e-5, rtol=1e-5)
    has = targets >= 0
    own = log_p.gather(-1, targets.clamp_min(0).expand(2, 7)[..., None])
    torch.testing.assert_close(seen.target_log_prob[:, has], own[:, has, 0])
    ahead = (log_p > own).sum(-1)
    assert torch.equal(seen.rank[:, has], ahead[:, has])
    assert bool(seen.target_log_prob[:, ~has].isnan().all()) and (seen.rank[:, ~has] == -1).all()


def test_the_most_likely_token_has_rank_0_wherever_it_lies(odd):
    x = states(rows=40, layers=1)
    top = readout(odd, x, k=1).tokens[0, :, 0]
    again = readout(odd, x, k=1, targets=top)
    assert (again.rank == 0).all()
    torch.testing.assert_close(again.target_log_prob, again.log_probs[..., 0])


def test_without_a_final_residual_there_is_no_kl(odd):
    assert bool(readout(odd, states()).kl.isnan().all())


def test_a_row_does_not_depend_on_its_company(odd):
    x = states()
    alone = readout(odd, x[:, 3:4])
    together = readout(odd, x)
    torch.testing.assert_close(together.log_probs[:, 3:4], alone.log_probs)


@pytest.mark.parametrize("k", [0, ODD + 1])
def test_k_beyond_the_vocabulary_is_refused(odd, k):
    with pytest.raises(ValueError, match="expected k between 1 and 257"):
        readout(odd, states(), k=k)


class Memory(TorchDispatchMode):
    """Bytes of tensors alive beside the weights, and the largest one made, in the block."""

    def __init__(self, model):
        super().__init__()
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.alive, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            storage = each.untyped_storage() if isinstance(each, torch.Tensor) else None
            if storage is not None and storage.data_ptr() not in self.weights:
                self.largest = max(self.largest, each.numel())
                self.alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {at: pair for at, pair in self.alive.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


@pytest.fixture(scope="module")
def large():
    """Two layers over the real vocabulary."""
    from dataclasses import replace

    from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
    from gptoss_workbench.model import GptOss

    config = replace(
        TINY,
        vocab_size=FULL,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        layer_types=("sliding_attention", "full_attention"),
    )
    return GptOss(config, random_tensors(config, 0), dtype=torch.float32)


def test_no_tensor_of_all_places_and_tokens_is_made(large):
    pos = 64
    tokens = torch.randint(0, FULL, (1, pos), generator=torch.Generator().manual_seed(0))
    with Memory(large) as memory:
        seen = logit_lens(large, tokens, k=3)
    assert seen.tokens.shape == (2, 1, pos, 3)
    assert memory.largest < pos * FULL / 8  # numbers in the largest tensor
    assert memory.peak < pos * FULL * 4 / 4  # bytes alive at once


def test_the_meter_sees_the_naive_lens(large):
    x = states(rows=16, d_model=32, layers=1)
    with Memory(large) as memory:
        naive(large, x)
    assert memory.largest >= 16 * FULL
    assert memory.peak >= 16 * FULL * 4
