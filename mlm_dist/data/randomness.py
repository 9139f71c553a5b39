"""Randomness without state: each number is a hash of what it is for, alike on every device and in every process.

Nothing is drawn from a generator, so there is none to save, to skip ahead or to keep in step between ranks.
"""

import hashlib
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

Integers = TypeVar("Integers", torch.Tensor, npt.NDArray[np.int32])

GOLDEN = -1640531527  # 2**32 / golden ratio, as int32: an odd number, so that multiples of it do not repeat
BITS = 24  # of a hash that are used where a uniform number is wanted


@lru_cache(maxsize=256)
def salt(*parts: object) -> int:
    """A 32-bit signed integer that stands for its arguments (a seed, an epoch, a purpose)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def mix(x: Integers) -> Integers:
    """Hash int32 values to int32 values, one to one: the finalizer of MurmurHash3 (Appleby, public domain).

    The masks after the shifts turn arithmetic shifts, which int32 has, into the logical ones it is defined with.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x *= -0x7A143595
    x ^= (x >> 13) & 0x7FFFF
    x *= -0x3D4D51CB
    x ^= (x >> 16) & 0xFFFF
    return x


def uniform(hashes: torch.Tensor) -> torch.Tensor:
    """Turn int32 hashes into integers uniform over [0, 2**BITS)."""
    return (hashes >> (32 - BITS)) & ((1 << BITS) - 1)


def threshold(probability: float) -> int:
    """The bound below which `uniform` falls with that probability."""
    return round(probability * (1 << BITS))


def permute(indices: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """Apply to `indices` the permutation of range(size) that `key` names, without building it.

    A Feistel network over a grid of about sqrt(size) by sqrt(size); the few points of the grid beyond `size` are
    walked through until they come back (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    """
    height = max(1, int(np.ceil(np.sqrt(size))))
    width = -(-size // height)
    permuted = indices
    outside = np.ones(len(indices), dtype=bool)
    while outside.any():
        high, low = np.divmod(permuted[outside], width)
        for turn in range(3):
            high = (high + _hash_index(low, salt(key, turn, "high"))) % height
            low = (low + _hash_index(high, salt(key, turn, "low"))) % width
        permuted = permuted.copy()
        permuted[outside] = high * width + low
        outside = permuted >= size
    return permuted


def _hash_index(indices: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.int64]:
    """Hash indices below 2**32 to integers in [0, 2**31)."""
    return (mix(indices.astype(np.int32) ^ np.int32(key)) & 0x7FFFFFFF).astype(np.int64)
