"""What a tokenizer is learned from: texts and files, read piece by piece."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from addnorm import reading
from addnorm.data.cuts import LEARNING_LIMIT, last_cut
from addnorm.data.tokenizer.kind import ENDOFTEXT, TokenizerError, check_text

CHUNK = 1 << 20  # bytes of a file read at a time


def read_texts(sources: Iterable[str | Path]) -> Iterator[str]:
    """All text, one source after the other, in pieces of about CHUNK, cut where it does no harm."""
    for source in sources:
        rest = ""
        for chunk in _chunks(source):
            rest += chunk
            end = last_cut(rest) or (len(rest) if len(rest) > LEARNING_LIMIT else 0)
            if end:
                yield rest[:end]
                rest = rest[end:]
        if rest:
            yield rest


def _chunks(source: str | Path) -> Iterator[str]:
    """The text of one source, cut anywhere. A str that is the path of a file is refused: it would
    silently be learned from as a text."""
    if isinstance(source, Path):
        yield from _read_file(source)
        return
    check_text(source)
    # 255 bytes is the longest name that there is: to ask for a longer one is an error
    short = len(source) < 256 and len(source.encode()) < 256
    if short and re.fullmatch(r".*[\\/.].*", source) and Path(source).is_file():
        raise TokenizerError(f"{source!r} is a file: give Path({source!r}); a str is taken as text")
    for start in range(0, len(source), CHUNK):
        yield source[start : start + CHUNK]


def _read_file(path: Path) -> Iterator[str]:
    """The text of a file of UTF-8, cut anywhere between two characters; a TokenizerError where it
    is a folder or no UTF-8."""
    if path.is_dir():
        raise TokenizerError(f"{path} is a folder: give its files, as sorted(folder.rglob('*'))")
    decoder = reading.Utf8Decoder(path, TokenizerError, "convert it first, or pass its text")
    with reading.system_errors(path, TokenizerError), path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def documents(sources: Iterable[str | Path]) -> Iterator[str]:
    """What a BPE learns from: the text between the ends of text, in pieces; no text is an error,
    once all was read."""
    empty = True
    for text in read_texts(sources):
        for part in text.split(ENDOFTEXT):
            empty = empty and not part
            yield part
    if empty:
        raise TokenizerError("there is no text to make a tokenizer from")


def size(sources: Iterable[str | Path]) -> float:
    """About how many bytes of text there are; infinity for an iterator, which can be read once
    only and so is not looked into."""
    if not isinstance(sources, Sequence):
        return float("inf")
    with reading.system_errors("the files to learn from", TokenizerError):
        return sum(s.stat().st_size if isinstance(s, Path) else len(s) for s in sources)
