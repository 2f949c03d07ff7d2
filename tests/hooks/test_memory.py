"""Free memory, and refusing in time. How it is read is tested with the checkpoint's estimate."""

import pytest

from gptoss_hooks import memory


def test_this_machine_says_what_is_free():
    free = memory.free_memory("cpu")
    assert free is None or free > 0


def test_a_device_that_does_not_say_is_not_refused():
    assert memory.free_memory("meta") is None
    memory.require(1 << 60, "meta", "a cache", "")


def test_a_refusal_names_both_sizes_and_the_remedy(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**9)
    memory.require(int(0.8 * 10**9), "cpu", "a cache", "Keep less.")
    with pytest.raises(
        MemoryError, match=r"a cache needs 2\.0 GB, but 1\.0 GB are free on cpu\. Keep less\."
    ):
        memory.require(2 * 10**9, "cpu", "a cache", "Keep less.")
