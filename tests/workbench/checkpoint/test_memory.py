"""The memory estimate, and the refusal before a load that would not fit."""

import sys

import pytest

from gptoss_hooks import memory as machine_memory
from gptoss_hooks.memory import free_memory, installed_memory
from gptoss_workbench.checkpoint import (
    CheckpointError,
    NotEnoughMemory,
    check_memory,
    memory,
    memory_needed,
)
from gptoss_workbench.config import GPT_OSS_20B, GPT_OSS_120B


def test_the_parts_sum_to_the_total_and_weights_are_those_on_disk():
    needed = memory_needed(GPT_OSS_20B)
    assert needed["dense"] + needed["experts"] == 13_761_264_768
    assert needed["total"] == sum(size for part, size in needed.items() if part != "total")


def test_sliding_layers_keep_only_their_window():
    cache = {n: memory_needed(GPT_OSS_20B, context=n)["kv_cache"] for n in (100, 128, 4096)}
    assert cache[128] == 128 * 49_152
    assert cache[100] == 100 * 49_152
    assert cache[4096] == (4096 + 128) * 49_152 // 2


@pytest.mark.parametrize(("config", "size"), [(GPT_OSS_20B, 49_152), (GPT_OSS_120B, 73_728)])
def test_cache_bytes_a_token_are_the_published_ones(config, size):
    assert memory.kv_bytes_per_token(config) == size
    assert memory.kv_bytes_per_token(config, dtype_bytes=4) == 2 * size


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pretend that so much memory is installed and free."""

    def pretend(installed, free):
        (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {free >> 10} kB\n")
        monkeypatch.setattr(machine_memory, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(machine_memory, "CGROUP", tmp_path)
        monkeypatch.setattr(machine_memory, "_physical", lambda: installed)

    return pretend


def test_the_20b_opens_on_a_16_gb_machine_that_is_in_use(machine):
    machine(installed=16 << 30, free=6 << 30)
    check_memory(GPT_OSS_20B)


def test_the_20b_is_refused_where_weights_would_not_stay_in_memory(machine):
    machine(installed=12 << 30, free=11 << 30)
    with pytest.raises(NotEnoughMemory, match=r"about 14.3 GB needed, only 12.9 GB installed"):
        check_memory(GPT_OSS_20B)


def test_cache_and_activations_must_fit_into_what_is_free(machine):
    machine(installed=64 << 30, free=2 << 30)
    check_memory(GPT_OSS_20B)
    with pytest.raises(NotEnoughMemory, match=r"about 3.7 GB needed, only 2.1 GB free"):
        check_memory(GPT_OSS_20B, context=131072)


def test_the_refusal_gives_estimate_and_remedy():
    with pytest.raises(NotEnoughMemory) as error:
        check_memory(GPT_OSS_120B, available=24 << 30)
    text = str(error.value)
    assert "not enough memory on cpu: about 65.9 GB needed, only 25.8 GB available" in text
    assert "experts 61.0 GB" in text
    assert "take a smaller model, a shorter context, bfloat16 rather than float32" in text


def test_the_refusal_is_a_memory_error_and_a_checkpoint_error():
    assert issubclass(NotEnoughMemory, MemoryError)
    assert issubclass(NotEnoughMemory, CheckpointError)


def test_a_container_limit_counts(machine, tmp_path):
    machine(installed=1 << 30, free=1 << 29)
    assert (installed_memory(), free_memory()) == (1 << 30, 1 << 29)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 150000\nactive_file 50000\n")
    assert (installed_memory(), free_memory()) == (1_000_000, 500_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert (installed_memory(), free_memory()) == (1 << 30, 1 << 29)


def test_where_nothing_is_known_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(machine_memory, "CGROUP", tmp_path)
    monkeypatch.setattr(machine_memory, "_physical", lambda: None)
    assert [installed_memory(), free_memory(), free_memory("meta")] == [None] * 3
    check_memory(GPT_OSS_120B)
    check_memory(GPT_OSS_120B, device="meta")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_this_machine_tells_its_memory():
    free, installed = free_memory(), installed_memory()
    assert free is not None
    assert installed is not None
    assert 0 < free <= installed
