"""Hashes and permutations have fixed values, are one to one, and show no pattern."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mlm_dist.data.randomness import derive_key, hash32, permute, threshold, uniform

SIZES = [1, 2, 3, 4, 5, 6, 7, 10, 13, 16, 17, 31, 97, 100, 101, 256, 257, 1000, 1009, 9999, 10007, 65536, 65537]


def permutation(size: int, key: int) -> npt.NDArray[np.int64]:
    return permute(np.arange(size), size, key)


def deviation(counts: npt.NDArray[np.float64], expected: float, degrees: int) -> float:
    """Chi-square of counts, in standard deviations from its expected value."""
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


def test_hash32_is_the_finalizer_of_murmurhash3() -> None:
    # If any of these values changes, a seed gives other rows and masks, and old runs can no longer be resumed.
    known = {0: 0, 1: 0x514E28B7, 2: 0x30F4C306, -1: 0x81F16F39}
    assert hash32(np.array(list(known), dtype=np.int32)).view(np.uint32).tolist() == list(known.values())

    def finalize(value: int) -> int:  # Appleby's fmix32, on unsigned integers
        value = (value ^ value >> 16) * 0x85EBCA6B % (1 << 32)
        value = (value ^ value >> 13) * 0xC2B2AE35 % (1 << 32)
        return value ^ value >> 16

    values = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, 1000).astype(np.int32)
    assert hash32(values).view(np.uint32).tolist() == [finalize(int(value)) for value in values.view(np.uint32)]


def test_keys_keep_their_values() -> None:
    assert derive_key(0) == -1960697969
    assert derive_key(1337, 0, "order") == -2059344495
    assert derive_key(1337, 0, "mask") == -637381077
    assert derive_key("replacement") == -456667062
    assert derive_key("token") == -585402884


def test_permutations_keep_their_values() -> None:
    assert permutation(10, key=42).tolist() == [2, 1, 3, 5, 9, 8, 7, 6, 4, 0]


def test_keys_for_different_purposes_differ() -> None:
    uses = [(seed, epoch, purpose) for seed in range(20) for epoch in range(20) for purpose in ("order", "mask")]
    assert len({derive_key(*use) for use in uses}) == len(uses)


def test_hash32_is_one_to_one() -> None:
    values = np.union1d(np.arange(-(1 << 16), 1 << 16), np.arange(-(1 << 31), 1 << 31, 30011)).astype(np.int32)
    assert len(np.unique(hash32(values))) == len(values)


def test_hash32_is_the_same_in_numpy_and_torch() -> None:
    values = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, 100_000).astype(np.int32)
    assert hash32(torch.from_numpy(values.copy())).numpy().tolist() == hash32(values).tolist()


def test_hash32_does_not_change_its_argument() -> None:
    values = torch.arange(10, dtype=torch.int32)
    hash32(values)
    assert values.tolist() == list(range(10))


def test_uniform_is_below_a_threshold_with_its_probability() -> None:
    numbers = uniform(hash32(torch.arange(1 << 20, dtype=torch.int32)))
    assert int(numbers.min()) >= 0
    assert int(numbers.max()) < threshold(1.0)
    for probability in (0.0, 0.1, 0.15, 0.6, 0.9, 1.0):
        fraction = (numbers < threshold(probability)).float().mean().item()
        error = math.sqrt(probability * (1 - probability) / len(numbers))
        assert abs(fraction - probability) <= 4 * error


@pytest.mark.parametrize("size", SIZES)
def test_permute_reaches_every_index_once(size: int) -> None:
    for key in (0, 1, -1, 2**31 - 1):
        assert np.array_equal(np.sort(permutation(size, key)), np.arange(size))


def test_permuting_some_indices_gives_that_part_of_the_permutation() -> None:
    some = np.array([7, 1008, 0, 500, 7])
    assert np.array_equal(permute(some, 1009, 5), permutation(1009, 5)[some])


def test_permute_does_not_change_its_argument() -> None:
    indices = np.arange(100)
    permute(indices, 100, 3)
    assert np.array_equal(indices, np.arange(100))


def test_permutations_of_different_keys_differ() -> None:
    whole = {permutation(1009, key).tobytes() for key in range(200)}
    assert len(whole) == 200
    # Two independent permutations agree at one index on average.
    agreements = [(permutation(1009, key) == permutation(1009, key + 1)).sum() for key in range(200)]
    assert 0.7 < np.mean(agreements) < 1.3


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_permutation_of_a_few_indices_is_equally_likely(size: int) -> None:
    counts = dict.fromkeys(itertools.permutations(range(size)), 0)
    for key in range(1500):
        counts[tuple(permutation(size, key).tolist())] += 1
    assert deviation(np.array(list(counts.values())), 1500 / len(counts), len(counts) - 1) < 5


@pytest.mark.parametrize("size", [5, 10, 31, 97])
def test_every_index_is_equally_likely_at_every_position(size: int) -> None:
    counts = np.zeros((size, size))
    for key in range(1500):
        counts[np.arange(size), permutation(size, key)] += 1
    assert deviation(counts, 1500 / size, (size - 1) ** 2) < 5


def test_permute_separates_neighbours() -> None:
    # Every nonzero difference between neighbours is equally likely, so no strides or runs remain.
    size = 101
    counts = np.zeros(size)
    for key in range(500):
        np.add.at(counts, np.diff(permutation(size, key)) % size, 1)
    assert counts[0] == 0
    assert deviation(counts[1:], counts.sum() / (size - 1), size - 2) < 5
