"""A sweep that is interrupted keeps what is done; watching it changes no bit."""

import numpy as np
import pytest
import torch

from gptoss_workbench.patching import activation_patching, logit_difference
from gptoss_workbench.patching.copies import Copies
from gptoss_workbench.table import PARTIAL

OPTIONS = {"metric": logit_difference(7, 9), "sites": ("resid_pre", "z"), "batch_tokens": 60}


@pytest.fixture
def pair():
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(3, 250, (1, 9), generator=draw)
    corrupted = clean.clone()
    corrupted[:, 2:4] = torch.randint(3, 250, (1, 2), generator=draw)
    return clean, corrupted


def test_an_interrupted_sweep_keeps_what_is_done(small, pair, monkeypatch):
    whole = activation_patching(small, *pair, **OPTIONS)
    judge, calls = Copies.judge, []

    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(self, *args)

    monkeypatch.setattr(Copies, "judge", stopped)
    with pytest.raises(KeyboardInterrupt) as caught:
        activation_patching(small, *pair, **OPTIONS)
    kept = small.last_patching
    assert (
        f"{len(kept)} of {len(whole)} cells are kept at model.last_patching"
        in (caught.value.__notes__[0])
    )
    assert 0 < len(kept) < len(whole) and PARTIAL in kept.table().notes
    told = {whole.cells.describe(i): whole.value[i] for i in range(len(whole))}
    for i in range(len(kept)):
        np.testing.assert_array_equal(kept.value[i], told[kept.cells.describe(i)])


def test_a_sweep_that_did_nothing_keeps_nothing(small, pair, monkeypatch):
    def stopped(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Copies, "judge", stopped)
    with pytest.raises(KeyboardInterrupt) as caught:
        activation_patching(small, *pair, positions="all", **OPTIONS)
    assert caught.value.__notes__ == ["no cell is done, so nothing is kept"]


def test_a_bar_is_shown_when_it_takes_long_and_changes_no_bit(small, pair, monkeypatch, capfd):
    quiet = activation_patching(small, *pair, progress=False, **OPTIONS)
    activation_patching(small, *pair, **OPTIONS)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("gptoss_workbench.patching.progress.PATIENCE", 0.0)
    shown = activation_patching(small, *pair, **OPTIONS)
    assert f"/{len(shown)}" in capfd.readouterr().err
    np.testing.assert_array_equal(shown.value, quiet.value)
    activation_patching(small, *pair, progress=False, **OPTIONS)
    assert capfd.readouterr().err == ""
