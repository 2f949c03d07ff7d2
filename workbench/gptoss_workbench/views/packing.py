"""How the numbers of a view travel: each array from a multiple of 8 bytes, one after the other.

A snapshot carries them as base64(gzip(...)), a live view as they are; the header lists them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

SCHEMA = 2


def layout(buffers: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Tell where each array lies, for the header."""
    out, at = [], 0
    for name, array in buffers.items():
        place = {"name": name, "dtype": str(array.dtype), "offset": at}
        out.append(place | {"shape": list(array.shape), "length": int(array.size)})
        at += _padded(array.nbytes)
    return out


def header_text(
    kind: str, finding: str, header: Mapping[str, Any], buffers: Mapping[str, np.ndarray]
) -> str:
    """Write the header: what is shown, what the arrays are, and all that is no array."""
    facts = {"schema": SCHEMA, "view": kind, "finding": finding, "buffers": layout(buffers)}
    return script_json(facts | dict(header))


def raw(buffers: Mapping[str, np.ndarray]) -> bytes:
    """Write the arrays one after the other."""
    return b"".join(a.tobytes().ljust(_padded(a.nbytes), b"\0") for a in buffers.values())


def packed(buffers: Mapping[str, np.ndarray]) -> str:
    """Write the arrays as text; equal arrays give equal text."""
    return base64.b64encode(gzip.compress(raw(buffers), 9, mtime=0)).decode()


def most_bytes(buffers: Mapping[str, np.ndarray]) -> int:
    """Bytes that `packed` never exceeds: incompressible arrays, stored."""
    size = sum(_padded(array.nbytes) for array in buffers.values())
    return (size + size // 4096 + 64) * 4 // 3 + 4


def script_json(value: Any) -> str:
    """Write JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def quantise(
    values: np.ndarray, low: float = 0.0, top: float = 1.0, *, root: bool = False
) -> np.ndarray:
    """Write values from `low` to `top` as 0 to 255; on a square-root scale if `root`."""
    part = np.clip((values - low) / (top - low), 0.0, 1.0) if top > low else np.zeros_like(values)
    return np.rint(255 * (np.sqrt(part) if root else part)).astype(np.uint8)


def quantise_signed(values: np.ndarray, top: float) -> np.ndarray:
    """Write values from -top to top as 1 to 255, zero as 128; 0 is what is no number."""
    part = np.clip(values / top, -1.0, 1.0) if top > 0 else np.zeros_like(values)
    out = 128 + np.rint(127 * np.nan_to_num(part))
    return np.where(np.isnan(values), 0, out).astype(np.uint8)


def _padded(size: int) -> int:
    return -(-size // 8) * 8
