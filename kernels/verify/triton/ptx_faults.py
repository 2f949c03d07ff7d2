"""Faults put into PTX on purpose, to see that running it would notice them.

Each takes the text of a module and gives it with one fault, or unchanged where it has no place for
it. They are what a compiler, or a wrong piece of inline assembly, could get wrong.
"""

import re
from collections.abc import Callable


def copies_not_awaited(ptx: str) -> str:
    """Every wait for an asynchronous copy is gone."""
    return re.sub(r"cp\.async\.wait_(group\s+\d+|all)\s*;", "", ptx)


def barriers_dropped(ptx: str) -> str:
    """Warps no longer wait for each other."""
    return re.sub(r"(bar|barrier)\.sync(\.aligned)?\s+0\s*;", "", ptx)


def last_barrier_dropped(ptx: str) -> str:
    """One of the barriers is gone, the last one in the text."""
    *before, last = re.split(r"(?=(?:bar|barrier)\.sync(?:\.aligned)?\s+0\s*;)", ptx)
    if not before:
        return ptx
    return "".join(before) + last.split(";", 1)[1]


def shared_loads_off_by_one(ptx: str) -> str:
    """Vectors and scalars come from the next place of shared memory."""
    return _offset(r"ld\.shared(?:\.v(\d))?\.[bf](\d+)", ptx)


def global_loads_off_by_one(ptx: str) -> str:
    """Loads reach one element, or one vector of them, too far."""
    return _offset(r"ld\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bf](\d+)", ptx)


def copies_off_by_one(ptx: str) -> str:
    """Asynchronous copies start 16 bytes too far."""
    return re.sub(
        r"(cp\.async\.c[ag][^;]*,\s*\[\s*[%\w$]+\s*\+\s*)(\d+)(\s*\],)",
        lambda found: f"{found[1]}{int(found[2]) + 16}{found[3]}",
        ptx,
    )


def fragments_swapped(ptx: str) -> str:
    """ldmatrix gives its second matrix first."""

    def swap(found: re.Match) -> str:
        names = [each.strip() for each in found[2].split(",")]
        names[:2] = names[1::-1]
        return f"{found[1]}{{{', '.join(names)}}}"

    return re.sub(r"(ldmatrix[\w.]*\.x[24][\w.]*\s*)\{([^}]*)\}", swap, ptx)


def sums_swapped(ptx: str) -> str:
    """mma adds to the sums of another row."""

    def swap(found: re.Match) -> str:
        names = [each.strip() for each in found[2].split(",")]
        return f"{found[1]}{{{', '.join(names[2:] + names[:2])}}}"

    return re.sub(r"(mma\.sync[^;]*,\s*)\{([^}]*)\}(?=\s*;)", swap, ptx)


def sums_forgotten(ptx: str) -> str:
    """mma starts from 0 every time."""
    zeros = "{0f00000000, 0f00000000, 0f00000000, 0f00000000}"
    return re.sub(r"(mma\.sync[^;]*,\s*)\{[^}]*\}(?=\s*;)", rf"\1{zeros}", ptx)


def truncated(ptx: str) -> str:
    """bfloat16 is cut off, not rounded."""
    return re.sub(r"cvt\.rn\.(bf16x2|bf16)\.f32", r"cvt.rz.\1.f32", ptx)


FAULTS: dict[str, Callable[[str], str]] = {
    fault.__name__: fault
    for fault in (
        copies_not_awaited,
        barriers_dropped,
        last_barrier_dropped,
        shared_loads_off_by_one,
        global_loads_off_by_one,
        copies_off_by_one,
        fragments_swapped,
        sums_swapped,
        sums_forgotten,
        truncated,
    )
}


def _offset(opcode: str, ptx: str) -> str:
    """The addresses of matching loads moved by the bytes they load."""

    def move(found: re.Match) -> str:
        size = int(found[2] or 1) * int(found[3]) // 8
        return f"{found[1]}{found[4]}[ {found[5]} + {int(found[6] or 0) + size} ]"

    address = r"(\s*[^\[;]*)\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]"
    return re.sub(f"({opcode}){address}", move, ptx)
