"""Kernels under address, undefined-behaviour and thread sanitizers: no finding, the same bits."""

import pytest

pytestmark = pytest.mark.compile

MEMORY = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g1")
THREADS = ("-fsanitize=thread", "-O1", "-g1")


@pytest.fixture(scope="module")
def compiled(verify):
    return verify("compiled")


@pytest.fixture(scope="module", params=["portable", "avx2", "avx512", "avx512_bf16"])
def target(request, compiled, need):
    targets = (compiled.PORTABLE, compiled.AVX2, *compiled.EMULATED)
    found = {each.isa: each for each in targets}
    need(found[request.param])
    return found[request.param]


@pytest.fixture(scope="module")
def sanitised(compiled, built, target):
    return compiled.replayer(built, target, extra=MEMORY, tight=True)


def test_recorded_calls_stay_in_their_buffers(compiled, target, sanitised, recording, built):
    compiled.replay(sanitised, target.isa, recording.calls, built / "results")


def test_threads_change_no_bit(compiled, target, sanitised, sample, built):
    for threads in (1, 2, 3):
        to = built / f"threads_{threads}"
        compiled.replay(sanitised, target.isa, sample.calls, to, threads=threads)
        assert to.read_bytes() == (built / "threads_1").read_bytes()


def test_a_read_beyond_a_buffer_is_noticed(compiled, verify, target, sanitised, sample, built):
    calls = verify("calls")
    with sample.calls.open("rb") as file:
        call = next(each for each in calls.read_calls(file) if each.name == "packed_linear")
    for number, (dtype, data) in enumerate(call.buffers):
        short = calls.Buffer(dtype, data[: -dtype.itemsize])
        buffers = [*call.buffers[:number], short, *call.buffers[number + 1 :]]
        cut = built / "cut"
        cut.write_bytes(calls.write_call(call._replace(buffers=buffers)))
        with pytest.raises(RuntimeError, match="heap-buffer-overflow"):
            compiled.replay(sanitised, target.isa, cut, built / "unwritten")


@pytest.fixture(scope="module")
def stress(compiled, built):
    """stress(mode, flags): run `pool_stress`."""

    def run(mode: str, flags: tuple[str, ...]) -> str:
        return compiled.run([str(compiled.pool_stress(built, flags)), mode])

    return run


@pytest.mark.parametrize("flags", [MEMORY, THREADS], ids=["memory", "threads"])
def test_pool_runs_every_index_once(stress, flags):
    assert "every index ran once" in stress("threads", flags)


def test_pool_works_in_children_forked_from_busy_parents(stress):
    assert "every index ran once" in stress("fork", MEMORY)


def test_a_data_race_is_noticed(stress):
    with pytest.raises(RuntimeError, match="data race"):
        stress("race", THREADS)
