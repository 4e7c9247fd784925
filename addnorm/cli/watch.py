"""``addnorm lint --watch``: the same command again whenever a file changes."""

import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from addnorm import reading
from addnorm.cli.refusal import Refusal
from addnorm.words import plural

INTERVAL = 0.3  # seconds between two looks
MOST_FILES = 5000
CLEAR = "\x1b[2J\x1b[H"
FOREIGN = {"site-packages", "node_modules", "__pycache__"}

Versions = dict[Path, tuple[int, int]]
"""File -> when it was changed, and its size."""


def watch(
    targets: Sequence[str],
    command: Sequence[str] = (),
    rounds: int | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Run the command line again, in a new process, whenever a file of Python in the folders of the
    targets changes, until it is interrupted; the status of the last run.

    ``command``: what is run; () is this command without --watch. ``rounds``: after how many runs to
    stop, None being never.
    """
    folders = [_folder(target) for target in targets]
    words = command or [
        sys.executable,
        "-m",
        "addnorm",
        *(w for w in sys.argv[1:] if w != "--watch"),
    ]
    at_terminal = sys.stdout.isatty()
    status, count = 0, 0
    try:
        while True:
            before = _versions(folders)
            print(CLEAR if at_terminal else "", end="", flush=True)
            status = subprocess.run([*words], check=False).returncode
            count += 1
            if count == rounds:
                return status
            now = datetime.datetime.now().strftime("%H:%M:%S")
            print(f"\n{now}  watching {plural(len(before), 'file')}; Ctrl-C ends", flush=True)
            while _versions(folders) == before:
                pause(INTERVAL)
    except KeyboardInterrupt:
        print()
        return status


def _folder(target: str) -> Path:
    """Where the code of a target is; a ``Refusal`` for one that is no code."""
    place = target if target.endswith(".py") else target.rpartition(":")[0]
    file = reading.place(place or target)
    if place.endswith(".py"):
        if not file.is_file():
            raise Refusal(f"there is no file {file}")
        return file.resolve().parent
    if not place or "/" in place or file.is_dir():
        raise Refusal(f"--watch is for code, path.py:NAME or module:NAME, and {target} is none")
    return Path.cwd()


def _versions(folders: Sequence[Path]) -> Versions:
    """Those of all files of Python in some folders, hidden and installed ones left out."""
    versions: Versions = {}
    for folder in folders:
        for file in _sources(folder):
            try:
                status = file.stat()
            except OSError:  # it went in between
                continue
            versions[file] = status.st_mtime_ns, status.st_size
            if len(versions) == MOST_FILES:
                return versions
    return versions


def _sources(folder: Path) -> Iterator[Path]:
    """The files of Python in a folder and below it."""
    for place, names, files in os.walk(folder):
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in FOREIGN)
        names[:] = [n for n in names if not (Path(place) / n / "pyvenv.cfg").exists()]
        yield from (Path(place) / name for name in sorted(files) if name.endswith(".py"))
