"""``Tokenizer``, whatever its kind, and ``TextStream``: text from ids as they come."""

import builtins
import codecs
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from operator import index
from pathlib import Path
from typing import final

from addnorm import disk, hub, reading
from addnorm.data.tokenizer.bpe import BytePairs
from addnorm.data.tokenizer.bpe_files import CONFIGS, PARTS
from addnorm.data.tokenizer.bytes import Bytes
from addnorm.data.tokenizer.characters import Characters
from addnorm.data.tokenizer.corpus import documents, read_texts, size
from addnorm.data.tokenizer.kind import CARD, TokenizerError, TokenizerKind, check_text
from addnorm.data.tokenizer.wordpiece import VOCABULARY, WordPieces
from addnorm.errors import unknown_name

QUIET = 1 << 24  # bytes of text that take no more than a few seconds to learn from

KINDS: dict[str, type[TokenizerKind]] = {
    kind.name: kind for kind in (BytePairs, WordPieces, Characters, Bytes)
}


@final
class Tokenizer:
    """Text to ids and back. Made by ``from_pretrained``, ``train``, ``characters`` or ``bytes``.

    ``kind``: what its tokens are and how they are found in a text.
    """

    def __init__(self, kind: TokenizerKind):
        self._kind = kind
        # Of single bytes, for encode_bytes; a special token is none, whatever it is called.
        ordinary = {i: piece for i, piece in kind.pieces.items() if i not in kind.special.values()}
        self._byte_ids = {piece[0]: i for i, piece in ordinary.items() if len(piece) == 1}
        longest_first = sorted(kind.special, key=len, reverse=True)
        self._specials = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path) -> "Tokenizer":
        """From a folder that holds ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, or a
        BERT's ``vocab.txt``, or what ``save`` wrote; or, if there is no such folder, from the
        Hugging Face hub or its cache."""
        folder = _find(path_or_id)
        with reading.system_errors(folder, TokenizerError):
            return cls._of_folder(folder)

    @classmethod
    def _of_folder(cls, folder: Path) -> "Tokenizer":
        """By the card, where ``save`` wrote one, compared with it; else by what files there are. A
        TokenizerError where the two do not agree, or there is no tokenizer."""
        card_path = folder / CARD
        if not os.path.lexists(card_path):
            return cls((WordPieces if WordPieces.is_in(folder) else BytePairs).load(folder))
        card = reading.json_object(card_path, TokenizerError)
        name = reading.field(card, "kind", str, card_path, TokenizerError)
        identity = reading.field(card, "identity", str, card_path, TokenizerError)
        if name not in KINDS:
            raise TokenizerError(f"{card_path}: {unknown_name('kind', name, KINDS)}")
        kind = KINDS[name]
        tokenizer = cls(kind.load(folder))
        if tokenizer.identity != identity:
            raise TokenizerError(
                f"{folder / kind.file} is not the tokenizer that was saved here: its identity is "
                f"{tokenizer.identity}, {CARD} says {identity}. It was changed or "
                "damaged; ids made with the one do not fit the other. Copy both files again from "
                f"where they came from, or delete {CARD} if the change was meant"
            )
        return tokenizer

    @classmethod
    def train(
        cls,
        texts_or_files: str | Path | Iterable[str | Path],
        vocab_size: int | None = None,
        kind: str = "bpe",
    ) -> "Tokenizer":
        """Learn a tokenizer: a ``Path`` is a file of UTF-8, read piece by piece; a str is text.

        ``kind`` "bpe" learns merges until there are ``vocab_size`` tokens, fewer if no pair comes
        twice any more; nothing is learned across or from ``<|endoftext|>``. "wordpiece" likewise,
        with BERT's special tokens and without case, "wordpiece-cased" with it. "characters" takes
        all characters there are; more than ``vocab_size`` of them are an error. The same text
        gives the same tokenizer, whether read from a file or given as a str. A ``TokenizerError``
        where there is no text, or no ``vocab_size`` for a kind that needs one.
        """
        sources = [texts_or_files] if isinstance(texts_or_files, str | Path) else texts_or_files
        if kind == "characters":
            characters = set[str]().union(*read_texts(sources))
            if not characters:
                raise TokenizerError("there is no text to make a tokenizer from")
            if vocab_size is not None and len(characters) > vocab_size:
                raise TokenizerError(
                    f"the text has {len(characters)} characters, vocab_size is {vocab_size}"
                )
            return cls(Characters("".join(sorted(characters))))
        learners: dict[str, Callable[[Iterator[str], int, bool], TokenizerKind]]
        learners = {
            "bpe": BytePairs.train,
            "wordpiece": WordPieces.train,
            "wordpiece-cased": partial(WordPieces.train, cased=True),
        }
        if kind not in learners:
            raise TokenizerError(
                f"unknown kind {kind!r}: 'bpe', 'wordpiece', 'wordpiece-cased' and 'characters' "
                "are learned from text; for bytes there is Tokenizer.bytes()"
            )
        if vocab_size is None:
            raise TokenizerError(
                f"kind {kind!r} needs a vocab_size; GPT-2 has 50257 tokens, BERT 30522"
            )
        sources = list(sources) if isinstance(sources, Sequence) else sources
        # The bar of the training itself, which knows what is left to do; only where one can see it.
        progress = sys.stderr.isatty() and size(sources) > QUIET
        return cls(learners[kind](documents(sources), vocab_size, progress))

    @classmethod
    def characters(cls, text: str | Path | Iterable[str | Path]) -> "Tokenizer":
        """One id for each character that occurs in the text (or file), sorted by code point."""
        return cls.train(text, kind="characters")

    @classmethod
    def bytes(cls) -> "Tokenizer":
        """UTF-8 bytes, ids 0 to 255, and ``<|endoftext|>``, id 256."""
        return cls(Bytes())

    def with_special(self, names: Iterable[str]) -> "Tokenizer":
        """The same with these special tokens, those that it lacks with ids after all others, itself
        if it lacks none; a text has the ids that it had. A ``TokenizerError`` where the kind takes
        no more."""
        lacking = [name for name in dict.fromkeys(names) if name not in self._kind.special]
        if not lacking:
            return self
        if "" in lacking:
            raise TokenizerError("a special token needs a name")
        return Tokenizer(self._kind.with_special(lacking))

    # ------------------------------------------------------------------------------- what it is

    @property
    def has_gpt2_words(self) -> bool:
        """Whether text falls into GPT-2's words, and no tokens are looked for before those."""
        kind = self._kind
        if not isinstance(kind, BytePairs):
            return False
        return kind.may_cut and all(token["special"] for token in kind.added)

    @property
    def kind(self) -> str:
        """ "bpe", "wordpiece", "characters" or "bytes"."""
        return self._kind.name

    @property
    def exact(self) -> bool:
        """Whether ``decode(encode(text)) == text``; not for WordPiece, which loses spacing and
        mostly case."""
        return self._kind.exact

    @property
    def cased(self) -> bool:
        """Whether upper and lower case have different ids; not for most WordPieces."""
        return self._kind.cased

    @cached_property
    def identity(self) -> str:
        """16 hex digits; changes with the vocabulary, the merges, the special tokens, and how text
        is normalized and split. Which of the special tokens ends a text is not in it."""
        content = {"kind": self._kind.name, **self._kind.content()}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def vocab_size(self) -> int:
        """The largest id plus one: how many rows an embedding needs."""
        return max(self._kind.pieces) + 1

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def special(self) -> dict[str, int]:
        """The special tokens and their ids."""
        return dict(self._kind.special)

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, if the tokenizer has one."""
        return None if self._kind.eos is None else self._kind.special[self._kind.eos]

    @property
    def pad_id(self) -> int | None:
        """The id that fills up a batch, if the tokenizer has one; GPT-2 has not."""
        return None if self._kind.pad is None else self._kind.special[self._kind.pad]

    def role_id(self, role: str) -> int:
        """The id of the token whose ``role`` is cls (what begins a text), sep (what ends it) or
        mask; a ``TokenizerError`` where the tokenizer has none."""
        if role not in self._kind.roles:
            raise TokenizerError(
                f"a tokenizer of kind {self.kind!r} has no token for {role}: a BERT needs "
                "WordPiece, its own or one that is learned, as by tokenizer=wordpiece:8192"
            )
        return self._kind.special[self._kind.roles[role]]

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} tokens, identity {self.identity})"

    # ------------------------------------------------------------------------------ text to ids

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of a text. With ``allow_special``, where the text of a special token stands there
        is that token; leave it out for text from strangers."""
        return self.encode_batch([text], allow_special)[0]

    def encode_batch(self, texts: Iterable[str], allow_special: bool = False) -> list[list[int]]:
        """The ids of each of many texts, with threads where the kind has them (BPE);
        ``allow_special`` as in ``encode``. A ``TokenizerError`` where a text has no ids."""
        if isinstance(texts, str):
            raise TypeError("encode_batch takes several texts; encode takes one")
        texts = list(texts)
        for text in texts:
            check_text(text)
        if not (allow_special and self._kind.special):
            return self._kind.encode(texts)
        parts = [self._specials.split(text) for text in texts]  # ordinary, special, ordinary, ...
        ordinary = iter(self._kind.encode([part for row in parts for part in row[::2]]))
        ids = []
        for row in parts:
            ids.append(next(ordinary))
            for special in row[1::2]:
                ids[-1].append(self._kind.special[special])
                ids[-1] += next(ordinary)
        return ids

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and the characters (first, last + 1) of it that each stands for; only
        WordPiece says so."""
        check_text(text)
        return self._kind.encode_with_places(text)

    def encode_bytes(self, data: builtins.bytes) -> list[int]:
        """The ids of bytes that may not be UTF-8: those that are not get the ids of single bytes,
        so that ``decode_bytes`` gives ``data`` back. A ``ValueError`` where the kind has none."""
        # surrogateescape: an invalid byte b becomes U+DC00 + b, which valid UTF-8 cannot contain
        parts = re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape"))
        ids: list[int] = []
        for ordinary, invalid in zip(parts[::2], [*parts[1::2], ""], strict=True):
            ids += self._kind.encode([ordinary])[0]
            for byte in invalid.encode("utf-8", "surrogateescape"):
                if byte not in self._byte_ids:
                    raise ValueError(
                        f"the bytes are not UTF-8, and of kind {self.kind!r} there is no token for "
                        f"the single byte 0x{byte:02x}"
                    )
                ids.append(self._byte_ids[byte])
        return ids

    # ------------------------------------------------------------------------------ ids to text

    def token_bytes(self, id: int) -> builtins.bytes:
        """The bytes that an id stands for; not always whole characters."""
        return self.decode_bytes([id])

    def decode_bytes(self, ids: Iterable[int]) -> builtins.bytes:
        """The bytes of all ids, one after the other; a ``ValueError`` names one that stands for
        none."""
        pieces = self._kind.pieces
        ids = list(ids)
        try:
            return b"".join([pieces[index(i)] for i in ids])
        except KeyError:
            place, bad = next((p, i) for p, i in enumerate(ids) if index(i) not in pieces)
            raise ValueError(
                f"id {index(bad)} at position {place} is not in the vocabulary, whose ids are 0 to "
                f"{self.vocab_size - 1}"
                + ("" if index(bad) not in range(self.vocab_size) else " with gaps")
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens included; U+FFFD where the bytes are not UTF-8."""
        text = self.decode_bytes(ids).decode("utf-8", "replace")
        return text if self.exact else text.removeprefix(" ")

    def stream(self) -> "TextStream":
        """Decodes one id at a time."""
        return TextStream(self)

    # ----------------------------------------------------------------------------------- saving

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer beside a model, in a folder that is made if there is none. BPE as
        ``tokenizer.json``, for ``tokenizers`` and the ``AutoTokenizer`` of transformers too. One of
        another kind that is there is a ``TokenizerError``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        others = {kind.file for kind in KINDS.values()} - {self._kind.file, CARD}
        if strange := sorted(name for name in others if (folder / name).exists()):
            raise TokenizerError(
                f"{folder} holds a tokenizer of another kind ({', '.join(strange)}), which other "
                f"programs would take for this one, of kind {self.kind!r}: delete it, or save "
                "somewhere else"
            )
        self._kind.save(folder)
        card = {"kind": self.kind, "identity": self.identity, **self._kind.card()}
        disk.write_text(folder / CARD, json.dumps(card, indent=2))


