"""`len` of a tensor while a module is exported: a size that may change, not the example's."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def lengths_that_change(module: nn.Module) -> Iterator[None]:
    """While it holds, `len(tensor)` is `tensor.shape[0]` in the code of all classes in `module`.

    Python turns what its own `len` gives into an int, so torch.export would take that size for a fixed one.
    """
    namespaces = [
        vars(sys.modules[name])
        for name in {type(child).__module__ for child in module.modules()}
        if name in sys.modules and not name.startswith("torch.")
    ]
    changed = [names for names in namespaces if "len" not in names]
    for names in changed:
        names["len"] = _length
    try:
        yield
    finally:
        for names in changed:
            del names["len"]


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else builtins.len(value)
