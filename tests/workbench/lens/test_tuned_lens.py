"""A tuned lens learns to say early what the model says at the end, and survives being stopped."""

import sys
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import gptoss_workbench as wb
from gptoss_kernels import lens as kernel
from gptoss_workbench.lens import TunedLens, logit_lens, train_tuned_lens
from gptoss_workbench.lens.kl_loss import kl_to_final
from gptoss_workbench.nano.data import sample

STEPS: dict[str, Any] = {"steps": 16, "lr": 5e-3, "batch": 3, "rows": 100}


@pytest.fixture(scope="module")
def nano32():
    return wb.load(dtype=torch.float32)


@pytest.fixture(scope="module")
def texts():
    rng = Random(7)
    return [sample(rng, task="pairs", lang="en").text() for _ in range(44)]


@pytest.fixture(scope="module")
def lowered(nano32, texts):
    """lowered(lens): held-out KL to the final layer, with the lens over without it, a layer."""
    plain = logit_lens(nano32, texts[:4]).summary()["kl"]

    def ratio(lens):
        through = logit_lens(nano32, texts[:4], lens=lens).summary()["kl"]
        assert through[-1] == 0
        return through[:-1] / plain[:-1]

    return ratio


def test_it_brings_held_out_predictions_closer_to_the_last_layers(nano32, texts, lowered):
    lens = train_tuned_lens(nano32, texts[4:], **STEPS)
    assert lowered(lens).max() < 0.8
    x = torch.randn(3, 128)
    assert torch.equal(lens(3, x), x)  # the last layer is left as it is
    assert not lens.weight.requires_grad


def test_trained_on_shuffled_targets_it_does_not(nano32, texts, lowered, monkeypatch):
    """Negative control: every residual is told the final distribution of some other place."""
    module = sys.modules["gptoss_workbench.lens.train_lens"]
    draw = module.draw

    def shuffled(*args):
        states, final = draw(*args)
        return states, final.roll(37, 0)

    monkeypatch.setattr(module, "draw", shuffled)
    lens = train_tuned_lens(nano32, texts[4:], **STEPS)
    assert lowered(lens)[1:].min() > 1


def test_an_untrained_lens_is_the_logit_lens(tiny, tokens):
    lens = TunedLens([0, 1, 2], 64, n_layers=4)
    seen, plain = logit_lens(tiny, tokens, lens=lens), logit_lens(tiny, tokens)
    assert torch.equal(seen.log_probs, plain.log_probs)


def test_the_tiled_loss_has_the_loss_and_gradient_of_the_whole_one(make_model, monkeypatch):
    monkeypatch.setattr(kernel, "WIDTH", 50)
    model = make_model(vocab_size=257)
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 64, generator=dice, requires_grad=True)
    final, weight = torch.randn(5, 64, generator=dice), model.unembed.weight.float()
    share = torch.randn(2, 5, generator=dice)
    log_p, log_f = (x @ weight.T).log_softmax(-1), (final @ weight.T).log_softmax(-1)
    expected = (log_f.exp() * (log_f - log_p)).sum(-1)
    (slope,) = torch.autograd.grad((expected * share).sum(), x)
    found = kl_to_final(model, x, final)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (own,) = torch.autograd.grad((found * share).sum(), x)
    torch.testing.assert_close(own, slope, atol=1e-5, rtol=1e-4)


class Stopped(Exception):
    """What ends a run in the middle."""


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tiny, tokens, tmp_path):
    def stop(step, loss):
        if step == 4:
            raise Stopped

    options: dict[str, Any] = {"steps": 8, "rows": 7, "batch": 1, "save_every": 2}
    with pytest.raises(Stopped):
        train_tuned_lens(tiny, tokens, folder=tmp_path, progress=stop, **options)
    seen = []
    resumed = train_tuned_lens(
        tiny, tokens, folder=tmp_path, progress=lambda step, loss: seen.append(step), **options
    )
    whole = train_tuned_lens(tiny, tokens, **options)
    assert seen == [4, 5, 6, 7]
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    assert [file.name for file in tmp_path.iterdir()] == ["training.safetensors"]
    with pytest.raises(ValueError, match="is of another run"):
        train_tuned_lens(tiny, tokens, folder=tmp_path, **{**options, "lr": 1.0})


def test_it_is_saved_with_the_model_it_is_for(tiny, tokens, tmp_path):
    lens = train_tuned_lens(tiny, tokens, layers=[1, 2], steps=2, rows=5)
    file = lens.save(tmp_path / "lens")
    again = TunedLens.load(file, tiny)
    assert torch.equal(again.weight, lens.weight) and again.layers == (1, 2)
    assert again.about["steps"] == 2 and "2 steps" in repr(again)
    through = logit_lens(tiny, tokens, layers=[1, 3], lens=again)
    assert np.isfinite(through.summary()["kl"]).all()
    with pytest.raises(ValueError, match="trained for layers"):
        logit_lens(tiny, tokens, lens=again)
    other = TunedLens([1], 64, n_layers=4, fingerprint="another")
    with pytest.raises(ValueError, match="was trained on the model another"):
        TunedLens.load(other.save(tmp_path / "other"), tiny)
    with pytest.raises(ValueError, match="expected a gptoss-workbench tuned lens"):
        train_tuned_lens(tiny, tokens, steps=1, rows=5, folder=tmp_path)
        TunedLens.load(tmp_path / "training")


@pytest.mark.parametrize("layers", [[3], [], [4]])
def test_the_last_layer_gets_no_map(tiny, tokens, layers):
    with pytest.raises(ValueError, match=r"needs no map|expected numbers"):
        train_tuned_lens(tiny, tokens, layers=layers)


def test_a_tuned_lens_reads_resid_post_only(tiny, tokens):
    lens = TunedLens([0, 1, 2], 64, n_layers=4)
    with pytest.raises(ValueError, match="reads resid_post only"):
        logit_lens(tiny, tokens, sites="resid_mid", lens=lens)


def test_a_lens_on_the_cpu_reads_residuals_on_a_gpu():
    """Fake tensors have devices that this machine has not, and refuse to mix them."""
    with FakeTensorMode(), torch.no_grad():
        lens, x = TunedLens([0, 2], 8, n_layers=4), torch.empty(3, 8, device="cuda")
        assert lens(2, x).device == x.device and lens.weight.device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            x @ lens.weight[1]
