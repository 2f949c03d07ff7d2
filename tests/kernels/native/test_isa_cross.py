"""NEON from a cross compiler under emulation: the calls of the parity tests, replayed."""

import pytest

pytestmark = pytest.mark.compile


@pytest.fixture(scope="module")
def compiled(verify, need):
    need(verify("compiled").NEON)
    return verify("compiled")


@pytest.fixture(scope="module")
def replayed(compiled, verify, built):
    """replayed(recorded, fault): calls on NEON, compared with what the portable lanes left."""

    def compare(recorded, fault: int = 0):
        to = built / f"neon_{fault}"
        command = compiled.replayer(built, compiled.NEON, fault=fault)
        compiled.replay(command, "neon", recorded.calls, to)
        return verify("compare").compare(recorded.calls, recorded.results, to)

    return compare


def test_neon_computes_what_the_portable_lanes_do(replayed, recording):
    from gptoss_kernels.native import library

    found = replayed(recording)
    assert found.same, found
    assert found.elements > 100_000
    assert found.calls.keys() == library.KERNELS.keys()


@pytest.mark.parametrize("fault", range(1, 6))
def test_a_wrong_lane_is_noticed(replayed, sample, fault):
    assert not replayed(sample, fault).same
