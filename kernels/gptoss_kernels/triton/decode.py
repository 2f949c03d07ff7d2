"""MXFP4 decoded inside a kernel: 8 codes a word, two of each of 4 blocks, to exact bfloat16.

    value = E2M1[code] · 2^(scale - 127)

A 128-input stretch of a row is 16 words; word i holds inputs 2i and 2i + 1 of each of its four
blocks of 32, so a word gives a neighbouring pair of every block and nothing is moved between
threads. Set into the low exponent and the mantissa of a bfloat16, the three low bits of a code
read as E2M1 · 2^-126, subnormals included: one product with 2^(scale - 1) does the rest.
That factor is finite up to scale byte 128; beyond it (`SMALL` false) two products do.

Methods:  "bits"     sm_80, sm_90: shifts, masks and packed products
          "convert"  sm_100, sm_120: their conversion instruction, then the scale
          "plain"    anywhere
"""

import triton
import triton.language as tl

GROUP = tl.constexpr(128)
"""Inputs that share 16 words: four blocks."""
PLACES = ((15, 8, 7, 6), (12, 5, 4, 3), (9, 2, 1, 0), (14, 11, 10, 13))
"""Method "bits": where sign, both exponent bits and mantissa of block j's code lie in a half word.

The low half holds input 2i, the high half 2i + 1. A shift by 0, 3 and 6 brings the first three
blocks under one mask; the fourth takes the bits that are left.
"""

_SPREAD = """{
.reg .b32 a, b, c, d, t, z;
mov.b32 z, 0x80008000;
and.b32 a, $4, 0x81C081C0;
shl.b32 b, $4, 3;
and.b32 b, b, 0x81C081C0;
shl.b32 c, $4, 6;
and.b32 c, c, 0x81C081C0;
shl.b32 t, $4, 1;
shr.u32 d, $4, 3;
and.b32 d, d, 0x01800180;
lop3.b32 d, t, 0x80008000, d, 0xEA;
shr.u32 t, $4, 7;
lop3.b32 d, t, 0x00400040, d, 0xEA;
"""
_REPAIR = """mov.b32 t, 0x7E807E80;
fma.rn.bf16x2 a, a, t, z;
fma.rn.bf16x2 b, b, t, z;
fma.rn.bf16x2 c, c, t, z;
fma.rn.bf16x2 d, d, t, z;
"""
_SCALE = """fma.rn.bf16x2 $0, a, $5, z;
fma.rn.bf16x2 $1, b, $6, z;
fma.rn.bf16x2 $2, c, $7, z;
fma.rn.bf16x2 $3, d, $8, z;
}"""
_CONVERT = """{
.reg .b8 p, q, r, s;
.reg .b32 a, b, c, d, z;
mov.b32 z, 0x80008000;
mov.b32 {p, q, r, s}, $4;
cvt.rn.bf16x2.e2m1x2 a, p;
cvt.rn.bf16x2.e2m1x2 b, q;
cvt.rn.bf16x2.e2m1x2 c, r;
cvt.rn.bf16x2.e2m1x2 d, s;
"""
ONCE = tl.constexpr(_SPREAD + _SCALE)
TWICE = tl.constexpr(_SPREAD + _REPAIR + _SCALE)
CONVERT = tl.constexpr(_CONVERT + _SCALE)
REGISTERS = tl.constexpr("=r,=r,=r,=r,r,r,r,r,r")

CONVERTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
"""Whether Triton's assembler has PTX 9.2, the first to convert these codes to bfloat16."""


def method(form: str, arch: str) -> str:
    """How words of this form (see `repack`) are decoded on an architecture of `tiles`."""
    if form == "bits":
        return "bits"
    return "convert" if CONVERTS and arch in ("sm_100", "sm_120") else "plain"


@triton.jit
def decode(word, scale, METHOD: tl.constexpr, SMALL: tl.constexpr):
    """Words [row, 16] and scale bytes [row], four in an int32, to four blocks [row, 32]."""
    ROWS: tl.constexpr = word.shape[0]
    if METHOD == "plain":
        return (
            _plain(word, scale, 0, SMALL).reshape(ROWS, 32),  # pyright: ignore
            _plain(word, scale, 8, SMALL).reshape(ROWS, 32),  # pyright: ignore
            _plain(word, scale, 16, SMALL).reshape(ROWS, 32),  # pyright: ignore
            _plain(word, scale, 24, SMALL).reshape(ROWS, 32),  # pyright: ignore
        )
    s0, s1, s2, s3 = scale & 255, (scale >> 8) & 255, (scale >> 16) & 255, (scale >> 24) & 255
    if SMALL and METHOD == "bits":  # 2^(byte - 1), twice in a register
        s0, s1 = s0 * 0x00800080 + 0x3F003F00, s1 * 0x00800080 + 0x3F003F00
        s2, s3 = s2 * 0x00800080 + 0x3F003F00, s3 * 0x00800080 + 0x3F003F00
    else:  # 2^(byte - 127); byte 0 is subnormal
        s0, s1 = tl.maximum(s0 * 0x00800080, 0x00400040), tl.maximum(s1 * 0x00800080, 0x00400040)
        s2, s3 = tl.maximum(s2 * 0x00800080, 0x00400040), tl.maximum(s3 * 0x00800080, 0x00400040)
    CODE: tl.constexpr = CONVERT if METHOD == "convert" else (ONCE if SMALL else TWICE)
    a, b, c, d = tl.inline_asm_elementwise(
        CODE,  # pyright: ignore
        REGISTERS,  # pyright: ignore
        [word, s0[:, None], s1[:, None], s2[:, None], s3[:, None]],
        (tl.int32, tl.int32, tl.int32, tl.int32),
        True,
        1,
    )
    return _pairs(a, ROWS), _pairs(b, ROWS), _pairs(c, ROWS), _pairs(d, ROWS)


@triton.jit
def _pairs(pair, ROWS: tl.constexpr):
    """The two bfloat16 of every register, side by side: [row, 32]."""
    low = pair.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    high = (pair >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, high).reshape(ROWS, 32)


@triton.jit
def _plain(word, scale, AT: tl.constexpr, SMALL: tl.constexpr):
    """The pair of the block whose byte starts at bit AT."""
    byte = (scale >> AT) & 255
    power = ((byte + 126) << 23) if SMALL else tl.maximum(byte << 23, 0x00400000)
    power = power.to(tl.float32, bitcast=True)[:, None]
    return tl.join(_value(word >> AT, power, SMALL), _value(word >> (AT + 4), power, SMALL))


@triton.jit
def _value(code, power, SMALL: tl.constexpr):
    """The low 4 bits in the exponent and mantissa of a float32, times its scale: exact."""
    bits = ((code & 8) << 28) | ((code & 7) << 22)
    value = bits.to(tl.float32, bitcast=True)
    if not SMALL:
        value = value * 8.507059173023462e37  # 2^126
    upper = (value * power).to(tl.uint32, bitcast=True) >> 16
    return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True)
