"""Rules that hold for every file of the project."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP = {".cpp", ".h", ".hpp", ".cu", ".cuh"}
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".jinja", ".lock", ".txt", "", *CPP}
CORPORA = {"demo/heldout.txt", "demo/calibration.txt"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/[\w.]|[A-Z]:\\Users")
"""Folders of one machine; /usr, /tmp and the like are the same everywhere."""


def tracked() -> list[Path]:
    """Every file that git keeps."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_place_on_one_machine() -> None:
    found = []
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix not in TEXT or name in CORPORA:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert found == []


def test_the_search_for_machine_paths_finds_them() -> None:
    for text in ("/home" + "/me/x", 'open("/work' + '/a")', "see /root" + "/.cache", "C:" + "\\Users\\me"):
        assert MACHINE_PATH.search(text), text
    for text in ("weights/work/a", "https://x.org/home/y", "/usr/include", "/tmp/x", "./work/x"):
        assert not MACHINE_PATH.search(text), text


def test_every_module_says_what_it_is() -> None:
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if path.suffix == ".py"
        and path.read_text(encoding="utf-8").strip()
        and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert silent == []


def test_nothing_is_left_to_do_in_the_code() -> None:
    marks = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    found = [
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if path.suffix in {".py", *CPP} and marks.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
