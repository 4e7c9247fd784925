"""Single characters as tokens."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from addnorm import disk, reading
from addnorm.data.tokenizer.kind import (
    SPECIAL,
    TokenizerError,
    TokenizerKind,
    check_text,
    special_names,
)
from addnorm.words import a_few


@final
class Characters(TokenizerKind):
    """One id per character.

    ``characters``: all of them, in the order of their ids; ``special``: tokens after them.
    """

    name, file = "characters", "characters.json"

    def __init__(self, characters: str, special: Sequence[str] = ()):
        check_text(characters)
        if not characters:
            raise TokenizerError("there is no character in it")
        twice = sorted(c for c, n in Counter(characters).items() if n > 1)
        if twice:
            raise TokenizerError(f"{', '.join(map(repr, twice))} more than once")
        self.characters = characters
        self.special = {name: len(characters) + i for i, name in enumerate(special)}
        self.pieces = {i: c.encode() for i, c in enumerate([*characters, *special])}
        self._ids = {c: i for i, c in enumerate(characters)}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [[self._ids[c] for c in text] for text in texts]
        except KeyError:
            raise TokenizerError(self._unknown(texts)) from None

    def _unknown(self, texts: Sequence[str]) -> str:
        """Which characters are not in the vocabulary, and where."""
        text = next(t for t in texts if not self._ids.keys() >= set(t))
        places: dict[str, list[int]] = {}
        for place, c in enumerate(text):
            if c not in self._ids:
                places.setdefault(c, []).append(place)
        unknown = [f"{c!r} (U+{ord(c):04X}) at {a_few(where, 4)}" for c, where in places.items()]
        return (
            f"not in this tokenizer's vocabulary of {len(self._ids)} characters: "
            f"{a_few(unknown, 8, '; ')}. It was made from another text; make it from all that it "
            "is to encode, or use one that has an id for everything: Tokenizer.bytes(), or BPE"
        )

    def content(self) -> dict[str, Any]:
        special = {SPECIAL: list(self.special)} if self.special else {}
        return {"characters": self.characters, **special}

    def with_special(self, names: Sequence[str]) -> "Characters":
        return Characters(self.characters, [*self.special, *names])

    def save(self, folder: Path) -> None:
        disk.write_text(folder / self.file, json.dumps(self.content()))

    @classmethod
    def load(cls, folder: Path) -> "Characters":
        """From characters.json, which must be there."""
        path = folder / cls.file
        content = reading.json_object(path, TokenizerError)
        characters = reading.field(content, "characters", str, path, TokenizerError)
        try:
            return cls(characters, special_names(content, path))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None
