"""The tokenizers of a model that reads one language and writes another."""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from addnorm import reading
from addnorm.data.tokenizer.kind import CARD, TokenizerError
from addnorm.data.tokenizer.pieces import VOCAB, VOCAB_OF_TARGET, SentencePieces, spm
from addnorm.data.tokenizer.tokenizer import Tokenizer

TARGET = "target_"
"""What the names of the target's files begin with where it has a tokenizer of its own."""


class TextTokenizer(Protocol):
    """Text to ids and back, losing nothing or little."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def identity(self) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class TokenizerPair(NamedTuple):
    """Of source and target; made by ``pair`` or ``read_pair``."""

    source: TextTokenizer
    """Of what is read."""
    target: TextTokenizer
    """Of what is written; the same one where a vocabulary is shared."""
    source_end: int
    """The id behind a source."""
    target_end: int
    """The id behind a target."""
    save: Callable[[Path], None]
    """Write the files of both into a folder, for ``read_pair``."""

    @property
    def shared(self) -> bool:
        """Whether an id means the same on both sides."""
        return self.source.identity == self.target.identity

    def encode(self, text: str) -> list[int]:
        """The ids of a source, its end included."""
        return [*self.source.encode(text), self.source_end]


def end_of(tokenizer: Tokenizer) -> int:
    """The id that ends a text: the tokenizer's own, or one behind all that it has."""
    return tokenizer.vocab_size if tokenizer.eos_id is None else tokenizer.eos_id


def pair(source: Tokenizer, target: Tokenizer) -> TokenizerPair:
    """The pair of two tokenizers, or of one for both sides; a tokenizer without an end of text gets
    one, an id behind all that it has."""

    def save(folder: Path) -> None:
        """The source's files, and the target's under names of their own, if it is another."""
        source.save(folder)
        if target.identity != source.identity:
            with tempfile.TemporaryDirectory() as work:
                target.save(work)
                for file in Path(work).iterdir():
                    shutil.copyfile(file, folder / f"{TARGET}{file.name}")

    return TokenizerPair(source, target, end_of(source), end_of(target), save)


def read_pair(folder: Path) -> TokenizerPair | None:
    """The tokenizers in a model's folder: Marian's files of SentencePiece, or what
    ``TokenizerPair.save`` wrote, that of the target under names of its own if there are two. None:
    neither is there; tokenizers of other makers are not looked for, since such models have none."""
    if (folder / spm("source")).exists():
        return _pieces(folder)
    if not (folder / CARD).exists():
        return None
    source = Tokenizer.from_pretrained(folder)
    if not (folder / f"{TARGET}{CARD}").exists():
        return pair(source, source)
    with tempfile.TemporaryDirectory() as work, reading.system_errors(folder, TokenizerError):
        for file in folder.glob(f"{TARGET}*"):
            shutil.copyfile(file, Path(work) / file.name.removeprefix(TARGET))
        return pair(source, Tokenizer.from_pretrained(work))


def _pieces(folder: Path) -> TokenizerPair:
    """The pair of Marian's files: two models of SentencePiece, one vocabulary or two. What it saves
    are these files, byte for byte, so they are read whole here."""
    separate = (folder / VOCAB_OF_TARGET).exists()
    vocabs = folder / VOCAB, folder / (VOCAB_OF_TARGET if separate else VOCAB)
    source, target = (
        SentencePieces(folder / spm(side), vocab)
        for side, vocab in zip(("source", "target"), vocabs, strict=True)
    )
    content = {
        file.name: reading.raw(file, TokenizerError)
        for file in (source.model, target.model, *vocabs)
    }

    def save(other: Path) -> None:
        for name, data in content.items():
            (other / name).write_bytes(data)

    return TokenizerPair(source, target, source.end, target.end, save)
