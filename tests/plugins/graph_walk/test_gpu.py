"""The runtime over walked graphs on a GPU, where there is one: `make gpu-check` does this with a larger model."""

from __future__ import annotations

import pytest
import torch

from plugins.cuda.build import build
from plugins.cuda.nvcc import machine_architecture
from plugins.graph_walk.check import MOST_REGRET
from plugins.graph_walk.invented import TINY, invented
from plugins.graph_walk.loop import Loop, random_prompts
from plugins.graph_walk.spec import FEW
from plugins.graph_walk.teacher import Teacher
from tests.plugins.cuda.conftest import needs_nvcc


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
@needs_nvcc
@pytest.mark.parametrize("captures", [True, False], ids=["CUDA graphs", "no CUDA graphs"])
def test_tokens_of_the_loop(captures: bool) -> None:
    chip = machine_architecture(*torch.cuda.get_device_capability())
    graph = invented(TINY)
    loop = Loop(graph, FEW, torch.device("cuda"), build((chip,)).library, captures)
    prompts = random_prompts((5, 21, 8, 40, 1), TINY.vocab_size)
    teacher = Teacher(graph)
    for prompt, tokens in zip(prompts, loop.tokens(prompts, 16), strict=True):
        assert teacher.regret(prompt, tokens) <= MOST_REGRET
    loop.close()
