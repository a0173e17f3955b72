"""`step_prepare`: the kernel under the emulator against the reference, and both against the runtime's own steps."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq

import numpy as np
import pytest
import torch
from torch import Tensor

from model_repo.runtime.block_manager import BlockManager
from model_repo.runtime.block_tables import BlockTables
from model_repo.runtime.contract import Limits
from model_repo.runtime.errors import BadInput
from model_repo.runtime.scheduler import Scheduler
from model_repo.runtime.sequence import Sequence
from model_repo.runtime.step_tensors import step_tensors
from plugins.checks import step_prepare as checks
from plugins.checks.step_prepare import int32
from plugins.cuda.emulated import Build
from plugins.cuda.library import Library
from plugins.reference.step_prepare import Row, Status, advance, prepare
from tests.plugins.cuda.emulation import SMALL_UNDER_ASAN, wrong

OPERATORS = ("step_prepare",)
BLOCK_SIZE = 4


@SMALL_UNDER_ASAN
def test_the_kernel_gives_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    assert wrong(checks, OPERATORS, flavour, scale, seed) == {}


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(Build("plain", OPERATORS).library())


class DeviceBatch:
    """A batch whose state lies in tensors that only `step_prepare` moves on, as beside a CUDA graph."""

    def __init__(
        self, library: Library, batch: int, max_blocks: int, stops: int = 1, drafts: int = 0
    ) -> None:
        self.library = library
        rows = batch * (1 + drafts)
        self.tensors: dict[str, Tensor] = {
            "sampled": torch.zeros(batch, 1 + drafts, dtype=torch.int32),
            "block_table": torch.full((batch, max_blocks), -1, dtype=torch.int32),
            "stop_tokens": torch.full((batch, stops), -1, dtype=torch.int32),
            "cu_seqlens": torch.zeros(batch + 1, dtype=torch.int32),
        }
        if drafts:
            self.tensors["num_accepted"] = torch.zeros(batch, dtype=torch.int32)
            self.tensors["draft_tokens"] = torch.full((batch, drafts), -1, dtype=torch.int32)
        for name in ("status", "past_lens", "remaining", "next_token", "num_sampled", "num_new_tokens"):
            self.tensors[name] = torch.zeros(batch, dtype=torch.int32)
        for name in ("input_ids", "position_ids", "slot_mapping", "logits_indices"):
            self.tensors[name] = torch.zeros(rows, dtype=torch.int32)

    def step(self) -> None:
        self.library.run("step_prepare", self.tensors, {"block_size": BLOCK_SIZE})

    def row(self, index: int, blocks: Seq[int], stops: Seq[int] = ()) -> None:
        self.tensors["block_table"][index, : len(blocks)] = int32(list(blocks))
        self.tensors["stop_tokens"][index, : len(stops)] = int32(list(stops))


def test_decode_steps_are_those_that_the_runtime_makes(library: Library) -> None:
    """Six requests of other lengths and ends, sampled tokens of chance: every decode step, to the last token."""
    generator = random.Random(11)
    limits = Limits(max_batch=6, token_budget=512, max_length=64, block_size=BLOCK_SIZE, num_blocks=80)
    scheduler = Scheduler(limits, BlockManager(limits.num_blocks, BLOCK_SIZE))
    sequences = []
    for index, (prompt, new) in enumerate([(3, 9), (4, 1), (7, 20), (12, 20), (2, 6), (5, 14)]):
        tokens = [generator.randrange(1, 30) for _ in range(prompt)]
        sequences.append(Sequence(str(index), tokens, new, frozenset([29])))
        scheduler.add(sequences[-1])

    plan = scheduler.plan()
    assert plan is not None
    scheduler.commit(plan, [generator.randrange(1, 29) for _ in range(plan.num_logit_rows)])
    device = DeviceBatch(library, len(sequences), limits.max_blocks)
    tables = BlockTables(limits)
    for index, sequence in enumerate(sequences):  # all join, with the token that their prompt gave
        if sequence.finish_reason is None:
            tensors = device.tensors
            tensors["status"][index] = Status.WAITING
            tensors["past_lens"][index] = sequence.num_computed_tokens
            tensors["remaining"][index] = sequence.max_new_tokens - 1
            tensors["next_token"][index] = sequence.token_ids[-1]

    steps, ends = 0, set()
    while (plan := scheduler.plan()) is not None:
        want = step_tensors(plan, tables)
        for index, sequence in enumerate(sequences):
            device.row(index, sequence.block_ids, [29])
        device.step()
        got = {name: tensor.numpy() for name, tensor in device.tensors.items()}
        running = [index for index in range(len(sequences)) if got["status"][index] == Status.RUNNING]
        live = int(got["cu_seqlens"][-1])
        assert live == len(want.input_ids) == len(running)
        for name in ("input_ids", "position_ids", "slot_mapping"):
            assert np.array_equal(got[name][:live], getattr(want, name)), name
        assert np.array_equal(got["past_lens"][running], want.past_lens)
        assert np.array_equal(got["logits_indices"][running], want.logits_indices)
        assert np.array_equal(np.unique(got["cu_seqlens"]), want.cu_seqlens)
        assert set(got["slot_mapping"][live:].tolist()) <= {-1}

        tokens = {index: generator.randrange(1, 30) for index in running}
        for index, token in tokens.items():
            device.tensors["sampled"][index, 0] = token
        for sequence in scheduler.commit(plan, list(tokens.values())):
            ends.add(sequence.finish_reason)
        steps += 1
    device.step()
    assert int(device.tensors["cu_seqlens"][-1]) == 0
    status = device.tensors["status"].tolist()
    reasons = {Status.STOPPED: "stop", Status.EXHAUSTED: "length"}
    for index, sequence in enumerate(sequences):
        if status[index] != Status.EMPTY:
            assert sequence.finish_reason == reasons[Status(status[index])]
    assert steps >= 10
    assert ends == {None, "stop", "length"}


def test_the_work_list_is_the_one_that_attention_plan_writes() -> None:
    library = Library(Build("plain", ("step_prepare", "attention_plan")).library())
    shape = {"num_heads": 8, "kv_num_heads": 2, "pool_tokens": 4000, "local_window_size": 60, "chunk": 64}
    batch, max_blocks, block_size = 9, 12, 16
    tensors = dict(checks.case_of("", checks.some(5, batch, 2, block_size, max_blocks)).start())
    room = torch.full((100_000,), -1, dtype=torch.int32)
    attributes = {"block_size": block_size, **shape}
    library.run("step_prepare", {**tensors, "attention_metadata": room}, attributes)
    want = torch.full_like(room, -1)
    lengths = {
        "cumulative_sequence_length": tensors["cu_seqlens"],
        "past_seqlens": tensors["past_lens"],
        "attention_metadata": want,
    }
    limits = {"tokens": len(tensors["input_ids"]), "max_length": max_blocks * block_size}
    library.run("attention_plan", lengths, {**shape, **limits})
    assert torch.equal(room, want)
    assert int((want != -1).sum()) > 100
    with pytest.raises(BadInput, match="attention_metadata has 20 elements; these limits need"):
        library.run("step_prepare", {**tensors, "attention_metadata": room[:20]}, attributes)


def test_a_sequence_without_a_block_waits_and_loses_nothing(library: Library) -> None:
    """One of two runs out of blocks in the middle; when it gets one it goes on with the token that it had."""
    device = DeviceBatch(library, 2, 4)
    tensors = device.tensors
    device.row(0, [5])
    device.row(1, [7, 8])
    tensors["status"][:] = Status.WAITING
    tensors["past_lens"][:] = 2
    tensors["remaining"][:] = 50
    tensors["next_token"][:] = int32([10, 20])
    seen: list[list[int]] = [[], []]
    for step in range(6):
        if step == 4:
            device.row(0, [5, 9])
        device.step()
        cu = tensors["cu_seqlens"].tolist()
        for row in range(2):
            seen[row] += tensors["input_ids"][cu[row] : cu[row + 1]].tolist()
        waits = step in (2, 3)
        assert tensors["status"].tolist() == [Status.WAITING if waits else Status.RUNNING, Status.RUNNING]
        tensors["sampled"][:, 0] = int32([-5 if waits else 11 + step, 21 + step])
    assert seen == [[10, 11, 12, 15], [20, 21, 22, 23, 24, 25]]
    assert tensors["slot_mapping"].tolist() == [9 * 4 + 1, 8 * 4 + 3]
    assert tensors["past_lens"].tolist() == [5, 7]


def test_speculation_gives_each_sequence_the_tokens_of_plain_decoding(library: Library) -> None:
    """A model that is a function of position and token; drafts that are right or wrong by chance."""
    generator = random.Random(12)
    drafts, batch, goal = 3, 5, 23

    def after(row: int, position: int, token: int) -> int:
        return (token * 31 + position * 7 + row) % 1009

    device = DeviceBatch(library, batch, 16, drafts=drafts)
    tensors = device.tensors
    texts = [[100 + row] for row in range(batch)]
    wanted = [list(text) for text in texts]
    for row, text in enumerate(wanted):
        while len(text) <= goal:
            text.append(after(row, len(text) - 1, text[-1]))
        device.row(row, range(row * 16, row * 16 + 16))
        tensors["next_token"][row] = text[0]
    tensors["status"][:] = Status.WAITING
    tensors["remaining"][:] = goal
    steps = 0
    while True:
        for row in range(batch):
            begin = len(texts[row]) + int(tensors["num_accepted"][row]) * (steps > 0) + (steps > 0)
            right = wanted[row][begin : begin + drafts]
            guess = [token if generator.random() < 0.7 else -7 % 1009 for token in right]
            tensors["draft_tokens"][row] = int32([*guess, -1, -1, -1][:drafts])
        device.step()
        for row, count in enumerate(tensors["num_new_tokens"].tolist()):
            texts[row] += tensors["sampled"][row, :count].tolist()
        cu = tensors["cu_seqlens"].tolist()
        if cu[-1] == 0:
            break
        for row in range(batch):
            tokens = tensors["input_ids"][cu[row] : cu[row + 1]].tolist()
            positions = tensors["position_ids"][cu[row] : cu[row + 1]].tolist()
            results = [after(row, p, t) for p, t in zip(positions, tokens, strict=True)]
            accepted = 0
            while accepted + 1 < len(tokens) and tokens[accepted + 1] == results[accepted]:
                accepted += 1
            tensors["num_accepted"][row] = accepted
            tensors["sampled"][row] = int32([*results, -9, -9, -9, -9][: 1 + drafts])
        steps += 1
    assert texts == wanted
    assert tensors["num_sampled"].tolist() == [goal] * batch
    assert goal / (1 + drafts) < steps < goal


def test_the_reference_ends_a_sequence_where_the_runtime_would() -> None:
    """A stop token before the limit, after it, and at it: as `Sequence.append`."""
    generator = random.Random(13)
    for _ in range(200):
        sequence = Sequence("", [1, 2, 3], generator.randrange(1, 6), frozenset([0]))
        row = Row(Status.RUNNING, 3, sequence.max_new_tokens, 9, [0, 1], [0])
        sampled = [generator.randrange(4) for _ in range(generator.randrange(1, 7))]
        taken = advance(row, sampled)
        reason = None
        for token in sampled[:taken]:
            assert reason is None
            reason = sequence.append(token)
        ends = {None: Status.WAITING, "stop": Status.STOPPED, "length": Status.EXHAUSTED}
        assert row.status is ends[reason]
        assert row.next_token == sequence.token_ids[-1]
        assert row.past_len == 3 + taken
        assert reason is not None or taken == len(sampled)


def test_the_reference_never_gives_a_slot_twice() -> None:
    rows = [Row(Status.WAITING, 7 * i, 9, i, [2 * i, 2 * i + 1, 40 + i]) for i in range(5)]
    step = prepare(rows, [[1, 2, 3]] * 5, 3, 16)
    assert len(step.slot_mapping) == 20 == len(set(step.slot_mapping))
    assert step.cu_seqlens == [0, 4, 8, 12, 16, 20]
    assert step.logits_indices == list(range(20))
