"""Single bytes as tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from addnorm import reading
from addnorm.data.tokenizer.kind import (
    CARD,
    ENDOFTEXT,
    SPECIAL,
    TokenizerError,
    TokenizerKind,
    special_names,
)


@final
class Bytes(TokenizerKind):
    """The bytes of the text's UTF-8, and 256 for the end of a text.

    ``more``: further special tokens, from 257 on.
    """

    name, file = "bytes", CARD
    eos = ENDOFTEXT

    def __init__(self, more: Sequence[str] = ()) -> None:
        self.more = list(more)
        self.special = {name: 256 + i for i, name in enumerate([ENDOFTEXT, *more])}
        self.pieces = {i: bytes((i,)) for i in range(256)}
        self.pieces |= {i: name.encode() for name, i in self.special.items()}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def with_special(self, names: Sequence[str]) -> "Bytes":
        return Bytes([*self.more, *names])

    def card(self) -> dict[str, Any]:
        return {SPECIAL: self.more} if self.more else {}

    def content(self) -> dict[str, Any]:
        return {"special": self.special}

    def save(self, folder: Path) -> None:
        """The card says it all."""

    @classmethod
    def load(cls, folder: Path) -> "Bytes":
        card = reading.json_object(folder / CARD, TokenizerError)
        return cls(special_names(card, folder / CARD))
