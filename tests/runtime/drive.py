"""Engines on the fake model, and requests driven step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from model_repo.runtime.contract import EngineSpec
from model_repo.runtime.engine import Engine
from model_repo.runtime.output import Completion, Output
from model_repo.runtime.request import Request, SamplingParams
from model_repo.runtime.step_log import StepLog
from tests.runtime.fake_executor import FakeExecutor, fake_spec
from tests.runtime.invariants import check_engine


class Clock:
    """A clock that stands still until it is told otherwise. Seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Client:
    """Submits requests and keeps their outputs by request id."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outputs: dict[str, list[Output]] = {}

    def submit(self, request: Request) -> None:
        outputs: list[Output] = []
        self.engine.submit(request, outputs.append)
        self.outputs[request.request_id] = outputs

    def tokens(self, request_id: str) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.token_ids]

    def text(self, request_id: str) -> str:
        return "".join(output.text for output in self.outputs[request_id])

    def reason(self, request_id: str) -> str | None:
        """The finish reason; checks that nothing came after it."""
        outputs = self.outputs[request_id]
        assert all(output.finish_reason is None for output in outputs[:-1])
        return outputs[-1].finish_reason if outputs else None

    def run(self, max_steps: int = 2000) -> int:
        """Steps until nothing is left, with invariants checked after each. Gives their number."""
        for count in range(max_steps):
            if not self.engine.step():
                return count
            check_engine(self.engine)
        raise AssertionError(f"still not idle after {max_steps} steps")


def greedy(max_tokens: int = 8, **values: object) -> SamplingParams:
    """Parameters of a greedy request."""
    return SamplingParams(**{"max_tokens": max_tokens, "temperature": 0.0, **values})  # type: ignore[arg-type]


def request(request_id: str, prompt: Sequence[int], sampling: SamplingParams | None = None) -> Request:
    """A request, greedy unless told otherwise."""
    return Request(request_id, tuple(prompt), sampling or greedy())


def fake_engine(spec: EngineSpec | None = None, **options: object) -> Engine:
    """An engine on the fake model."""
    spec = spec or fake_spec()
    return Engine(FakeExecutor(spec), spec, **options)  # type: ignore[arg-type]


def alone(spec: EngineSpec, wanted: Request) -> Completion:
    """The request by itself, in a pool that is large and never shared, with nothing cut into chunks."""
    assert spec.limits is not None
    limits = replace(spec.limits, num_blocks=256, token_budget=256, block_size=16)
    roomy = replace(spec, limits=limits)
    engine = Engine(FakeExecutor(roomy), roomy, share_prefixes=False)
    return engine.generate([replace(wanted, timeout_seconds=None)])[0]


def logged_engine(spec: EngineSpec | None = None, **options: object) -> tuple[Engine, StepLog]:
    """An engine on the fake model, and the log of its steps."""
    log = StepLog()
    return fake_engine(spec, step_log=log, **options), log
