"""AVX-512 on a CPU that may not have it: its own sources, compiled against SIMDe."""

import re

import pytest

pytestmark = pytest.mark.compile

FAULTS = [("avx512", fault) for fault in range(1, 6)] + [
    ("avx512_bf16", fault) for fault in range(1, 8)
]


@pytest.fixture(scope="module")
def compiled(verify):
    return verify("compiled")


@pytest.fixture
def target(request, compiled, need):
    found = {each.isa: each for each in compiled.EMULATED}[request.param]
    need(found)
    return found


each_isa = pytest.mark.parametrize("target", ["avx512", "avx512_bf16"], indirect=True)


@each_isa
def test_all_parity_tests_pass(compiled, parity, built, target):
    out = parity(compiled.package(built, target), target.isa)
    passed = re.search(r"(\d+) passed", out)
    assert passed and int(passed[1]) >= 20
    assert "failed" not in out


@each_isa
def test_recorded_calls_leave_what_the_portable_lanes_do(
    compiled, verify, built, recording, target
):
    command = compiled.replayer(built, target)
    compiled.replay(command, target.isa, recording.calls, built / target.isa)
    found = verify("compare").compare(recording.calls, recording.results, built / target.isa)
    assert found.same, found


@pytest.mark.parametrize(("target", "fault"), FAULTS, indirect=["target"])
def test_a_wrong_lane_is_noticed(compiled, verify, built, sample, target, fault):
    command = compiled.replayer(built, target, fault=fault)
    compiled.replay(command, target.isa, sample.calls, built / "faulty")
    found = verify("compare").compare(sample.calls, sample.results, built / "faulty")
    assert not found.same
