"""A client that goes away in the middle frees what it had."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

from pipeline.client import stream
from pipeline.serve import Server
from tests.e2e.conftest import metric, until

LONG = {"text_input": "The old man", "max_tokens": 1000, "temperature": 0.0, "ignore_eos": True}

ATTEMPTS = 20
"""A fast machine may be through with a whole stream before its client, on a busy one, has left."""


def cancelled(running: Server) -> float:
    return metric(running, "slipway_requests_total", model="demo", finish_reason="cancelled")


def blocks(running: Server) -> float:
    return metric(running, "slipway_kv_blocks_used", model="demo")


def leave_until_seen(running: Server, start_and_leave: Callable[[], None]) -> None:
    """Clients start a stream and leave, one after the other, until one was cancelled for it; blocks are free."""
    before = cancelled(running)
    for _ in range(ATTEMPTS):
        start_and_leave()
        until(lambda: metric(running, "slipway_running", model="demo") == 0, "the stream has ended")
        if cancelled(running) > before:
            break
    until(lambda: cancelled(running) > before, "a client that left is counted as cancelled")
    until(lambda: blocks(running) == 0, "its blocks are free")


def test_grpc_stream_that_is_cancelled(idle: Server) -> None:
    def start_and_leave() -> None:
        chunks = stream(idle.grpc, "demo", **LONG)
        next(chunks)
        chunks.close()

    leave_until_seen(idle, start_and_leave)


def test_http_stream_whose_socket_closes(idle: Server) -> None:
    host, port = idle.http.split(":")
    body = json.dumps({**LONG, "stream": True}).encode()

    def start_and_leave() -> None:
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(
                b"POST /v2/models/demo/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
            )
            assert b"200 OK" in connection.recv(4096)

    leave_until_seen(idle, start_and_leave)


def test_others_stream_on(idle: Server) -> None:
    whole = "".join(chunk.text for chunk in stream(idle.grpc, "demo", **LONG))
    staying, leaving = (
        stream(idle.grpc, "demo", **LONG),
        stream(idle.grpc, "demo", **LONG | {"text_input": "She"}),
    )
    beginning = next(staying).text
    next(leaving)
    leaving.close()
    assert beginning + "".join(chunk.text for chunk in staying) == whole
