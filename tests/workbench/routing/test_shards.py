"""Shards on disk: read back as written, recognised when resumed, the same bytes after a kill."""

import hashlib
import json
import multiprocessing
import signal
import threading
import time

import numpy as np
import pytest
from tqdm.auto import tqdm

from gptoss_workbench.routing import RoutingTrace, trace_routing


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 256, n).tolist() for n in rng.integers(1, 12, 30)]


@pytest.fixture
def run(small, rows, tmp_path):
    def go(corpus=rows, folder=tmp_path / "run", **options):
        given = {"progress": False, "shard_tokens": 40, "folder": folder} | options
        return trace_routing(options.pop("model", small), corpus, **given)

    return go


def with_a_lock_of_its_own(run, **options):
    """tqdm's lock is shared with the parent: a child killed while it holds it would stop us all."""
    tqdm.set_lock(threading.RLock())
    run(**options)


def contents(folder):
    files = sorted(folder.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def stopped(rows, after):
    """A corpus whose reading is interrupted."""
    yield from rows[:after]
    raise KeyboardInterrupt


def test_a_folder_reads_as_what_is_kept_in_memory(run, tmp_path):
    keep = ("logits", "margins", "norms", "peaks")
    labels = ["ab"[i % 2] for i in range(30)]
    disk = run(labels=labels, keep=keep)
    memory = run(labels=labels, keep=keep, folder=None)
    again = RoutingTrace.load(tmp_path / "run")
    for other in (memory, again):
        for name, a, b in zip(disk.record()._fields, disk.record(), other.record(), strict=True):
            assert a.dtype == b.dtype and (a == b).all(), name
        assert (disk.labels, disk.layers, disk.k) == (other.labels, other.layers, other.k)
    assert len(disk.shards) > 3 and disk.complete
    first = np.array(disk.labels)[disk.record().prompt] == "a"
    assert again.where(label="a").n_tokens == first.sum()


def test_nothing_is_read_before_it_is_used(run, tmp_path):
    run()
    routing = RoutingTrace.load(tmp_path / "run")
    for file in (tmp_path / "run").glob("shard-*"):
        file.unlink()
    with pytest.raises(FileNotFoundError):
        next(routing.chunks())


def test_an_interrupt_leaves_whole_shards_and_resuming_ends_in_the_same_bytes(run, rows, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    run(folder=whole)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(stopped(rows, 17), folder=half)
    assert "rerun to go on" in caught.value.__notes__[0]
    partial = RoutingTrace.load(half)
    assert not partial.complete and 0 < partial.n_prompts < 17
    (half / ".shard-00009.safetensors.part").write_bytes(b"torn")
    assert run(folder=half).complete
    assert contents(half) == contents(whole)


def test_a_finished_folder_is_not_run_again(run, small, tmp_path):
    before = run().record()
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").glob("shard-*")}
    after = run().record()
    assert (before.experts == after.experts).all()
    assert {f: f.stat().st_mtime_ns for f in stamps} == stamps


def test_another_model_or_other_options_are_refused_and_named(run, make_model, rows, tmp_path):
    run()
    with pytest.raises(ValueError, match=r"keep \['margins'\] \(now \['logits'\]\)"):
        run(keep=("logits",))
    with pytest.raises(ValueError, match=r"shard_tokens 40 \(now 50\)"):
        run(shard_tokens=50)
    with pytest.raises(ValueError, match="routers"):
        trace_routing(make_model(), rows, folder=tmp_path / "run", progress=False, shard_tokens=40)


def test_another_corpus_is_refused(run, rows):
    run()
    changed = [*rows[:20], [5, 6, 7], *rows[21:]]
    with pytest.raises(ValueError, match="other prompts or labels"):
        run(changed)
    with pytest.raises(ValueError, match="other prompts or labels"):
        run(rows[:20])
    with pytest.raises(ValueError, match="other prompts or labels"):
        run([*rows, [5]])
    with pytest.raises(ValueError, match="other prompts or labels"):
        run(labels=["a"] * len(rows))


def test_a_corpus_that_ends_before_the_shards_is_refused(run, rows, tmp_path):
    run()
    sizes = json.loads((tmp_path / "run" / "routing.json").read_text())["shards"]
    with pytest.raises(ValueError, match="corpus ends with shard 1"):
        run(rows[: sizes[0]["prompts"] + sizes[1]["prompts"]])


def test_starting_over_leaves_only_the_new_run(run, rows, tmp_path):
    run()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run(rows[:5], resume=False)
    assert RoutingTrace.load(tmp_path / "run").n_prompts == 5
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_folder_without_a_trace_and_a_newer_format_are_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"routing\.json"):
        RoutingTrace.load(tmp_path)
    run()
    index = tmp_path / "run" / "routing.json"
    index.write_text(index.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version 2"):
        RoutingTrace.load(tmp_path / "run")


def test_killed_at_random_moments_and_resumed_the_files_are_the_same_bytes(run, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    labels = ["ab"[i % 2] for i in range(60)]
    corpus = [[5 + i] * (1 + i * 7 % 19) for i in range(60)]
    options = {"corpus": corpus, "labels": labels, "keep": ("logits", "margins")}
    began = time.monotonic()
    run(folder=whole, **options)
    took = time.monotonic() - began
    rng, kills = np.random.default_rng(), 0
    while kills < 3:
        child = multiprocessing.get_context("fork").Process(
            target=with_a_lock_of_its_own,
            args=(run,),
            kwargs={"folder": killed, "resume": kills > 0, **options},
        )
        child.start()
        time.sleep(rng.uniform(0.02, 0.5) * took)
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
    assert run(folder=killed, **options).complete
    assert contents(killed) == contents(whole)
    assert len(list(whole.glob("shard-*"))) > 9
