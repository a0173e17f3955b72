"""Random numbers without state: Philox4x64-10, a function of a key and a counter.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Plain integers: one number costs a few
microseconds, less than making a generator of numpy's.
"""

from __future__ import annotations

ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_MASK = 2**64 - 1


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) at `position` (from 0) of the stream of `seed` (below 2**64): 53 random bits."""
    first, second, third, fourth = position, 0, 0, 0
    low_key, high_key = seed, 0
    for _ in range(ROUNDS):
        left, right = _MULTIPLIERS[0] * first, _MULTIPLIERS[1] * third
        first, second, third, fourth = (
            (right >> 64) ^ second ^ low_key,
            right & _MASK,
            (left >> 64) ^ fourth ^ high_key,
            left & _MASK,
        )
        low_key, high_key = (low_key + _WEYL[0]) & _MASK, (high_key + _WEYL[1]) & _MASK
    return (first >> 11) * 2.0**-53
