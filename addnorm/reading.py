"""Files that others wrote, read through one door.

A file may be missing, a folder, somebody else's, cut short, in another encoding, nested without
end. Whatever keeps it from being read leaves here as a ``Mendable`` that names the file and what to
do, of the class ``kind`` that the caller promises to its own callers. A byte order mark is not part
of a text, and a line ends at a newline and nowhere else.
"""

import codecs
import errno
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, final

from addnorm.errors import Mendable, value_in_short

AGAIN = "copy or download it again"
DEEPEST = 100  # lists and objects inside each other; no file that means something comes near
POINTER = "version https://git-lfs"
"""What Git LFS leaves where a large file was not fetched begins so."""
REMEDIES = {
    errno.EACCES: "give yourself the right to read it, or copy it",
    errno.EPERM: "give yourself the right to read it, or copy it",
    errno.EIO: "copy it from elsewhere, and check the disk",
}
WORDS: Mapping[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}
"""What JSON holds, in words."""

FieldValue = TypeVar("FieldValue")


@final
class Unreadable(Mendable):
    """A file that is not there, may not be read, or is not what it should be."""


# --- paths ----------------------------------------------------------------------------------------


def place(word: str | os.PathLike[str], kind: type[Mendable] = Unreadable) -> Path:
    """Where a path points, with the home folder for a ``~``. Nothing need be there, but it can be
    asked whether something is; else a ``kind``."""
    try:
        path = Path(word).expanduser()
        path.exists()
    except (RuntimeError, OSError) as error:  # no such user; a name too long, a folder of others
        raise kind(f"{word} cannot be looked up: {error}") from None
    return path


