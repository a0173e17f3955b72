"""A client that goes away in the middle frees what it had."""

from __future__ import annotations

import contextlib
import json
import socket

from pipeline.client import stream
from pipeline.serve import Server
from tests.e2e.conftest import metric, until

LONG = {"text_input": "The old man", "max_tokens": 1000, "temperature": 0.0, "ignore_eos": True}

COMPANY = 12
"""Streams that leave together. One alone may be through, on a fast machine, before anybody sees it leave."""


def cancelled(running: Server) -> float:
    return metric(running, "slipway_requests_total", model="demo", finish_reason="cancelled")


def blocks(running: Server) -> float:
    return metric(running, "slipway_kv_blocks_used", model="demo")


def test_grpc_streams_that_are_cancelled(idle: Server) -> None:
    before = cancelled(idle)
    streams = [stream(idle.grpc, "demo", **LONG) for _ in range(COMPANY)]
    for chunks in streams:
        next(chunks)
    until(lambda: blocks(idle) > 0, "the streams hold blocks")
    for chunks in streams:
        chunks.close()
    until(lambda: blocks(idle) == 0, "their blocks are free")
    until(lambda: cancelled(idle) == before + COMPANY, "they count as cancelled")


def test_http_streams_whose_sockets_close(idle: Server) -> None:
    before = cancelled(idle)
    host, port = idle.http.split(":")
    body = json.dumps({**LONG, "stream": True}).encode()
    with contextlib.ExitStack() as open_connections:
        connections = [
            open_connections.enter_context(socket.create_connection((host, int(port)), timeout=30))
            for _ in range(COMPANY)
        ]
        for connection in connections:
            connection.sendall(
                b"POST /v2/models/demo/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
            )
        for connection in connections:
            assert b"200 OK" in connection.recv(4096)
        until(lambda: blocks(idle) > 0, "the streams hold blocks")
    until(lambda: blocks(idle) == 0, "their blocks are free")
    until(lambda: cancelled(idle) == before + COMPANY, "they count as cancelled")


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
