"""Which samples are taken: of every length and every domain its share, the same ones every time.

A stratum holds the samples of one domain whose lengths lie between the same two powers of two. Strata get seats by
their numbers of samples (largest remainders, and one each as far as seats reach). Within a stratum the samples with the
smallest hashes are taken, and hashes also give the order: neither where a sample stood in its file nor how many others
there were decides.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from model_repo.runtime.errors import BadInput

from .base import Found, Samples

LEAST_SAMPLES = 8
LEAST_TOKENS = 256
"""Below these a range is chance: one sentence decides it."""

Stratum = tuple[str, int]


def chosen(source: Path, found: Sequence[Found], count: int | None, most: int, kind: str) -> Samples:
    """`count` of the samples, or at most `most` where it is None. Raises BadInput when there are too few."""
    distinct = {sample.digest: sample for sample in found}
    if not distinct:
        raise BadInput(f"{source} holds no samples; give data that the model would be asked about")
    if count is not None and count > len(distinct):
        raise BadInput(
            f"{source} gives {len(distinct)} different samples, and {count} are asked for; give more data, or "
            f"--samples {len(distinct)}"
        )
    wanted = min(len(distinct), most) if count is None else count
    strata: dict[Stratum, list[bytes]] = defaultdict(list)
    for digest in sorted(distinct):
        sample = distinct[digest]
        strata[sample.domain, sample.size.bit_length()].append(digest)
    seats = allotted({stratum: len(members) for stratum, members in strata.items()}, wanted)
    taken = sorted(digest for stratum, members in strata.items() for digest in members[: seats[stratum]])
    samples = [distinct[digest] for digest in taken]
    size = sum(sample.size for sample in samples)
    enough = len(samples) >= LEAST_SAMPLES if kind == "tensors" else size >= LEAST_TOKENS
    if not enough:
        least = f"{LEAST_SAMPLES} samples" if kind == "tensors" else f"{LEAST_TOKENS} tokens"
        raise BadInput(
            f"{source} gives {len(samples)} samples of {size} tokens in all; calibration takes at least {least}, or a "
            "few outliers would decide"
        )
    domains = Counter(sample.domain for sample in samples if sample.domain)
    return Samples(
        source=source.name,
        items=tuple(sample.item for sample in samples),
        tokens=size,
        sha256=hashlib.sha256(b"".join(taken)).hexdigest(),
        domains=dict(sorted(domains.items())),
    )


def allotted(sizes: Mapping[Stratum, int], seats: int) -> dict[Stratum, int]:
    """Seats of each stratum: in proportion, none more than it has members, one at least as far as seats reach."""
    total = sum(sizes.values())
    given = {stratum: seats * size // total for stratum, size in sizes.items()}
    if seats >= len(sizes):
        given = {stratum: max(count, 1) for stratum, count in given.items()}

    def missing(stratum: Stratum) -> tuple[float, Stratum]:
        """How far a stratum is below its share; names break ties."""
        return given[stratum] - seats * sizes[stratum] / total, stratum

    while sum(given.values()) < seats:
        given[min((s for s in sizes if given[s] < sizes[s]), key=missing)] += 1
    while sum(given.values()) > seats:
        given[max((s for s in sizes if given[s] > 1), key=missing)] -= 1
    return given
