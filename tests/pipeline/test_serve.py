"""How a server is started: one that Triton's Python backend ended is started again, others are not."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import pytest

from pipeline.serve import ABORT, ServerFailed, server

FAKE = """#!{python}
import http.server, os, pathlib, sys

calls = pathlib.Path(__file__).with_suffix(".calls")
count = int(calls.read_text()) + 1 if calls.exists() else 1
calls.write_text(str(count))
if count == 1:
    print({words!r}, flush=True)
    os.abort()


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()


port = int(sys.argv[sys.argv.index("--http-port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""


def fake(folder: Path, words: str) -> Path:
    """A server that says `words` and aborts when it is started first, and is ready the second time."""
    path = folder / "tritonserver"
    path.write_text(FAKE.format(python=sys.executable, words=words))
    path.chmod(0o755)
    return path


def calls(executable: Path) -> int:
    return int(executable.with_suffix(".calls").read_text())


def test_a_start_that_the_python_backend_broke_is_tried_again(tmp_path: Path) -> None:
    executable = fake(tmp_path, f"terminate called after throwing an instance of '{ABORT}'")
    (tmp_path / "repository").mkdir()
    with server(tmp_path / "repository", tritonserver=executable) as running:
        with urllib.request.urlopen(f"{running.url}/v2/health/ready", timeout=5) as answer:
            assert answer.status == 200
        assert calls(executable) == 2


def test_other_ends_are_told(tmp_path: Path) -> None:
    executable = fake(tmp_path, "out of luck")
    (tmp_path / "repository").mkdir()
    with (
        pytest.raises(ServerFailed, match=r"(?s)ended with code -6 while starting.*out of luck"),
        server(tmp_path / "repository", tritonserver=executable),
    ):
        pass
    assert calls(executable) == 1