@contextmanager
def system_errors(
    path: str | os.PathLike[str], kind: type[Mendable] = Unreadable, doing: str = "read"
) -> Iterator[None]:
    """Within it, what the system refuses to do with a path is a ``kind``."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise kind(f"cannot {doing} {where}: {_reason(where, error, doing)}") from None


def _reason(path: Any, error: OSError, doing: str) -> str:
    """Why the system refused, and what to do where that does not go without saying. ``doing`` is
    the verb of the message; there is advice for "read" alone."""
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return f"it is a link to {os.readlink(path)}, which is not there"
    if doing == "read" and os.path.isdir(path):
        return "it is a folder, and a file is expected"
    if isinstance(error, FileExistsError):
        return "there is a file of this name"
    why = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0) if doing == "read" else None
    return why if remedy is None else f"{why}: {remedy}"


# --- texts ----------------------------------------------------------------------------------------


def raw(file: Path, kind: type[Mendable] = Unreadable) -> bytes:
    """All bytes of a file."""
    with system_errors(file, kind):
        return file.read_bytes()


def text(file: Path, kind: type[Mendable] = Unreadable) -> str:
    """A file of UTF-8."""
    return Utf8Decoder(file, kind).decode(raw(file, kind), final=True)


def lines(file: Path, kind: type[Mendable] = Unreadable) -> list[str]:
    """The lines of a file of UTF-8, without their ends. Texts may hold the other characters that
    ``str.splitlines`` cuts at."""
    return split_lines(text(file, kind))


def split_lines(content: str) -> list[str]:
    """The lines of a text, without their ends, as of a file."""
    content = content.removesuffix("\n")
    return [line.removesuffix("\r") for line in content.split("\n")] if content else []


def check_no_pointer(file: Path, start: str, kind: type[Mendable] = Unreadable) -> None:
    """Raise where a file, which begins so, is what Git LFS leaves for one that was not fetched."""
    if start.startswith(POINTER):
        raise kind(f"{file} is only a pointer of Git LFS: run `git lfs pull` where it is from")


@final
class Utf8Decoder:
    """UTF-8 in pieces, without the byte order mark. What is not UTF-8 is a ``kind``, whose message
    says which byte of ``where`` it is, and ends with ``hint``, what to do."""

    def __init__(
        self,
        where: str | os.PathLike[str],
        kind: type[Mendable] = Unreadable,
        hint: str = "convert the file first",
    ) -> None:
        self._where, self._kind, self._hint = where, kind, hint
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes_read, self._has_begun = 0, False

    def decode(self, chunk: bytes, final: bool = False) -> str:
        """The characters that are complete with this chunk, the next one of the file; ``final``: no
        other follows, so half a character at the end is an error. A ``kind`` for what is not
        UTF-8."""
        before = self._bytes_read - len(self._decoder.getstate()[0])
        try:
            piece = self._decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            byte, hint = before + error.start, self._hint
            if byte == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                hint = "it looks like UTF-16: convert it first"
            raise self._kind(
                f"{self._where} is not UTF-8 (byte {byte} is 0x{error.object[error.start]:02x}): "
                f"{hint}"
            ) from None
        self._bytes_read += len(chunk)
        if piece and not self._has_begun:
            self._has_begun = True
            return piece.removeprefix("\ufeff")
        return piece


# --- JSON and TOML --------------------------------------------------------------------------------


def json_value(content: str, where: object, kind: type[Mendable] = Unreadable) -> Any:
    """What a JSON text says; a ``kind`` that names ``where`` it stood if it is none, or too
    deep."""
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, column {error.colno}"
        at = line if error.lineno > 1 else f"character {error.pos}"
        raise kind(
            f"{where} is not valid JSON: {error.msg} at {at} of {len(content)} characters"
        ) from None
    except ValueError:  # Python reads no integer of more than 4300 digits
        raise kind(f"{where} has a number of thousands of digits") from None
    except RecursionError:
        raise kind(_too_deep(where)) from None
    if _deeper(value, DEEPEST):
        raise kind(_too_deep(where))
    return value


def json_file(file: Path, kind: type[Mendable] = Unreadable) -> Any:
    """What a file of JSON says; a ``kind`` if it cannot be read, is empty, damaged or only a
    pointer."""
    content = text(file, kind)
    check_no_pointer(file, content, kind)
    if not content.strip():
        raise kind(f"{file} is empty: {AGAIN}")
    try:
        return json_value(content, file, kind)
    except kind as error:
        raise kind(f"{error}. It is damaged or cut short: {AGAIN}") from None


def json_object(file: Path, kind: type[Mendable] = Unreadable) -> dict[str, Any]:
    """The object in a file of JSON, which must hold one, else a ``kind``; ``field`` checks its
    fields."""
    value = json_file(file, kind)
    if not isinstance(value, dict):
        raise kind(f"{file} holds {in_words(value)}, expected a JSON object: {AGAIN}")
    return value


def field(
    values: Mapping[str, Any],
    key: str,
    value_type: type[FieldValue],
    where: object,
    kind: type[Mendable] = Unreadable,
) -> FieldValue:
    """The value of a key that must be there, and of ``value_type`` and no other, else a ``kind``;
    where that is ``float`` a whole number does, and stays an ``int``. ``where`` begins the
    message."""
    if key not in values:
        raise kind(f"{where}: {key!r} is missing")
    value = values[key]
    # bool is an int in Python, and no number in JSON
    fits = type(value) in (int, float) if value_type is float else type(value) is value_type
    if not fits:
        raise kind(f"{where}: {key!r} is {in_words(value)}, expected {WORDS[value_type]}")
    return value


def in_words(value: object) -> str:
    """What a value of JSON is, short enough for a message: ``a list``, ``the text 'x'``."""
    if isinstance(value, bool | NoneType):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | int | float):
        return f"the {'text' if isinstance(value, str) else 'number'} {value_in_short(value)}"
    return WORDS[type(value)]


def toml_file(file: Path, kind: type[Mendable] = Unreadable) -> dict[str, Any]:
    """What a file of TOML says; a ``kind`` if it cannot be read, or is none."""
    content = text(file, kind)
    try:
        value = tomllib.loads(content)
    except RecursionError:
        raise kind(_too_deep(file)) from None
    except ValueError as error:  # TOMLDecodeError; a number of thousands of digits
        raise kind(f"{file} is not TOML: {error}") from None
    if _deeper(value, DEEPEST):
        raise kind(_too_deep(file))
    return value


def _too_deep(where: object) -> str:
    return f"{where} has lists or objects more than {DEEPEST} deep inside each other"


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are more than ``most`` deep inside each other; told layer by layer,
    as a function that calls itself would end in a ``RecursionError``."""
    layer = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        inside = (v for one in layer for v in (one.values() if isinstance(one, dict) else one))
        layer = [v for v in inside if isinstance(v, dict | list)]
        if not layer:
            return False
    return True
