"""What addnorm writes is whole or not there, and what it reads back is what it wrote.

A file or folder is made beside its place, comes down to the disk, and is then renamed: whoever
reads never meets half of it, nor does anybody after a crash. ``reading`` is the door for files of
others; this one is for our own, so it stands on the ground floor too: data sets and tokenizers are
written left of the models, runs right of them.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# --- writing --------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Within it the caller writes the file that is yielded; at the end it gets the name ``path``,
    replacing what was there. After an exception it is deleted, and ``path`` is as it was.

    The folder must exist. The name until then is the file's own with a dot before it, the same each
    time: what a crash leaves behind is written over by the next try. Two that write the same file
    must take turns.
    """
    work = path.with_name(f".{path.name}")
    try:
        yield work
        sync(work)
        work.replace(path)
    except BaseException:
        with suppress(OSError):
            work.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """A file of this text in UTF-8, whole or as it was."""
    with whole_file(path) as work:
        work.write_text(text, encoding="utf-8")


def hidden_beside(path: Path) -> Path:
    """A name that nobody has, beside a path, so on the same disk: a rename goes no further."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, whose parents are made; it is gone afterwards with all that is
    still in it, unless ``show`` has given it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = hidden_beside(path)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def show(work: Path, path: Path) -> None:
    """Give the finished folder ``work``, of files only, the name ``path`` on the same disk; an
    ``OSError`` if there is a file or a folder with something in it."""
    for file in sorted(work.iterdir()):
        sync(file)
    sync(work)
    work.rename(path)
    sync(path.parent)


def publish(*files: Path, to: Path) -> None:
    """Give finished files their places in the folder ``to``, which exists and is on the same disk,
    in this order, each replacing what was there: the last one is there only if all are."""
    for file in files:
        sync(file)
    for file in files:
        file.replace(to / file.name)
    sync(to)


def sync(path: Path) -> None:
    """Bring a file or folder that is there down to the disk: a rename must not overtake what it
    renames."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


# --- checking -------------------------------------------------------------------------------------


def digest(file: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def wrong_size(file: Path, size: int) -> str | None:
    """What is wrong with a file of which ``size`` bytes were written, for a message after its name;
    None: nothing by its size."""
    if not file.is_file():
        return "is not a file" if file.exists() else "is missing"
    actual = file.stat().st_size
    if actual == size:
        return None
    kind = "truncated" if actual < size else "too long"
    return f"is {kind}: {actual:,} bytes, and {size:,} were written"


def difference(file: Path, size: int, sha256: str) -> str | None:
    """What is wrong with a file of this size and checksum, for a message after its name; None: it
    is what was written, to the bit."""
    wrong = wrong_size(file, size)
    if wrong is None and digest(file) != sha256:
        wrong = "is not what was written: a bit has flipped, or it was changed"
    return wrong
