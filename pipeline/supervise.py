"""Runs tritonserver and lets it finish what it has begun before it stops.

On SIGTERM tritonserver at once refuses every request, also the ones that an ensemble makes for its own steps: streams
that run through an ensemble would break off, and their clients wait for nothing. So this process takes SIGTERM (and
Ctrl-C) in its stead, waits until no stream is in flight, and only then passes it on; a second one is passed on at
once. Waiting ends after --exit-timeout-secs. Requests that come meanwhile are served: whoever spreads the load should
stop sending first.

    python supervise.py TRITONSERVER [--stop-with-parent] [tritonserver's options]

With --stop-with-parent the death of the process that started this one counts as SIGTERM.

Standard library only; runs in the serving environment, which has nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

POLL_SECONDS = 0.1
IDLE_POLLS = 3
DEFAULT_EXIT_TIMEOUT_SECONDS = 30
DEFAULT_METRICS_PORT = 8002
IN_FLIGHT = re.compile(r"^slipway_in_flight\{.*\} (\S+)$", re.MULTILINE)
STOP_WITH_PARENT = "--stop-with-parent"
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
_PR_SET_PDEATHSIG = 1


def option(arguments: Sequence[str], name: str, default: str) -> str:
    """The last value of --name in tritonserver's arguments, given as '--name value' or '--name=value'."""
    found = default
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == f"--{name}":
            found = following
        elif argument.startswith(f"--{name}="):
            found = argument.partition("=")[2]
    return found


def in_flight(arguments: Sequence[str]) -> int:
    """Requests that the server has not answered in full; 0 when it does not answer itself."""
    host = option(arguments, "metrics-address", "127.0.0.1")
    port = option(arguments, "metrics-port", str(DEFAULT_METRICS_PORT))
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(sum(float(value) for value in IN_FLIGHT.findall(answer.read().decode())))
    except (urllib.error.URLError, OSError):
        return 0


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts the server in a session of its own, so that Ctrl-C reaches this process alone."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # no server stays behind if this process is killed

    return subprocess.Popen(arguments, start_new_session=True, preexec_fn=prepare)


def drain(server: subprocess.Popen[bytes], arguments: Sequence[str]) -> None:
    """Returns when nothing is in flight, the time is up, another signal came or the server ended."""
    deadline = time.monotonic() + float(
        option(arguments, "exit-timeout-secs", str(DEFAULT_EXIT_TIMEOUT_SECONDS))
    )
    idle_polls = 0
    while idle_polls < IDLE_POLLS and time.monotonic() < deadline:
        idle_polls = 0 if in_flight(arguments) else idle_polls + 1
        if signal.sigtimedwait(SIGNALS, POLL_SECONDS) is not None or server.poll() is not None:
            return


def main() -> int:
    """The server's exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != STOP_WITH_PARENT]
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if STOP_WITH_PARENT in sys.argv:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    server = start(arguments)
    while server.poll() is None:
        if signal.sigwait(SIGNALS) == signal.SIGCHLD:
            continue
        drain(server, arguments[1:])
        if server.poll() is None:
            os.kill(server.pid, signal.SIGTERM)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


if __name__ == "__main__":
    sys.exit(main())
