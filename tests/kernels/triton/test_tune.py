"""Tuning on a GPU, rehearsed: the fastest tile that changes no bit is kept, for one device."""

import json

import pytest
import torch

from gptoss_kernels.triton import tiles, tune
from gptoss_kernels.triton.linear import linear
from gptoss_kernels.triton.tiles import Tile

SMALL = tune.Shapes(64, 32, 4, 2, 16, 4, 2, 96, 20, 8)
ARCH = "interpreter"


@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTOSS_TILES", str(tmp_path / "own" / "tiles.json"))


@pytest.fixture
def call():
    rng = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 64, generator=rng).bfloat16() for n in (5, 40))
    return lambda: linear(x, weight)


def asked_first(call) -> tuple[str, int]:
    return next(iter(tune.asked(call).items()))


def clock(favourite: Tile, kernel: str, rows: int):
    """Says that one tile is twice as fast as any other."""

    def time(call):
        call()
        return 1.0 if tiles.choose(kernel, rows, ARCH) == favourite else 2.0

    return time


def test_every_operation_of_a_step_and_a_chunk_is_timed(monkeypatch):
    monkeypatch.setattr(tune, "LENGTHS", (1, 3))
    found = list(tune.tune(SMALL, torch.device("cpu"), lambda call: 1.0))
    kernels = {choice.kernel for choice in found}
    assert kernels == {"attend", "lens", "linear", "moe"}
    assert all(choice.after == choice.before for choice in found)


def test_the_faster_tile_is_chosen_and_the_table_left_as_it_was(call):
    kernel, rows = asked_first(call)
    before = tiles.choose(kernel, rows, ARCH)
    favourite = next(tile for tile in tune.neighbours(before) if tile.rows != before.rows)
    found = tune._best(kernel, rows, ARCH, "here", call, clock(favourite, kernel, rows))
    assert found.after == favourite and found.milliseconds == (2.0, 1.0)
    assert tiles.choose(kernel, rows, ARCH) == before


def test_a_tile_that_changes_a_bit_is_refused(call):
    kernel, rows = asked_first(call)
    before = tiles.choose(kernel, rows, ARCH)
    favourite = next(tile for tile in tune.neighbours(before) if tile.rows != before.rows)

    def other_bits():
        moved = tiles.choose(kernel, rows, ARCH) != before
        return call() + moved

    found = tune._best(kernel, rows, ARCH, "here", other_bits, clock(favourite, kernel, rows))
    assert found.after == before


def test_sums_are_never_reordered():
    tile = Tile(64, 128, 64, 4, 3)
    found = tune.neighbours(tile)
    assert tile in found and len(found) > 10
    assert {(each.cols, each.inner) for each in found} == {(128, 64)}


def test_what_is_kept_is_for_this_device_and_survives_others(call):
    kernel, rows = asked_first(call)
    before = tiles.choose(kernel, rows, ARCH)
    path = tiles.own_file()
    path.parent.mkdir()
    path.write_text(json.dumps({"another": {"linear": []}}))
    tune.save([tune.Choice(kernel, "here", before, before._replace(stages=7), (2.0, 1.0))])
    stored = json.loads(path.read_text())
    assert stored["another"] == {"linear": []}
    assert any(entry[-1] == 7 for entry in stored["interpreter"][kernel])
    assert tiles.choose(kernel, rows, ARCH) == before


def test_a_users_table_comes_first_on_its_device(monkeypatch):
    path = tiles.own_file()
    path.parent.mkdir()
    path.write_text(json.dumps({"a GPU": {"attend": [[None, 16, 32, 64, 1, 1]], "gone": []}}))
    plain = tiles.digest()
    tiles._table.cache_clear()
    tiles.choose.cache_clear()
    _forget()
    monkeypatch.setattr(tiles, "interpreting", lambda: False)
    monkeypatch.setattr(tiles, "device_name", lambda device: "a GPU" if device.index else "?")
    monkeypatch.setattr(tiles, "architecture", lambda device=None: "sm_90")
    try:
        gpu = torch.device("cuda", 1)
        assert tiles.tile("attend", 1, gpu) == Tile(16, 32, 64, 1, 1)
        assert tiles.tile("attend", 1, torch.device("cuda", 0)) == tiles.choose(
            "attend", 1, "sm_90"
        )
        assert tiles.tile("linear", 1, gpu) == tiles.choose("linear", 1, "sm_90")
        assert tiles.digest() != plain
    finally:
        _forget()


def _forget() -> None:
    for known in (tiles._own, tiles._table, tiles.choose):
        known.cache_clear()
