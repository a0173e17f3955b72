"""Running a real tritonserver on an emitted repository: for the demo, `slipway serve`, tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model_repo.runtime.errors import BadInput, SlipwayError

from .supervise import STOP_WITH_PARENT

OWN_TRITONSERVER = Path(__file__).resolve().parent.parent / ".venv-serve" / "bin" / "tritonserver"
HOST = "127.0.0.1"
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 30
START_ATTEMPTS = 3
ABORT = "boost::interprocess::lock_exception"
"""Triton's Python backend sometimes ends the whole server with this, rarely while it starts the processes of many
models (github.com/triton-inference-server/server/issues/8882)."""


class ServerFailed(SlipwayError):
    """tritonserver did not start or did not stay up; the message holds the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running tritonserver. URLs are without a trailing slash; `grpc` is what tritonclient.grpc takes."""

    process: subprocess.Popen[bytes]
    log: Path
    http: str
    grpc: str
    metrics_port: int

    @property
    def url(self) -> str:
        """Base of the HTTP interface."""
        return f"http://{self.http}"

    @property
    def metrics_url(self) -> str:
        """Where the metrics are, in Prometheus' text format."""
        return f"http://{HOST}:{self.metrics_port}/metrics"

    def metrics(self) -> str:
        """The metrics now. Raises OSError when the server is gone."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:
            return str(answer.read().decode())

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None


def find_tritonserver() -> Path:
    """The `tritonserver` of the serving environment, or the one on PATH. Raises BadInput when there is none."""
    if OWN_TRITONSERVER.is_file():
        return OWN_TRITONSERVER
    found = shutil.which("tritonserver")
    if found is None:
        raise BadInput(
            f"no tritonserver: neither {OWN_TRITONSERVER} nor one on PATH; run `make environments`"
        )
    return Path(found)


@contextmanager
def server(
    repository: Path,
    *,
    log: Path | None = None,
    tritonserver: Path | None = None,
    ports: tuple[int, int, int] | None = None,
    startup_seconds: float = 300.0,
    drain_seconds: int = 30,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """tritonserver on `repository`, ready for requests; ended by SIGTERM when the block ends.

    `ports` are HTTP, gRPC and metrics; by default free ones. What the server prints goes to `log`, by default
    tritonserver.log beside the repository. At the end requests that run have `drain_seconds` to finish.
    Raises BadInput when there is no repository or no tritonserver, ServerFailed when it does not come up.
    """
    if not repository.is_dir():
        raise BadInput(f"no model repository at {repository}; `slipway emit` writes one")
    log = log or repository.with_name("tritonserver.log")
    executable = tritonserver or find_tritonserver()
    command = [str(executable), "--model-repository", str(repository.resolve())]
    if executable == OWN_TRITONSERVER:
        command.append(STOP_WITH_PARENT)  # no server stays behind when this process is killed
    # One model after another: side by side they take as long (each start is a process), and run into ABORT.
    command += ["--model-load-thread-count", "1", "--exit-timeout-secs", str(drain_seconds), *options]
    running = _start(command, log, ports, startup_seconds)
    try:
        yield running
    finally:
        stop(running, 2 * drain_seconds + 30.0)


def stop(running: Server, seconds: float) -> None:
    """SIGTERM, then waits until the server has drained. Raises ServerFailed when it had to be killed."""
    if not running.alive():
        return
    running.process.send_signal(signal.SIGTERM)
    try:
        running.process.wait(seconds)
    except subprocess.TimeoutExpired:
        running.process.kill()
        running.process.wait()
        raise ServerFailed(
            f"tritonserver did not end within {seconds:g} s of SIGTERM{tail(running.log)}"
        ) from None


def tail(log: Path) -> str:
    """The last lines of a server's log, as the end of a message."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return f"; its log, {log}, ends:\n" + "\n".join(lines[-LOG_TAIL_LINES:])


def _start(
    command: list[str], log: Path, ports: tuple[int, int, int] | None, startup_seconds: float
) -> Server:
    """Starts the server and waits until it is ready; again when another process took a port meanwhile, and on ABORT."""
    for attempt in range(START_ATTEMPTS):
        http, grpc, metrics = ports or _free_ports()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *command,
                    *("--http-address", HOST, "--http-port", str(http)),
                    *("--grpc-address", HOST, "--grpc-port", str(grpc)),
                    *("--metrics-address", HOST, "--metrics-port", str(metrics)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; the server gets a SIGTERM from us
            )
        running = Server(process, log, f"{HOST}:{http}", f"{HOST}:{grpc}", metrics)
        try:
            _wait_until_ready(running, startup_seconds)
        except ServerFailed:
            taken = "Socket '" in tail(log) and "already in use" in tail(log) and ports is None
            if not (taken or ABORT in tail(log)) or attempt == START_ATTEMPTS - 1:
                raise
        except BaseException:
            stop(running, 30.0)
            raise
        else:
            return running
    raise AssertionError("unreachable: the last attempt returns or raises")


def _wait_until_ready(running: Server, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not running.alive():
            code = running.process.returncode
            raise ServerFailed(f"tritonserver ended with code {code} while starting{_reasons(running.log)}")
        try:
            with urllib.request.urlopen(f"{running.url}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    stop(running, 30.0)
    raise ServerFailed(f"tritonserver was not ready within {seconds:g} s{tail(running.log)}")


def _reasons(log: Path) -> str:
    """The log lines that say why models were not loaded, or its end when none does."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    reasons = [
        line.split("\\n\\nAt:")[0] for line in lines if line.startswith("E") and "failed to load" in line
    ]
    return f"; {log} says:\n" + "\n".join(reasons[-LOG_TAIL_LINES:]) if reasons else tail(log)


def free_or(preferred: tuple[int, int, int]) -> tuple[int, int, int]:
    """`preferred`, unless one of them is taken: then three free ports."""
    try:
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            for each, port in zip((first, second, third), preferred, strict=True):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                each.bind((HOST, port))
    except OSError:
        return _free_ports()
    return preferred


def _free_ports() -> tuple[int, int, int]:
    """Three ports of this machine that nothing listens on now."""
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        for each in (first, second, third):
            each.bind((HOST, 0))
        numbers = [each.getsockname()[1] for each in (first, second, third)]
    return numbers[0], numbers[1], numbers[2]


def interrupt_on_sigterm() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does: through the `finally` blocks that stop servers."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if os.name == "posix":
        signal.signal(signal.SIGTERM, interrupt)
