"""The way out of the loop: order, whole answers, collected tokens, and that one broken client harms nobody."""

from __future__ import annotations

import threading

from model_repo.backends.outbox import Outbox, Pending, Stream
from model_repo.runtime.output import FinishReason, Output

UNBOUNDED = 1e9


def output(text: str, finish_reason: FinishReason | None = None) -> Output:
    return Output("r", text, (1,), finish_reason, prompt_tokens=3, completion_tokens=1)


class Client:
    """Takes responses; can be made to wait."""

    def __init__(self) -> None:
        self.pieces: list[Pending] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def send(self, pending: Pending) -> None:
        self.entered.set()
        assert self.free.wait(10)
        self.pieces.append(pending)

    @property
    def texts(self) -> list[str]:
        return ["".join(piece.texts) for piece in self.pieces]


def fail(error: Exception) -> None:
    raise AssertionError(error)


def test_pieces_come_in_order_and_count_from_one() -> None:
    outbox, client = Outbox(fail, UNBOUNDED), Client()
    stream = Stream(outbox, client.send, whole=False)
    for number in range(100):
        stream.put(output(f"{number} "))
    stream.put(output("end", "stop"))
    outbox.close()
    assert "".join(client.texts) == "".join(f"{number} " for number in range(100)) + "end"
    assert [piece.ordinal for piece in client.pieces] == list(range(1, len(client.pieces) + 1))
    assert sum(piece.num_tokens for piece in client.pieces) == 101
    assert [piece.finish_reason for piece in client.pieces][-1] == "stop"


def test_tokens_collect_while_the_way_out_is_slow() -> None:
    outbox, slow = Outbox(fail, UNBOUNDED), Client()
    slow.free.clear()
    stream = Stream(outbox, slow.send, whole=False)
    stream.put(output("a"))
    assert slow.entered.wait(10)
    for text in "bcde":
        stream.put(output(text))  # returns at once, although the client takes nothing
    slow.free.set()
    outbox.close()
    assert slow.texts == ["a", "bcde"]


def test_whole_answers_come_once() -> None:
    outbox, client = Outbox(fail, UNBOUNDED), Client()
    stream = Stream(outbox, client.send, whole=True)
    stream.put(output("a"))
    stream.put(output("b"))
    stream.put(output("c", "length"))
    outbox.close()
    assert client.texts == ["abc"]
    assert client.pieces[0].num_tokens == 3


def test_tokens_without_text_wait_for_text() -> None:
    outbox, client = Outbox(fail, UNBOUNDED), Client()
    stream = Stream(outbox, client.send, whole=False)
    stream.put(output(""))
    stream.put(output("é"))
    outbox.close()
    assert client.texts == ["é"]
    assert client.pieces[0].num_tokens == 2


def test_rate_is_shared_but_first_and_last_never_wait() -> None:
    now = 100.0
    outbox = Outbox(fail, rate=10.0, clock=lambda: now)
    clients = [Client(), Client()]
    streams = [Stream(outbox, client.send, whole=False) for client in clients]
    for client, stream in zip(clients, streams, strict=True):
        stream.put(output("a"))
        assert client.entered.wait(10)
    streams[0].put(output("b"))
    now += 0.19  # two streams share ten responses a second: 0.2 s apart
    streams[0].put(output("c"))
    now += 0.02
    streams[0].put(output("d"))
    streams[1].put(output("z", "stop"))
    outbox.close()
    assert clients[0].texts == ["a", "bcd"]
    assert clients[1].texts[-1].endswith("z")


def test_a_broken_client_is_told_and_the_others_go_on() -> None:
    told: list[Exception] = []
    outbox, client = Outbox(told.append, UNBOUNDED), Client()

    def broken(pending: Pending) -> None:
        raise OSError("gone")

    Stream(outbox, broken, whole=False).put(output("a"))
    Stream(outbox, client.send, whole=False).put(output("b", "stop"))
    outbox.close()
    assert [str(error) for error in told] == ["gone"]
    assert client.texts == ["b"]
