"""bfloat16 as numpy sees it: the upper half of a float32."""

import numpy as np


def widen(bits: np.ndarray) -> np.ndarray:
    """uint16 patterns of bfloat16 to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(x: np.ndarray) -> np.ndarray:
    """Numbers to uint16 patterns of bfloat16, to nearest even; NaN stays NaN.

    float64 is brought to float32 rounding to odd first, so that nothing is rounded twice.
    """
    if x.dtype == np.float64:
        x = _to_odd(x)
    u = np.asarray(x, dtype=np.float32, order="C").view(np.uint32)
    rounded = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def _to_odd(x: np.ndarray) -> np.ndarray:
    nearest = x.astype(np.float32, order="C")
    inexact = nearest.astype(np.float64) != x
    away = np.abs(nearest.astype(np.float64)) > np.abs(x)
    u = nearest.view(np.uint32)
    odd = np.where(away, u - 1, u) | 1
    return np.where(inexact & np.isfinite(x), odd, u).astype(np.uint32).view(np.float32)
