"""The README's examples, run as they are printed, on the ports of this test's server."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from pipeline.serve import Server

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(code: str, folder: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_build_snippet_builds(tmp_path: Path) -> None:
    (code,) = [block for block in python_blocks() if "from pipeline import" in block]
    printed = Path(tmp_path, run(code, tmp_path).strip().splitlines()[-1])
    assert (printed / "demo" / "config.pbtxt").is_file()


def test_the_streaming_snippet_streams(idle: Server, tmp_path: Path) -> None:
    (code,) = [block for block in python_blocks() if "tritonclient" in block]
    assert "127.0.0.1:8001" in code
    text = run(code.replace("127.0.0.1:8001", idle.grpc), tmp_path)
    assert len(text.split()) > 10


def test_the_curl_line_answers(idle: Server) -> None:
    (line,) = re.findall(r"`(curl -s 127\.0\.0\.1:8000/v2.*?)`", README)
    command = shlex.split(line.replace("127.0.0.1:8000", idle.http))
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert answer["text_output"].startswith("The old man")
    assert len(answer["text_output"]) > len("The old man") + 20