@final
class TextStream:
    """Text from ids as they come, whole characters only: what ``push`` returned and finally
    ``flush``, joined, is what ``decode`` gives for all ids at once.

    ``tokenizer``: whose ids they are.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """What is complete now; often "" where a character has several ids."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """What is left of a character that never became complete; afterwards all begins anew."""
        return self._decoder.decode(b"", final=True)


# --- reading --------------------------------------------------------------------------------------


def _find(path_or_id: str | Path) -> Path:
    """The folder, or that of what the hub or its cache has under that name; a ``TokenizerError``
    where there is neither. Of the hub only files of tokenizers are fetched."""
    folder = hub.local_folder(path_or_id, TokenizerError)
    if folder is not None:
        return folder
    name = str(path_or_id)
    files = [CARD, *(kind.file for kind in KINDS.values()), *CONFIGS, *PARTS, "added_tokens.json"]
    files.append(VOCABULARY)
    advice = (
        "On a machine with a network, run\n"
        f"    hf download {name} {' '.join(PARTS)} --local-dir FOLDER\n"
        "or the same with tokenizer.json and tokenizer_config.json instead of these two, and use "
        "FOLDER instead of the name. What was downloaded once is taken from the hub's cache, even "
        "with HF_HUB_OFFLINE=1"
    )
    return hub.download(name, files, TokenizerError, advice)
