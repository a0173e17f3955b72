"""The CUDA compiler: where it is found, and the architectures that it is asked for."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from model_repo.runtime.errors import BadInput
from plugins.toolchain import run_command

STANDARD_PLACE = Path("/usr/local/cuda")
OLDEST_RELEASE = (12, 8)
"""The first that knows sm_100a and sm_120a."""

DEFAULT_ARCHITECTURES = "80,86,89,90a,100a,120a,100+ptx"
"""Machine code for the chips that there are. The PTX of compute_100 is what drivers compile for all others from
10.0 on (10.3, 11.0, 12.1 and later), since "a" code runs on its own chip alone; 8.0 code also runs on 8.7."""

_RELEASE = re.compile(r"release (\d+)\.(\d+), V([\d.]+)")
_ARCHITECTURE = re.compile(r"(?:sm_)?(\d{2,3}[af]?)(\+ptx)?")


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler: its program, its version ("13.0.88"), and what its host compiler says of itself."""

    program: Path
    version: str
    host_compiler: str


@dataclass(frozen=True, order=True)
class Architecture:
    """What a library holds code for: machine code of one chip ("90a"), or PTX for later ones."""

    number: str
    ptx: bool = False

    @property
    def name(self) -> str:
        """As the library and the reports call it: sm_90a, or compute_100 for PTX."""
        return f"compute_{self.number}" if self.ptx else f"sm_{self.number}"

    @property
    def flags(self) -> tuple[str, str]:
        """Options of nvcc."""
        return ("-gencode", f"arch=compute_{self.number},code={self.name}")


def find_nvcc() -> Nvcc:
    """nvcc of the PATH, of CUDA_HOME or of /usr/local/cuda. Raises BadInput when there is none that is new enough."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(home)] if home else []
    places.append(STANDARD_PLACE)
    on_path = shutil.which("nvcc")
    candidates = [Path(on_path)] if on_path else [place / "bin" / "nvcc" for place in places]
    program = next((path for path in candidates if os.access(path, os.X_OK)), None)
    wanted = f"CUDA {OLDEST_RELEASE[0]}.{OLDEST_RELEASE[1]} or newer"
    if program is None:
        raise BadInput(
            f"no CUDA compiler: nvcc is not on the PATH, CUDA_HOME is {home or 'not set'}, and "
            f"{STANDARD_PLACE / 'bin' / 'nvcc'} is not there. The CUDA kernels are compiled once, without "
            f"a GPU. Install the toolkit of {wanted} (Debian, Ubuntu: cuda-nvcc-13-0 and cuda-cudart-dev-13-0 "
            "from NVIDIA's repository), or set CUDA_HOME to its folder"
        )
    words = run_command([str(program), "--version"])
    release = _RELEASE.search(words)
    if release is None:
        raise BadInput(f"{program} --version does not say which release of CUDA it is: {words.strip()!r}")
    if (int(release[1]), int(release[2])) < OLDEST_RELEASE:
        raise BadInput(f"{program} is of CUDA {release[1]}.{release[2]}; the kernels need {wanted}")
    host = os.environ.get("NVCC_CCBIN") or "g++"
    if shutil.which(host) is None:
        raise BadInput(
            f"nvcc needs a host compiler, and {host} is not on the PATH: install g++, or set NVCC_CCBIN"
        )
    return Nvcc(program, release[3], run_command([host, "--version"]).splitlines()[0])


def parse_architectures(text: str) -> tuple[Architecture, ...]:
    """ "90a,120a" or "sm_89,100+ptx": each machine code, or PTX where +ptx is said.

    Without doubles, in a fixed order. Raises BadInput for anything else.
    """
    found = set()
    for name in map(str.strip, text.split(",")):
        match = _ARCHITECTURE.fullmatch(name)
        if match is None:
            raise BadInput(
                f"{name!r} is no architecture; give numbers as nvcc writes them, such as 90a or 120a, separated by "
                f"commas; +ptx after one means PTX. The default is {DEFAULT_ARCHITECTURES}"
            )
        found.add(Architecture(match[1], bool(match[2])))
    return tuple(sorted(found, key=lambda a: (int(a.number.rstrip("af")), a.number, a.ptx)))


def machine_architecture(major: int, minor: int) -> Architecture:
    """The code that a chip of this compute capability runs best: with its own instructions from 9.0 on."""
    number = 10 * major + minor
    return Architecture(f"{number}a" if number >= 90 else str(number))
