"""Cache blocks: who holds which, and which can be shared because they hold the same prefix.

Pure ints. A full block is registered under (what came before it, its tokens); a later sequence that begins
with the same tokens takes the same blocks. The key holds the tokens themselves, so a hit is exact and never a
matter of a hash alone (where an image's rows take the place of tokens, `Sequence.content` has hashes of the rows).
Blocks that nobody holds keep their content until the room is needed, least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

ROOT = 0
"""The content before a sequence's first block."""


class BlockManager:
    """`num_blocks` blocks of `block_size` tokens. Not thread-safe: the engine's loop alone calls it."""

    def __init__(self, num_blocks: int, block_size: int, share_prefixes: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.share_prefixes = share_prefixes
        self._holders = [0] * num_blocks  # sequences that hold each block
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next to be taken first
        self._content = [ROOT] * num_blocks  # serial of the content registered for a block; ROOT: none
        self._key: dict[int, tuple[int, tuple[int, ...]]] = {}  # block -> its key in _blocks
        self._blocks: dict[tuple[int, tuple[int, ...]], int] = {}  # (content before, tokens) -> block
        self._next_content = ROOT + 1

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now (cached content in them would go)."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def match(self, token_ids: Sequence[int], max_tokens: int) -> list[int]:
        """Blocks that hold the longest known prefix of `token_ids`, whole blocks of at most `max_tokens` tokens.

        Nothing is taken yet: `share` takes them.
        """
        found: list[int] = []
        if not self.share_prefixes:
            return found
        content = ROOT
        for start in range(0, max_tokens - self.block_size + 1, self.block_size):
            block = self._blocks.get((content, tuple(token_ids[start : start + self.block_size])))
            if block is None:
                break
            found.append(block)
            content = self._content[block]
        return found

    def share(self, block_ids: Sequence[int]) -> None:
        """Adds a holder to each block (found by `match`)."""
        for block in block_ids:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int] | None:
        """`count` blocks with one holder each, their old content forgotten; None (and nothing taken) if too few."""
        if count > len(self._free):
            return None
        taken: list[int] = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def release(self, block_ids: Sequence[int]) -> None:
        """Gives up one hold on each block. A sequence's later blocks are reused before its earlier ones."""
        for block in reversed(block_ids):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                if block not in self._key:
                    self._free.move_to_end(block, last=False)  # nothing worth keeping in it

    def register(self, block_id: int, before: int | None, tokens: Sequence[int]) -> None:
        """Says that a held block is full: it follows the block `before` (None: it is the first) with `tokens`.

        Where another block holds the same content already, this one stays private.
        """
        if not self.share_prefixes:
            return
        content = ROOT if before is None else self._content[before]
        if before is not None and content == ROOT:
            return  # what came before is not registered under this block: no chain to hang on
        key = (content, tuple(tokens))
        if key in self._blocks or block_id in self._key:
            return
        self._blocks[key] = block_id
        self._key[block_id] = key
        self._content[block_id] = self._next_content
        self._next_content += 1

    def _forget(self, block: int) -> None:
        key = self._key.pop(block, None)
        if key is not None:
            del self._blocks[key]
            self._content[block] = ROOT
