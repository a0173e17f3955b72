"""Memory with guard bytes on both sides, to see what a kernel writes where it must not."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import POISON
from .emulated import spanned

GUARD = 0xA5
ALIGNMENT = 256


class GuardedBuffer:
    """Bytes on a device with `margin` guard bytes before the first and right after the last."""

    def __init__(self, byte_count: int, device: torch.device, margin: int) -> None:
        self.byte_count = byte_count
        # Without margins nothing follows the last byte, so that a memory checker sees an overrun itself.
        room = ALIGNMENT if margin else 0
        self._all = torch.full((byte_count + 2 * margin + room,), GUARD, dtype=torch.uint8, device=device)
        self._begin = margin + (-(self._all.data_ptr() + margin) % ALIGNMENT if margin else 0)
        self.bytes = self._all[self._begin : self._begin + byte_count]
        """uint8 [byte_count], the part between the guards; it begins at a multiple of 256 bytes."""

    def poison(self, pattern: int = POISON) -> None:
        """Fills everything between the guards."""
        self.bytes.fill_(pattern)

    def overwritten(self) -> list[str]:
        """Which guards are no longer what they were, in words. Waits for the device."""
        before, after = self._all[: self._begin], self._all[self._begin + self.byte_count :]
        found = []
        for guards, side, nearest in ((before, "before the first", -1), (after, "after the last", 0)):
            wrong = (guards != GUARD).nonzero().flatten()
            if len(wrong):
                place = int(wrong[nearest])
                distance = len(guards) - place if nearest else place + 1
                found.append(f"{len(wrong)} guard bytes {side} byte overwritten, the nearest {distance} away")
        return found


class GuardedTensor(GuardedBuffer):
    """A tensor of the same contents, shape and strides as `start` (on the CPU), between guards."""

    def __init__(self, start: Tensor, device: torch.device, margin: int) -> None:
        contents = spanned(start)
        super().__init__(contents.numel(), device, margin)
        self._start = contents.to(device)
        self.bytes.copy_(self._start)
        self.tensor = self.bytes.view(start.dtype).as_strided(
            start.shape, start.stride(), self.bytes.storage_offset() // start.element_size()
        )

    def restore(self) -> None:
        """Gives back the contents that it started with."""
        self.bytes.copy_(self._start)
