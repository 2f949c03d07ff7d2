"""The emulator's instructions, memory, warps and copies, on PTX written by hand."""

import numpy as np
import pytest
import torch

HEAD = """.version 8.8
.target sm_80
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u64 .ptr .global .align 1 kernel_param_1,
    .param .u32 kernel_param_2,
    .param .f32 kernel_param_3
)
{
    .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<99>; .reg .b64 %rd<29>;
    ld.param.b64 %rd1, [kernel_param_0];
    ld.param.b64 %rd2, [kernel_param_1];
    mov.u32 %r90, %tid.x;
    mul.wide.u32 %rd3, %r90, 4;
    add.s64 %rd4, %rd1, %rd3;   // place of this thread's word in the first tensor
    add.s64 %rd5, %rd2, %rd3;
"""
LOOP = """
    and.b32 %r1, %r90, 7;
    mov.b32 %r2, 0;
$again:
    add.s32 %r2, %r2, 3;
    sub.s32 %r1, %r1, 1;
    setp.ge.s32 %p1, %r1, 0;
    @%p1 bra $again;
    st.global.b32 [%rd5], %r2;
    ret;
}"""
NEIGHBOUR = """
    shl.b32 %r1, %r90, 2;
    ld.global.b32 %r2, [%rd4];
    st.shared.b32 [%r1], %r2;
    BARRIER
    xor.b32 %r3, %r1, 128;      // the same lane of the other warp
    ld.shared.b32 %r4, [%r3];
    st.global.b32 [%rd5], %r4;
    ret;
}"""


@pytest.fixture
def run(verify):
    """run(body, given, ...): the second tensor after `body` ran on both."""
    machine = verify("ptx_machine")

    def start(body, given, threads=32, grid=(1,), shared=0, how=(), extra=(), to=None):
        out = torch.zeros(len(given), dtype=torch.int32) if to is None else to
        arguments = (given, out, *extra)
        machine.run(HEAD + body, grid, arguments, threads, shared, machine.Run(*how))
        return out

    return start


