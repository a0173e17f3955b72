"""The lock: one build at a time, and the one that waits says for whom."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from pipeline.lock import NAME, locked

HOLD = """
import sys
from pathlib import Path
from pipeline.lock import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_second_waits_and_names_the_first(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said: list[str] = []
    told, inside = threading.Event(), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    def second() -> None:
        with locked(tmp_path, say):
            inside.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert told.wait(60)
    assert f"process {holder.pid} " in said[0]
    assert not inside.is_set()
    holder.stdin.write("\n")
    holder.stdin.close()
    assert inside.wait(60)
    thread.join()
    assert holder.wait() == 0
    assert not (tmp_path / NAME).exists()


def test_a_killed_holder_does_not_hold(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    assert (tmp_path / NAME).exists()
    said: list[str] = []
    with locked(tmp_path, said.append):
        assert str(os.getpid()) in (tmp_path / NAME).read_text()
    assert said == []


def test_a_lock_whose_folder_was_removed_is_taken_anew(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "model"
    with locked(folder, print):
        (folder / NAME).unlink()
        folder.rmdir()
        with locked(folder, print):  # a lock of its own: the outer one's file is gone
            assert (folder / NAME).exists()
