"""Orthogonal matrices that spread a vector's outliers over all channels.

QuaRot: Ashkboos et al. 2024, arXiv:2404.00456; SpinQuant: Liu et al. 2024, arXiv:2405.16406 (there R1). A Hadamard
matrix has entries of one size, so that each rotated channel is a sum of all channels with random signs:

    R = diag(random signs) H / sqrt(n),   R R^T = 1

Sylvester's doubling, and Paley's constructions for what is no power of two (Hedayat and Wallis 1978). Where no such
construction fits, the odd part of n is a random orthogonal matrix.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def rotation(size: int, seed: int = 0) -> Matrix:
    """A randomized Hadamard rotation R, float64 [size, size]; the same for the same seed."""
    draw = np.random.default_rng(seed)
    signs = draw.choice((-1.0, 1.0), size)
    return signs[:, None] * spread(size, draw)


def spread(size: int, draw: np.random.Generator) -> Matrix:
    """An orthogonal matrix [size, size]: Hadamard's over sqrt(size) wherever one is constructed here."""
    doublings = 0
    core = hadamard(size)
    odd = size
    while core is None and odd % 2 == 0:
        odd //= 2
        doublings += 1
        core = hadamard(odd)
    if core is None:
        factor, triangle = np.linalg.qr(draw.standard_normal((odd, odd)))
        core = factor * np.sign(np.diag(triangle)) * np.sqrt(odd)
    for _ in range(doublings):
        core = _doubled(core)
    matrix: Matrix = core / np.sqrt(size)
    return matrix


def hadamard(size: int) -> Matrix | None:
    """A Hadamard matrix (entries 1 and -1, H H^T = size), float64 [size, size]; None where none is constructed."""
    if size == 1:
        return np.ones((1, 1))
    if size % 4 == 0 and _is_prime(size - 1):
        return _paley_first(size - 1)
    if size % 4 == 0 and (size // 2 - 1) % 4 == 1 and _is_prime(size // 2 - 1):
        return _paley_second(size // 2 - 1)
    if size % 2 == 0:
        half = hadamard(size // 2)
        return None if half is None else _doubled(half)
    return None


def _doubled(half: Matrix) -> Matrix:
    return np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), half)


def _paley_first(prime: int) -> Matrix:
    """Order prime + 1, prime = 3 modulo 4."""
    whole = np.ones((prime + 1, prime + 1))
    whole[1:, 1:] = _characters(prime) + np.eye(prime)
    whole[1:, 0] = -1
    result: Matrix = whole
    return result


def _paley_second(prime: int) -> Matrix:
    """Order 2 (prime + 1), prime = 1 modulo 4."""
    core = np.ones((prime + 1, prime + 1))
    core[0, 0] = 0
    core[1:, 1:] = _characters(prime)
    return np.kron(core, np.array([[1.0, 1.0], [1.0, -1.0]])) + np.kron(
        np.eye(prime + 1), np.array([[1.0, -1.0], [-1.0, -1.0]])
    )


def _characters(prime: int) -> Matrix:
    """Jacobsthal's matrix: 1 where the difference of two places is a square modulo `prime`, -1 where it is not."""
    squares = {(value * value) % prime for value in range(1, prime)}
    row = np.array([0.0] + [1.0 if value in squares else -1.0 for value in range(1, prime)])
    places = np.arange(prime)
    matrix: Matrix = row[(places[:, None] - places) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
