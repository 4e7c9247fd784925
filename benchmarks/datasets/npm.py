"""Packages of npm, by name, version and checksum."""

import base64
import hashlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path


def archive(package: str, sha512: str, folder: Path) -> Path:
    """The file of a package, such as name@1.0, from the folder or by npm, with the checksum that
    npm's lock files have, in base 64."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{package.replace('@', '-')}.tgz"
    if not file.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
    digest = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if digest != sha512:
        sys.exit(f"{file} has the SHA-512 {digest}, expected {sha512}")
    return file


def contents(file: Path, name: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file in it whose whole name is as wanted, such as
    package/index.js."""
    with tarfile.open(file, mode="r|gz") as tar:
        for member in tar:
            if member.isfile() and name.fullmatch(member.name):
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()
