"""AVX-512 on a CPU that may not have it: its own source, compiled against SIMDe."""

import re

import pytest

pytestmark = pytest.mark.compile


@pytest.fixture(scope="module")
def compiled(verify, need):
    need(verify("compiled").AVX512)
    return verify("compiled")


def test_all_parity_tests_pass_on_emulated_avx512(compiled, parity, built):
    out = parity(compiled.package(built, compiled.AVX512), "avx512")
    passed = re.search(r"(\d+) passed", out)
    assert passed and int(passed[1]) >= 20
    assert "failed" not in out


def test_emulated_avx512_computes_what_the_portable_lanes_do(compiled, verify, built, recording):
    command = compiled.replayer(built, compiled.AVX512)
    compiled.replay(command, "avx512", recording.calls, built / "avx512")
    found = verify("compare").compare(recording.calls, recording.results, built / "avx512")
    assert found.same, found


@pytest.mark.parametrize("fault", range(1, 6))
def test_a_wrong_lane_is_noticed(compiled, verify, built, sample, fault):
    command = compiled.replayer(built, compiled.AVX512, fault=fault)
    compiled.replay(command, "avx512", sample.calls, built / "faulty")
    found = verify("compare").compare(sample.calls, sample.results, built / "faulty")
    assert not found.same
