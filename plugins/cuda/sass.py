"""The machine code of a built library: how often each kernel uses each instruction."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from model_repo.runtime.errors import BadInput, SlipwayError

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def find_disassembler() -> Path:
    """cuobjdump of the PATH or of pip's nvidia-cuda-cuobjdump, with nvdisasm beside it or on the PATH.

    Raises BadInput when either is not there.
    """
    spec = importlib.util.find_spec("nvidia")
    folders = [
        Path(place) / "cu13" / "bin" for place in (spec.submodule_search_locations if spec else None) or ()
    ]
    search = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    program = shutil.which("cuobjdump", path=search)
    if program is None or shutil.which("nvdisasm", path=search) is None:
        raise BadInput(
            "no disassembler for CUDA: cuobjdump and nvdisasm are not on the PATH and not in Python's packages; "
            "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    return Path(program)


def instructions(file: Path, architecture: str) -> dict[str, Counter[str]]:
    """Instructions of each kernel (mangled name) in a library or object file, counted by opcode without suffixes.

    architecture: such as "sm_90a". A kernel's device functions that were not inlined count as functions of their own.
    Raises SlipwayError with cuobjdump's words when it cannot read the file.
    """
    program = find_disassembler()
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [str(program), "--dump-sass", "--gpu-architecture", architecture, str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        found: dict[str, Counter[str]] = {}
        current: Counter[str] | None = None
        for line in process.stdout:
            if match := _FUNCTION.match(line):
                current = found.setdefault(match[1], Counter())
            elif current is not None and (match := _INSTRUCTION.match(line)):
                current[match[1].split(".")[0]] += 1
        words = process.stderr.read()
    if process.returncode != 0:
        raise SlipwayError(f"{program.name} cannot read {file} for {architecture}: {words.strip()}")
    return found
