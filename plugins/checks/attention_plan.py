"""Cases of `attention_plan`: the work list must be that of the reference, element by element."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from plugins.cuda.case import Case, Scale
from plugins.reference.attention_plan import Limits, make_plan


@dataclass(frozen=True)
class Step:
    """A step. sequences: (past, new) each; shared: (leader, tokens shared) each; padding: of tokens."""

    name: str
    sequences: tuple[tuple[int, int], ...]
    heads: int = 4
    kv_heads: int = 2
    window: int = -1
    chunk: int = 64
    split: int = 8
    workers: int = 6
    padding: int = 0
    pool_tokens: int = 1 << 16
    shared: tuple[tuple[int, int], ...] = ()

    @property
    def limits(self) -> Limits:
        """What the plan of this step is sized by."""
        longest = max([past + new for past, new in self.sequences] + [1])
        return Limits(
            batch=len(self.sequences),
            tokens=sum(new for _, new in self.sequences) + self.padding,
            heads=self.heads,
            kv_heads=self.kv_heads,
            max_length=longest,
            pool_tokens=self.pool_tokens,
            window=self.window,
            chunk=self.chunk,
            max_split_tokens=self.split,
            workers=self.workers,
        )


def case_of(step: Step) -> Case:
    """The call and the reference's plan."""
    limits = step.limits
    lengths = torch.tensor([0, *(new for _, new in step.sequences)]).cumsum(0)
    tensors = {
        "cumulative_sequence_length": lengths.int(),
        "past_seqlens": torch.tensor([past for past, _ in step.sequences], dtype=torch.int32),
    }
    leaders: Sequence[int] | None = None
    prefix_lens: Sequence[int] | None = None
    if step.shared:
        leaders, prefix_lens = [a for a, _ in step.shared], [n for _, n in step.shared]
        tensors["prefix_leader"] = torch.tensor(leaders, dtype=torch.int32)
        tensors["prefix_lens"] = torch.tensor(prefix_lens, dtype=torch.int32)
    plan = make_plan(limits, lengths.tolist(), [past for past, _ in step.sequences], leaders, prefix_lens)
    attributes = {
        "tokens": limits.tokens,
        "num_heads": limits.heads,
        "kv_num_heads": limits.kv_heads,
        "max_length": limits.max_length,
        "pool_tokens": limits.pool_tokens,
        "local_window_size": limits.window,
        "chunk": limits.chunk,
        "max_split_tokens": limits.max_split_tokens,
        "workers": limits.workers,
    }
    return Case(step.name, "attention_plan", tensors, {"attention_metadata": plan}, attributes)


QUICK = (
    Step("decode", ((0, 1), (63, 1), (64, 1), (300, 1), (5, 0), (127, 1)), padding=3),
    Step("mixed", ((130, 1), (10, 200), (0, 54), (511, 4)), heads=6, kv_heads=1, workers=7),
    Step("rows of several tiles", ((100, 3), (70, 8)), heads=71, kv_heads=1),
    Step("partial results do not fit", ((1000, 1),) * 8, pool_tokens=1024, split=1),
    Step("a prefix longer than the past", ((128, 1), (130, 1)), shared=((0, 0), (0, 1000))),
    Step("one chunk takes no slot", ((640, 1), (640, 1), *((9, 1),) * 18), pool_tokens=640, split=1),
    Step("prefixes of one", ((200, 1), (300, 1)), shared=((0, 0), (1, 0))),
    Step("a window and a prefix", ((300, 1), (310, 1)), window=100, shared=((0, 0), (0, 256))),
    Step("the first of many has the shortest prefix", ((130, 1), *((300, 1),) * 32), chunk=128,
         shared=((0, 0), *((0, 256),) * 32)),
    Step("window of nothing", ((63, 1), (64, 1), (200, 2)), window=0),
    Step("window", ((300, 1), (500, 3), (100, 90), (20, 1), (132, 1)), window=70, workers=3),
    Step("cascade", ((200, 1), (300, 2), (64, 1), (150, 0), (400, 1), (500, 60)), heads=64, kv_heads=2,
         shared=((1, 192), (1, 0), (1, 64), (1, 128), (1, 128), (1, 256))),
)  # fmt: skip
SMALL = (
    *QUICK,
    Step("one token", ((0, 1),), heads=1, kv_heads=1, workers=1),
    Step("no tokens", ((9, 0), (0, 0)), padding=2),
    Step("two prefixes", ((300, 1), (310, 1), (320, 8), (330, 1), (64, 1)), chunk=128, workers=11,
         shared=((0, 0), (0, 256), (2, 0), (2, 128), (2, 64))),
)  # fmt: skip


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """See `plugins.checks`."""
    for step in QUICK if scale is Scale.QUICK else SMALL:
        yield case_of(step)
    random = torch.Generator().manual_seed(seed)
    count = 1024 if scale is Scale.FULL else 260  # more than the threads of the block
    past = torch.randint(0, 300, (count,), generator=random).tolist()
    new = torch.randint(0, 4, (count,), generator=random).tolist()
    leader = torch.randint(0, 5, (count,), generator=random).tolist()
    step = Step(
        "many",
        tuple(zip(past, new, strict=True)),
        workers=264,
        padding=1,
        chunk=128,
        shared=tuple((a, 300) for a in leader),
    )
    yield case_of(step)
    if scale is not Scale.QUICK:
        good = case_of(QUICK[0])
        for words, attributes in (
            ("chunk is 96", {"chunk": 96}),
            ("must be a multiple of kv_num_heads", {"kv_num_heads": 3}),
            ("these limits need", {"tokens": 5000}),
        ):
            yield Case(
                words,
                good.operator,
                good.tensors,
                good.expected,
                {**good.attributes, **attributes},
                error=words,
            )
