"""Positions for decoders that count them themselves: those of the step, where the model would number its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

_COUNTS = "create_position_ids_from_input_ids"
"""What transformers' modules that number tokens by their ids (padding is skipped) call the function that does it."""


@contextmanager
def positions_given(model: nn.Module, position_ids: Tensor | None) -> Iterator[None]:
    """Every module that numbers tokens takes `position_ids` [tokens] instead; None leaves the modules as they are.

    Decoders of the BART kind count the tokens and tell their table of positions by the name position_ids; those of the
    M2M-100 kind have a table that counts by itself.
    """
    if position_ids is None:
        yield
        return

    def replace(
        _: nn.Module, inputs: tuple[Any, ...], names: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        counted = names.get("position_ids")
        if not isinstance(counted, Tensor):
            return None
        return inputs, names | {"position_ids": position_ids if counted.dim() == 1 else position_ids[None]}

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(replace, with_kwargs=True).remove)
            if hasattr(module, _COUNTS):
                stack.enter_context(_each_token_alone(module, position_ids))
        yield


@contextmanager
def _each_token_alone(module: Any, position_ids: Tensor) -> Iterator[None]:
    """A table that counts takes every token for a text of one token, whose past is as long as its position."""
    forward: Callable[..., Tensor] = module.forward
    count: Callable[[Tensor, int, Tensor], Tensor] = getattr(module, _COUNTS)

    def counted(input_ids: Tensor, padding_idx: int, *_: Any) -> Tensor:
        return count(input_ids, padding_idx, position_ids[:, None])

    def alone(input_ids: Tensor, *_: Any) -> Tensor:
        return forward(input_ids.view(-1, 1)).transpose(0, 1)

    setattr(module, _COUNTS, counted)
    module.forward = alone
    try:
        yield
    finally:
        delattr(module, _COUNTS)
        del module.forward
