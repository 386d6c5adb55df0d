"""Pseudo-random numbers that depend on content and a seed only, and so are the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

__all__ = ["seeded"]


def seeded(keys: npt.NDArray[np.bytes_], seed: int | str) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each key and the seed: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    start = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "little")
    value = np.frombuffer(keys.tobytes(), "<u8")[::2] ^ np.uint64(start)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
