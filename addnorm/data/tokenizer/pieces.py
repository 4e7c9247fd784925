"""SentencePiece with a vocabulary beside it, as Marian's folders have it.

Read, not learned: a text comes back normalized (NFKC, single spaces), which no tokenizer made here
does. The work is done by the ``sentencepiece`` package, and only where text is asked for.
"""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, final

from addnorm import reading
from addnorm.data.tokenizer.kind import TokenizerError

VOCAB, VOCAB_OF_TARGET = "vocab.json", "target_vocab.json"
END, UNKNOWN, PADDING = "</s>", "<unk>", "<pad>"
SPACE = "▁"  # what SentencePiece writes for a space


def spm(side: str) -> str:
    """The file of a side's pieces: source.spm, target.spm."""
    return f"{side}.spm"


@final
class SentencePieces:
    """The pieces of one side.

    ``model``: the file of SentencePiece, which cuts a text into pieces.
    ``vocab``: the JSON file that says which id each piece has; what it lacks is ``<unk>``.
    """

    def __init__(self, model: Path, vocab: Path) -> None:
        self.model = model
        ids = reading.json_object(vocab, TokenizerError)
        for name in (END, UNKNOWN):
            if name not in ids:
                raise TokenizerError(f"{vocab} has no {name}: it is not Marian's, or damaged")
        for piece, id in ids.items():
            if type(id) is not int or id < 0:
                raise TokenizerError(f"{vocab}: the id of {piece!r} is {id!r}, no number")
        self._ids: dict[str, int] = ids
        self._pieces = {id: piece for piece, id in ids.items()}
        self._data = reading.raw(model, TokenizerError)
        # a pointer of Git LFS shows in its first words
        reading.check_no_pointer(model, self._data[:100].decode(errors="replace"), TokenizerError)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return max(self._pieces) + 1

    @property
    def end(self) -> int:
        """The id that ends a text."""
        return self._ids[END]

    @cached_property
    def identity(self) -> str:
        """16 hex digits; changes with the ids and their pieces."""
        return hashlib.sha256(repr(sorted(self._ids.items())).encode()).hexdigest()[:16]

    @cached_property
    def _processor(self) -> Any:
        """SentencePiece's, made when text is asked for: without the package the rest works. A
        TokenizerError where it is not installed or does not read the file."""
        try:
            sentencepiece = import_module("sentencepiece")
        except ImportError:
            raise TokenizerError(
                f"{self.model} needs sentencepiece: pip install 'addnorm[translate]'. Without it "
                "the model takes ids: Seq2Seq.generate"
            ) from None
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self._data)
        except RuntimeError as error:
            raise TokenizerError(
                f"{self.model} is not SentencePiece's, or damaged: {error}"
            ) from None

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without its end; a language code before it, as ``>>fr<<``, is one."""
        pieces: list[str] = []
        if text.startswith(">>") and (end := text.find("<<")) != -1:
            pieces, text = [text[: end + 2]], text[end + 2 :]
        pieces += self._processor.encode(text, out_type=str)
        return [self._ids.get(piece, self._ids[UNKNOWN]) for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without ends, padding and what is unknown."""
        pieces = [self._pieces.get(id, UNKNOWN) for id in ids]
        text: str = self._processor.decode_pieces(
            [piece for piece in pieces if piece not in (END, PADDING, UNKNOWN)]
        )
        return text.replace(SPACE, " ").strip()
