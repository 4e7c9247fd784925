"""What kinds of tokenizer have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, final

from addnorm.errors import Mendable

ENDOFTEXT = "<|endoftext|>"
"""What GPT-2 puts between documents; the special token of the tokenizers made here."""

CARD = "addnorm_tokenizer.json"
"""Kind and identity of a saved tokenizer: what is loaded is compared with it."""

SPECIAL = "special"
"""Where our own formats list the special tokens that they do not have by themselves."""


@final
class TokenizerError(Mendable):
    """A tokenizer that cannot be loaded, made or saved, or a text that it has no ids for; the
    message says why and what to do."""


class TokenizerKind(ABC):
    """What each kind of tokenizer has to say; the rest is the same for all.

    ``name``: what the kind is called; ``file``: the file of its ids, which the card vouches for.
    ``pieces``: id -> its bytes. ``special``: the tokens that no ordinary text gives -> ids.
    ``eos``, ``pad``: the names in ``special`` of the tokens that end a text and fill up a batch.
    ``exact``: whether the ids of a text give it back; if not, each word begins with a space.
    ``cased``: whether upper and lower case have different ids.
    ``roles``: cls, sep and mask -> their names in ``special``, where there are such tokens.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    exact: ClassVar[bool] = True
    cased: bool = True
    roles: Mapping[str, str] = MappingProxyType({})
    pieces: dict[int, bytes]
    special: dict[str, int]
    eos: str | None = None
    pad: str | None = None

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "TokenizerKind":
        """What ``save`` wrote; damage is a TokenizerError that names the file."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of ordinary texts, each a valid str."""

    def with_special(self, names: Sequence[str]) -> "TokenizerKind":
        """The same with more special tokens, whose ids follow the others."""
        raise TokenizerError(f"a tokenizer of kind {self.name!r} takes no more tokens")

    def card(self) -> dict[str, Any]:
        """What the card says besides kind and identity."""
        return {}

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(ids of an ordinary text, of each the characters at which its token begins and ends)."""
        raise TokenizerError(f"a tokenizer of kind {self.name!r} does not say where its tokens are")

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """All that decides the ids, as JSON that is the same however it was stored."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything but the card."""


def special_names(card: Mapping[str, Any], where: Path) -> list[str]:
    """The special tokens that a file of ours lists, of which ``card`` is the JSON; none, where it
    lists none. A TokenizerError that names ``where`` if they are no different texts."""
    names = card.get(SPECIAL, [])
    texts = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not texts or len({*names}) < len(names):
        raise TokenizerError(f"{where}: {SPECIAL!r} must be a list of different texts")
    return list(names)


def check_text(text: str) -> None:
    """TypeError for what is not a str, TokenizerError for one that no bytes stand for."""
    if not isinstance(text, str):
        hint = ": encode_bytes takes bytes" if isinstance(text, bytes) else ""
        raise TypeError(f"expected a str, got {type(text).__name__}{hint}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} of the text, {text[error.start]!r}, is half of a surrogate "
            "pair: no Unicode text has it, and no bytes stand for it. It comes from reading with "
            "errors='surrogateescape' or from cut UTF-16; for bytes that are not UTF-8 there is "
            "encode_bytes"
        ) from None
