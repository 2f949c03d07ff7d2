"""Machine code is read right: classes, the main loop, registers that spill, and the yardstick."""

import json

import pytest

SASS = """
.L_x_0:
        /*0000*/                   MOV R1, c[0x0][0x28] ;   /* 0x00000a0000017a02 */
                                                            /* 0x000fe40000000f00 */
.L_x_1:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;  /* 0x0000000402047981 */
                                                            /* 0x000ea8000c1e1d00 */
        /*0020*/               @P0 BRA `(.L_x_1) ;          /* 0x0000000102047981 */
                                                            /* 0x000fea000c1e1d00 */
.L_x_2:
        /*0030*/                   LDSM.16.M88.4 R8, [R20] ; /* 0x0000000402047981 */
                                                            /* 0x000e28000c1e1d00 */
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ; /* 0x04047981 */
        /*0050*/                   MUFU.EX2 R9, R9 ;        /* 0x0000000402047981 */
        /*0060*/                   STL [R1+0x8], R7 ;       /* 0x0000000402047981 */
        /*0070*/                   @!UP0 BRA.U UP1, `(.L_x_2) ; /* 0x0000000402047981 */
        /*0080*/                   EXIT ;                   /* 0x0000000402047981 */
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);           /* 0x0000000402047981 */
"""
GCN = """
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	global_load_dwordx4 v[0:3], v[4:5], off
	s_waitcnt vmcnt(0)
	v_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
	scratch_store_dword off, v9, s33
	v_exp_f32_e32 v1, v1
	s_cbranch_scc1 .LBB0_1
; %bb.2:
	s_endpgm
"""
COUNTED = """
import json, sys
import offline, probe, sass, torch, yardstick
from case import Case

found = {}
for target in sys.argv[1:]:
    with offline.compiling(target) as launches:
        probe.product(torch.empty(64, 512).bfloat16(), torch.empty(512, 64).bfloat16())
    one = sass.statistics(launches[0].kernel, target)
    limit = yardstick.bound(one, Case("", "", None, flop=2 * 32**3, nbytes=4 * 32**2))
    found[target] = {**one._asdict(), "blocks": yardstick.blocks(one), "share": limit.share}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sass(verify):
    return verify("sass")


def test_the_main_loop_is_the_innermost_one_with_the_most_products(sass):
    found, labels = sass.parse_sass(SASS)
    loop = sass.main_loop(found, labels, sass.NVIDIA)
    assert [each.opcode.split(".")[0] for each in loop] == ["LDSM", "HMMA", "MUFU", "STL", "BRA"]
    assert sass.counts(loop) == {"all": 5, "ldsm": 1, "mma": 1, "mufu": 1, "spill": 1}


def test_products_that_start_a_pipeline_do_not_make_the_loop_around_the_main_one(sass):
    """Around 3 to 5 lies 0 to 7, with the products of the first turn before the loop."""
    names = ["UTCHMMA", "UTCHMMA", "UTCHMMA", "LDGSTS", "UTCHMMA", "BRA", "STG", "BRA"]
    places = {5: "turn", 7: "tile"}
    found = [sass.Instruction(name, places.get(i)) for i, name in enumerate(names)]
    loop = sass.main_loop(found, {"turn": 3, "tile": 0}, sass.NVIDIA)
    assert [each.opcode for each in loop] == ["LDGSTS", "UTCHMMA", "BRA"]


def test_without_products_the_main_loop_is_the_one_that_loads(sass):
    found, labels = sass.parse_sass(SASS.replace("HMMA.16816.F32.BF16", "FFMA"))
    assert sass.counts(sass.main_loop(found, labels, sass.NVIDIA))["ldg"] == 1


def test_a_branch_to_itself_is_no_loop(sass):
    found, labels = sass.parse_sass(SASS[SASS.index(".L_x_3") :])
    assert not sass.main_loop(found, labels, sass.NVIDIA)


def test_a_wait_behind_the_program_does_not_make_its_end_a_loop(sass):
    """The wait at 6 comes back to 1; only 1 to 2 is a loop."""
    names = ["BAR", "UTCHMMA", "BRA", "FFMA", "STG", "EXIT", "SYNCS", "BRA", "BRA"]
    places = {2: "top", 7: "wait", 8: "top"}
    found = [sass.Instruction(name, places.get(i)) for i, name in enumerate(names)]
    loop = sass.main_loop(found, {"top": 1, "wait": 6}, sass.NVIDIA)
    assert [each.opcode for each in loop] == ["UTCHMMA", "BRA"]


def test_what_a_branch_passes_over_is_told_apart(sass):
    """The loads at 2 may be left out; not those behind 5, where another branch enters, nor the
    product at 8."""
    names = ["LDG", "BRA", "LDG", "FSEL", "BRA", "BRA", "LDG", "BRA", "HMMA", "LDG", "BRA"]
    places = {1: "a", 4: "b", 5: "c", 7: "d", 10: "top"}
    found = [sass.Instruction(name, places.get(i)) for i, name in enumerate(names)]
    labels = {"top": 0, "a": 4, "b": 6, "c": 7, "d": 10}
    assert sass.bounds(found, labels) == (0, 11)
    assert sass.passed_over(found, labels, 0, 11) == [range(2, 4)]


def test_what_a_branch_within_passes_over_is_rare(sass):
    names = ["HMMA", "BRA", "LDG", "BRA", "LDG", "FSEL", "BRA"]
    found = [sass.Instruction(n, {1: "a", 3: "b", 6: "top"}.get(i)) for i, n in enumerate(names)]
    labels = {"top": 0, "a": 6, "b": 5}
    assert sass.passed_over(found, labels, 0, 7) == [range(2, 6)]
    assert sass.passed_over(found, labels, 2, 6) == [range(4, 5)]


def test_an_instruction_that_never_runs_is_no_read(sass):
    found, _ = sass.parse_sass("/*0010*/ @!PT LDS RZ, [RZ] ;\n/*0020*/ @P0 LDS R1, [R2] ;\n")
    assert sass.counts(found) == {"all": 2, "alu": 1, "lds": 1}


def test_the_compilers_stalls_are_read(sass):
    found, _ = sass.parse_sass(SASS)
    assert [each.stall for each in found[:3]] == [2, 4, 5]


def test_amds_code_is_read(sass):
    found, labels = sass.parse_gcn(GCN)
    loop = sass.counts(sass.main_loop(found, labels, sass.AMD))
    assert loop == {"all": 6, "ldg": 1, "wait": 1, "mma": 1, "spill": 1, "mufu": 1, "alu": 1}


@pytest.mark.parametrize(
    "opcode, flop",
    [
        ("HMMA.16816.F32.BF16", 4096),
        ("HGMMA.64x128x16.F32.BF16", 2 * 64 * 128 * 16 / 4),
        ("v_mfma_f32_32x32x8_bf16", 2 * 32 * 32 * 8),
        ("UTCHMMA", 0),
    ],
)
def test_the_work_of_matrix_instructions(sass, opcode, flop):
    assert sass.flop_of(opcode) == flop


@pytest.mark.parametrize(
    "opcode, kind",
    [("LDS.128", "lds"), ("LDSM.16.M88.4", "ldsm"), ("LDGSTS.E.BYPASS.128", "copy"),
     ("LDG.E", "ldg"), ("LDGDEPBAR", "wait"), ("LDL.LU", "spill"), ("FSETP.GT.AND", "fp"),
     ("F2FP.BF16.F32.PACK_AB", "fp"), ("IMAD.WIDE", "alu"), ("LOP3.LUT", "alu"),
     ("UTCHMMA", "mma"), ("UTCBAR", "alu"), ("SHFL.BFLY", "shfl"), ("STS.128", "sts"),
     ("STG.E", "stg"), ("EXIT", None), ("v_cvt_f32_i32_e32", "fp"), ("v_lshlrev_b32_e32", "alu"),
     ("ds_read_b128", "lds"), ("s_barrier", "wait")],
)  # fmt: skip
def test_classes(sass, opcode, kind):
    assert sass.kind_of(opcode) == kind


def test_a_compiled_product_is_counted(compiling):
    done = compiling("-c", COUNTED, "sm_80", "gfx942")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for target, one in found.items():
        assert one["name"] == "_product" and one["target"] == target and one["has_loop"]
        assert one["stack"] == 0 and 0 < one["registers"] <= 255
        assert 1 <= one["blocks"] <= 32 and 0 < one["share"] <= 1
    # on gfx942 one warp's product fills the tile, and all four compute the same
    work = {target: one["mma_flop"] * one["warps"] for target, one in found.items()}
    assert work["sm_80"] == 2 * 32**3  # what the source's loop computes
    assert work["gfx942"] == 4 * work["sm_80"]
    assert found["sm_80"]["loop"]["copy"] > 0  # asynchronous copies
    assert found["sm_80"]["mma"][0].startswith("HMMA.16816")
    assert found["gfx942"]["mma"][0].startswith("v_mfma")
