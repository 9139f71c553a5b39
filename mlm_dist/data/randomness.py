"""Stateless randomness: every number is a hash of what it is used for, the same on every device and in every process.

There is no generator, so there is no generator state to save, to skip ahead or to keep in step between ranks.
"""

import hashlib
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

Integers = TypeVar("Integers", torch.Tensor, npt.NDArray[np.int32])

GOLDEN = -1640531527  # 2**32 / golden ratio as int32: odd, so its multiples do not repeat
BITS = 24  # bits of a hash that make a uniform number


@lru_cache(maxsize=256)
def derive_key(*parts: object) -> int:
    """Derive a 32-bit signed integer from values such as a seed, an epoch and a purpose."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def hash32(x: Integers) -> Integers:
    """Hash int32 values to int32 values, one to one: the finalizer of MurmurHash3 (Appleby, public domain).

    int32 has arithmetic shifts. The masks turn them into the logical shifts of the definition.
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
    """The bound that `uniform` is below with this probability."""
    return round(probability * (1 << BITS))


def permute(indices: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """Apply the permutation of range(size) with this key to `indices`, without building the permutation.

    A Feistel network over a grid of about sqrt(size) by sqrt(size). The few grid points beyond `size` are permuted
    again until they fall below it (cycle walking; Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    """
    height = max(1, int(np.ceil(np.sqrt(size))))
    width = -(-size // height)
    permuted = indices
    outside = np.ones(len(indices), dtype=bool)
    while outside.any():
        high, low = np.divmod(permuted[outside], width)
        for turn in range(3):
            high = (high + _hash_index(low, derive_key(key, turn, "high"))) % height
            low = (low + _hash_index(high, derive_key(key, turn, "low"))) % width
        permuted = permuted.copy()
        permuted[outside] = high * width + low
        outside = permuted >= size
    return permuted


def _hash_index(indices: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.int64]:
    """Hash indices below 2**32 to integers in [0, 2**31)."""
    return (hash32(indices.astype(np.int32) ^ np.int32(key)) & 0x7FFFFFFF).astype(np.int64)
