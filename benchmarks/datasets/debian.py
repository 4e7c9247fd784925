"""Packages of Debian by a list of names, versions and checksums."""

import hashlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A line of the list."""

    name: str
    version: str
    sha256: str


def read_list(file: Path) -> list[Package]:
    """name, version, SHA-256 in each line."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [Package(*line.split()) for line in lines if line and not line.startswith("#")]


def deb(package: Package, folder: Path, source: Path) -> Path:
    """The package's file, from the folder or by apt-get, with the checksum of the list, which is in
    the file ``source``."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.name}_{package.version.replace(':', '%3a')}_*.deb"
    if not any(folder.glob(pattern)):
        command = ["apt-get", "download", f"{package.name}={package.version}"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(
                f"apt-get has no {package.name} {package.version}: {result.stderr.strip()}\n"
                f"After `apt-get update`, write the version that `apt-cache show {package.name}` "
                f"names, and its SHA256, into {source.name}"
            )
    file = next(iter(folder.glob(pattern)))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != package.sha256:
        sys.exit(f"{file} has the SHA-256 {digest}, and {source.name} has {package.sha256}")
    return file


def contents(file: Path, name: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file in a .deb whose whole name is as wanted, such as
    ./usr/share/doc/git/copyright; nothing is installed."""
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            if member.isfile() and name.fullmatch(member.name):
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()
    if process.returncode:
        sys.exit(f"dpkg-deb cannot read {file}")