def words(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def floats(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(torch.int32)


ONE = """
    ld.global.b32 %r1, [%rd1];
    ld.global.b32 %r2, [%rd1+4];
    ld.global.b32 %r3, [%rd1+8];
    INSTRUCTION
    st.global.b32 [%rd2], %r4;
    ret;
}"""
CASES = [
    ("add.s32 %r4, %r1, %r2", (2**31 - 1, 1), -(2**31)),
    ("mul.lo.s32 %r4, %r1, %r2", (-7, 6), -42),
    ("mul.hi.u32 %r4, %r1, %r2", (-1, -1), -2),
    ("mad.lo.s32 %r4, %r1, %r2, %r3", (-7, 6, 2), -40),
    ("div.s32 %r4, %r1, %r2", (-7, 2), -3),
    ("rem.s32 %r4, %r1, %r2", (-7, 2), -1),
    ("div.u32 %r4, %r1, %r2", (-1, 3), 0x55555555),
    ("shl.b32 %r4, %r1, %r2", (5, 33), 0),
    ("shr.s32 %r4, %r1, %r2", (-8, 40), -1),
    ("shr.u32 %r4, %r1, %r2", (-8, 28), 15),
    ("shf.l.wrap.b32 %r4, %r1, %r2, 8", (-16777216, 1), 511),
    ("and.b32 %r4, %r1, 0xF0", (0x1FF,), 0xF0),
    ("lop3.b32 %r4, %r1, %r2, %r3, 0xca", (0xFF00, 0x1234, 0x5678), 0x1278),
    ("prmt.b32 %r4, %r1, %r2, 0x0716", (0x03020100, 0x07060504), 0x00070106),
    ("bfe.s32 %r4, %r1, 4, 4", (0xF5A,), 5),
    ("bfe.s32 %r4, %r1, 8, 4", (0xF5A,), -1),
    ("bfi.b32 %r4, %r1, %r2, 4, 8", (0xAB, 0), 0xAB0),
    ("popc.b32 %r4, %r1", (0xFF,), 8),
    ("clz.b32 %r4, %r1", (0x00FFFFFF,), 8),
    ("min.s32 %r4, %r1, %r2", (-1, 1), -1),
    ("min.u32 %r4, %r1, %r2", (-1, 1), 1),
    ("cvt.s32.s8 %r4, %r1", (0xFF,), -1),
]
REAL = [
    ("add.f32 %r4, %r1, %r2", (1.5, 2.25), 3.75),
    ("fma.rn.f32 %r4, %r1, %r2, %r3", (1 + 2**-12, 1 - 2**-12, -1.0), -(2**-24)),
    ("mul.f32 %r4, %r1, 0f40000000", (3.0,), 6.0),
    ("div.full.f32 %r4, %r1, %r2", (1.0, 3.0), 1 / 3),
    ("ex2.approx.ftz.f32 %r4, %r1", (-3.0,), 0.125),
    ("lg2.approx.f32 %r4, %r1", (8.0,), 3.0),
    ("rsqrt.approx.f32 %r4, %r1", (4.0,), 0.5),
    ("max.f32 %r4, %r1, %r2", (float("nan"), 2.0), 2.0),
    ("max.NaN.f32 %r4, %r1, %r2", (float("nan"), 2.0), float("nan")),
    ("cvt.rmi.f32.f32 %r4, %r1", (-1.5,), -2.0),
    ("cvt.rn.bf16.f32 %rs1, %r1; add.rn.f32.bf16 %r4, %rs1, %r2", (1.00390625, 2**-20), 1 + 2**-20),
    ("cvt.rn.bf16.f32 %rs1, %r1; fma.rn.f32.bf16 %r4, %rs1, %rs1, %r2", (3.0, 0.5), 9.5),
    ("selp.f32 %r4, %r1, %r2, %p0", (1.0, 2.0), 1.0),
]


@pytest.mark.parametrize("instruction, given, wanted", CASES)
def test_whole_numbers(run, instruction, given, wanted):
    given = [value - 2**32 if value >= 2**31 else value for value in (*given, 0, 0)]
    assert run(ONE.replace("INSTRUCTION", instruction + ";"), words(*given))[0] == wanted


@pytest.mark.parametrize("instruction, given, wanted", REAL)
def test_real_numbers(run, instruction, given, wanted):
    body = ONE.replace("INSTRUCTION", "setp.lt.f32 %p0, %r1, %r2;" + instruction + ";")
    found = run(body, floats(*given, 0.0, 0.0)).view(torch.float32)[:1]
    torch.testing.assert_close(found, torch.tensor([wanted]), equal_nan=True)


@pytest.mark.parametrize("given", [(1.0, 2.0), (3.14159, -2.71828), (1e30, float("nan"))])
def test_pairs_of_bfloat16_are_rounded_to_nearest(run, given):
    body = ONE.replace("INSTRUCTION", "cvt.rn.bf16x2.f32 %r4, %r2, %r1;")
    found = run(body, floats(*given, 0.0))[:1].view(torch.bfloat16)
    torch.testing.assert_close(found, torch.tensor(given).bfloat16(), equal_nan=True)


def test_lanes_of_a_loop_leave_it_one_by_one(run):
    thread = torch.arange(64)
    assert run(LOOP, torch.zeros(64), threads=64).tolist() == (3 * (thread % 8 + 1)).tolist()


def test_parameters_and_blocks(run):
    body = """
    ld.param.b32 %r1, [kernel_param_2];
    ld.param.b32 %r2, [kernel_param_3];
    mov.u32 %r3, %ctaid.y;
    mov.u32 %r4, %nctaid.y;
    mov.u32 %r5, %ctaid.x;
    mad.lo.s32 %r6, %r5, %r4, %r3;
    mul.wide.s32 %rd6, %r6, 4;
    add.s64 %rd7, %rd2, %rd6;
    cvt.rn.f32.s32 %r7, %r1;
    mul.f32 %r8, %r7, %r2;
    cvt.rn.f32.s32 %r9, %r6;
    add.f32 %r10, %r8, %r9;
    st.global.b32 [%rd7], %r10;
    ret;
}"""
    out = run(body, torch.zeros(6), grid=(3, 2), extra=(-5, 0.5))
    assert out.view(torch.float32).tolist() == [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]


@pytest.mark.parametrize("warps", ["together", "forward", "backward"])
def test_a_barrier_lets_warps_exchange_words(run, warps):
    body = NEIGHBOUR.replace("BARRIER", "bar.sync 0;")
    found = run(body, torch.arange(64).int(), threads=64, shared=256, how=(warps,))
    assert found.tolist() == [*range(32, 64), *range(32)]


@pytest.mark.parametrize("warps", ["forward", "backward"])
def test_a_missing_barrier_shows_when_warps_run_one_after_another(run, warps):
    body = NEIGHBOUR.replace("BARRIER", "")
    found = run(body, torch.arange(64).int(), threads=64, shared=256, how=(warps,))
    assert (found == -1).sum() == 32


def test_a_barrier_some_never_reach_is_a_deadlock(run, verify):
    body = """
    setp.lt.u32 %p1, %r90, 32;
    @%p1 bar.sync 1, 64;
    ret;
}"""
    with pytest.raises(verify("ptx_machine").Deadlock, match="32 threads wait at barrier 1"):
        run(body, torch.zeros(64), threads=64)


COPY = """
    shl.b32 %r1, %r90, 2;
    mov.b32 %r2, 7;
    st.shared.b32 [%r1], %r2;
    cp.async.ca.shared.global [%r1+0], [%rd4+0], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r1+128], [%rd4+0], 4;
    cp.async.commit_group;
    WAIT
    ld.shared.b32 %r3, [%r1];
    ld.shared.b32 %r4, [%r1+128];
    add.s32 %r5, %r3, %r4;
    st.global.b32 [%rd5], %r5;
    ret;
}"""


@pytest.mark.parametrize(
    "wait, copies, wanted",
    [
        ("cp.async.wait_group 0;", "late", 10),
        ("cp.async.wait_all;", "late", 10),
        ("cp.async.wait_group 1;", "late", 4),  # 5, and -1 of memory never written
        ("", "late", 6),
        ("", "early", 10),
    ],
)
def test_copies_arrive_as_late_as_their_wait_allows(run, wait, copies, wanted):
    given = torch.full((32,), 5).int()
    found = run(COPY.replace("WAIT", wait), given, shared=256, how=("together", copies))
    assert set(found.tolist()) == {wanted}


def test_reads_beyond_a_tensor_are_caught_though_its_storage_goes_on(run, verify):
    given = torch.zeros(64, dtype=torch.int32)[:31]
    with pytest.raises(verify("ptx_memory").MemoryFault, match="1 of 32 lanes read 4 bytes"):
        run("ld.global.b32 %r1, [%rd4]; ret; }", given)


def test_reads_beyond_shared_memory_are_caught(run, verify):
    with pytest.raises(verify("ptx_memory").MemoryFault, match="28 of 32 lanes read 4 bytes"):
        run("shl.b32 %r1, %r90, 2; ld.shared.b32 %r2, [%r1]; ret; }", torch.zeros(32), shared=16)


def test_unaligned_vectors_are_caught(run, verify):
    with pytest.raises(verify("ptx_memory").MemoryFault, match="unaligned"):
        run("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1+4]; ret; }", torch.zeros(32))


@pytest.mark.parametrize("opcode", ["wgmma.mma_async.sync", "tcgen05.mma", "add.sat.f32"])
def test_an_unknown_opcode_is_named(run, opcode):
    with pytest.raises(NotImplementedError, match=opcode):
        run(f"{opcode} %r1, %r2, %r3; ret; }}", torch.zeros(32))


def test_shuffles_and_votes(run):
    body = """
    shfl.sync.bfly.b32 %r1, %r90, 5, 31, -1;
    shfl.sync.down.b32 %r2, %r90, 30, 31, -1;
    setp.gt.u32 %p1, %r90, 29;
    vote.sync.ballot.b32 %r3, %p1, -1;
    add.s32 %r4, %r1, %r2;
    add.s32 %r5, %r4, %r3;
    st.global.b32 [%rd5], %r5;
    ret;
}"""
    lane = np.arange(32)
    wanted = (lane ^ 5) + np.where(lane < 2, lane + 30, lane) + (3 << 30) - (1 << 32)
    assert run(body, torch.zeros(32)).tolist() == wanted.tolist()


def test_names_of_inline_assembly_stay_inside_it(run):
    body = """
    mov.b32 %r1, 1;
    { .reg .b32 a; mov.b32 a, %r1; add.s32 %r2, a, a; }
    { .reg .b64 a; mov.b64 a, 5; cvt.u32.u64 %r3, a; }
    add.s32 %r4, %r2, %r3;
    st.global.b32 [%rd5], %r4;
    ret;
}"""
    assert set(run(body, torch.zeros(32)).tolist()) == {7}
