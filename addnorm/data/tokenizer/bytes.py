"""Single bytes as tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from addnorm.data.tokenizer.kind import CARD, ENDOFTEXT, TokenizerKind


@final
class Bytes(TokenizerKind):
    """The bytes of the text's UTF-8, and 256 for the end of a text."""

    name, file = "bytes", CARD
    eos = ENDOFTEXT

    def __init__(self) -> None:
        self.special = {ENDOFTEXT: 256}
        self.pieces = {i: bytes((i,)) for i in range(256)} | {256: ENDOFTEXT.encode()}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def content(self) -> dict[str, Any]:
        return {"special": self.special}

    def save(self, folder: Path) -> None:
        """The card says it all."""

    @classmethod
    def load(cls, folder: Path) -> "Bytes":
        return cls()
