"""Packages of PyPI, by name, version and checksum."""

import subprocess
import sys
from pathlib import Path


def downloaded(package: str, sha256: str, folder: Path) -> Path:
    """The file of a package, such as name==1.0, put into a folder that has no other; pip checks
    it."""
    wish = folder / "wish.txt"
    wish.write_text(f"{package} --hash=sha256:{sha256}\n")
    words = ["download", "-q", "--no-deps", "--require-hashes", "-d", str(folder), "-r", str(wish)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    wish.unlink()
    (file,) = folder.iterdir()
    return file
