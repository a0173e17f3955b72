"""The loop as a whole: requests of different lengths together give what each gives alone."""

from __future__ import annotations

from model_repo.runtime.engine import Engine
from model_repo.runtime.request import Request, SamplingParams
from tests.runtime.fake_executor import FakeExecutor, fake_spec, greedy_completion


def test_greedy_requests_together_give_the_models_own_continuations() -> None:
    spec = fake_spec()
    engine = Engine(FakeExecutor(spec), spec)
    prompts = [(1, 2, 3), (7,), tuple(range(30)), (9,) * 17, (4, 5), (1, 2, 3, 4, 5)]
    requests = [
        Request(f"r{index}", prompt, SamplingParams(max_tokens=12, temperature=0.0))
        for index, prompt in enumerate(prompts)
    ]
    completions = engine.generate(requests)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.error is None
        assert list(completion.token_ids) == greedy_completion(prompt, 12)
        assert completion.finish_reason == "length"
    assert engine.stats()["kv_blocks_used"] == 0
