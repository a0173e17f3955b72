"""A hub on this machine: the parts of the Hugging Face hub's HTTP interface that a snapshot needs, over folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    """`revisions`: repository -> revision (branch or commit) -> (commit, folder). `asked` lists paths of requests.

    A repository in `gated` answers as the hub does to those who were not let in.
    """

    def __init__(self) -> None:
        self.revisions: dict[str, dict[str, tuple[str, Path]]] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.url = ""

    def add(self, repository: str, folder: Path, branch: str = "main") -> str:
        """Publishes a folder; gives its commit."""
        commit = hashlib.sha1(f"{repository} {branch} {folder}".encode()).hexdigest()
        self.revisions.setdefault(repository, {}).update({branch: (commit, folder), commit: (commit, folder)})
        return commit

    @property
    def downloaded(self) -> set[str]:
        """Names of the files that were fetched."""
        return {
            path.split("/", 5)[5] for path in self.asked if path.startswith("GET /") and "/resolve/" in path
        }


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of 127.0.0.1."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
            pass

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._api("/".join(parts[2:4]), parts[4], "/".join(parts[5:]), body)
            else:
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)

        def _api(self, repository: str, what: str, revision: str, body: bool) -> None:
            found = self._revision(repository, revision)
            if found is None:
                return
            commit, folder = found
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in files]
            if what == "tree":
                tree = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": commit}
                    for name, path in zip(names, files, strict=True)
                ]
                self._send(200, json.dumps(tree).encode(), body)
            else:
                info = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
                self._send(200, json.dumps(info).encode(), body)

        def _file(self, repository: str, revision: str, name: str, body: bool) -> None:
            found = self._revision(repository, revision)
            if found is None:
                return
            commit, folder = found
            data = (folder / name).read_bytes()
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
            self._send(200, data, body, headers)

        def _revision(self, repository: str, revision: str) -> tuple[str, Path] | None:
            if repository in hub.gated:
                self._send(403, b"{}", True, {"X-Error-Code": "GatedRepo"})
            elif repository not in hub.revisions:
                self._send(404, b"{}", True, {"X-Error-Code": "RepoNotFound"})
            elif revision not in hub.revisions[repository]:
                self._send(404, b"{}", True, {"X-Error-Code": "RevisionNotFound"})
            else:
                return hub.revisions[repository][revision]
            return None

        def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
