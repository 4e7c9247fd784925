"""Packages of Debian, made for a test."""

import subprocess
from pathlib import Path


def package(folder: Path, files: dict[str, bytes]) -> Path:
    """A .deb that has these files."""
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    )
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    command = ["dpkg-deb", "--root-owner-group", "-b", root, folder / "x.deb"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "x.deb"
