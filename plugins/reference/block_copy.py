"""What `block_copy` means: listed blocks of all pools, pair by pair."""

from __future__ import annotations

from torch import Tensor


def asks_nothing(source: int, destination: int, *, same_pools: bool) -> bool:
    """A pair that is skipped: no block is named, or a block is copied to itself."""
    return source < 0 or destination < 0 or (same_pools and source == destination)


def accepted_pairs(
    pairs: list[tuple[int, int]], source_blocks: int, destination_blocks: int, *, same_pools: bool
) -> tuple[list[tuple[int, int]], int]:
    """The pairs that are carried out, and how many are refused.

    Refused is a pair with a block out of range, one whose destination another pair has too, and, within the same pools,
    one whose destination another pair reads. So no order of the copies can matter: every read sees the old content.
    """
    asked = [pair for pair in pairs if not asks_nothing(*pair, same_pools=same_pools)]
    accepted = []
    for index, (source, destination) in enumerate(asked):
        others = asked[:index] + asked[index + 1 :]
        disturbed = any(
            other_destination == destination or (same_pools and other_source == destination)
            for other_source, other_destination in others
        )
        if source < source_blocks and destination < destination_blocks and not disturbed:
            accepted.append((source, destination))
    return accepted, len(asked) - len(accepted)


def block_copy(source: Tensor | None, destination: Tensor, pairs: Tensor) -> tuple[Tensor, int]:
    """Copies source[:, a] to destination[:, b] for each pair (a, b) of int32 [pairs, 2].

    Pools [pools, blocks, block_bytes], uint8; source None: destination itself. Returns a copy of the destination with
    the blocks written, and the number of refused pairs.
    """
    source_pools = destination if source is None else source
    listed = [(int(a), int(b)) for a, b in pairs]
    accepted, refused = accepted_pairs(
        listed, source_pools.shape[1], destination.shape[1], same_pools=source is None
    )
    written = destination.clone()
    for a, b in accepted:
        written[:, b] = source_pools[:, a]
    return written, refused
