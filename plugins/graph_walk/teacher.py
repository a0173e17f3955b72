"""What a decoder says of tokens that were chosen already: the float32 logits of the graph on the CPU, in one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model_repo.runtime.contract import LOGITS, STEP_INPUTS

from .addresses import tensor_at
from .description import DTYPES, Graph
from .engine import WalkingEngine
from .widened import widened

CPU = torch.device("cpu")


class Teacher:
    """`graph` in float32 on the CPU, attention as its reference defines it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = widened(graph)
        self._engine = WalkingEngine(self._graph, CPU)

    def logits(self, tokens: Sequence[int], wanted: int) -> Tensor:
        """float32 [wanted, vocab]: what the model says after each of the last `wanted` of `tokens`."""
        count = len(tokens)
        given = {
            "input_ids": torch.tensor(tokens, dtype=torch.int32),
            "position_ids": torch.arange(count, dtype=torch.int32),
            "cu_seqlens": torch.tensor([0, count], dtype=torch.int32),
            "past_lens": torch.zeros(1, dtype=torch.int32),
            "block_table": torch.zeros(1, 1, dtype=torch.int32),
            "slot_mapping": torch.arange(count, dtype=torch.int32),
            "logits_indices": torch.arange(count - wanted, count, dtype=torch.int32),
        }
        assert set(given) == {spec.name for spec in STEP_INPUTS}
        outputs = {LOGITS.name: torch.empty(wanted, self._vocab)}
        for end in self._graph.inputs:
            if end.name not in given:  # a pool of one block that holds the sequence, written in place
                shape = [count if isinstance(size, str) else size for size in end.shape]
                pool = torch.zeros(1, *shape[1:], dtype=DTYPES[end.dtype])
                given[end.name] = outputs[end.name.replace("_cache_", "_cache_out_")] = pool
            self._engine.set_shape(end.name, tuple(given[end.name].shape))
            self._engine.set_address(end.name, given[end.name].data_ptr())
        for name, tensor in outputs.items():
            self._engine.set_address(name, tensor.data_ptr())
        self._engine.enqueue(0)
        return tensor_at(outputs[LOGITS.name].data_ptr(), (wanted, self._vocab), torch.float32, CPU).clone()

    def regret(self, prompt: Sequence[int], chosen: Sequence[int]) -> float:
        """How far the chosen tokens lie below the likeliest ones at most, in deviations of the logits of that row.

        0 where each is the likeliest; a token that has nothing to do with the prompt lies several deviations below.
        """
        rows = self.logits([*prompt, *chosen[:-1]], len(chosen))
        taken = rows.gather(1, torch.tensor(chosen)[:, None])[:, 0]
        return float(((rows.amax(1) - taken) / rows.std(1)).max())

    @property
    def _vocab(self) -> int:
        (size,) = (end.shape[1] for end in self._graph.outputs if end.name == LOGITS.name)
        assert isinstance(size, int)
        return size
