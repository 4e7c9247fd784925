"""Text to ids and back: GPT-2's byte-level BPE, single characters, single bytes.

Byte-level BPE (Sennrich, Haddow & Birch 2016, arXiv 1508.07909; over bytes: Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners", section 2.2) splits a text into words by a
regular expression, writes each word as UTF-8 bytes, and merges neighbours, the earliest learned
pair first. The work is done by the ``tokenizers`` package; here is what it leaves open:

* ``encode`` adds nothing, and the text of a special token (``<|endoftext|>``) in somebody's text is
  text. With ``allow_special=True`` it is the token.
* ``decode(encode(text)) == text`` for every text. What would break that is refused when a
  tokenizer is loaded. The exception is a tokenizer that declares the NFC normalizer (Pythia, Qwen):
  it gives the text in NFC.
* Ids are bytes first: ``decode_bytes`` joins those of ``token_bytes``. ``decode`` reads them as
  UTF-8 with U+FFFD where they are not, as ``bytes.decode(errors="replace")`` does, and so does
  ``stream``, which holds back a character until it is complete.
* ``identity`` is a hash of all that decides which ids a text gets. It belongs into every file of
  ids and every checkpoint; two tokenizers with the same identity are interchangeable.
"""

import builtins
import codecs
import hashlib
import json
import os
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, ClassVar, final

import tokenizers

from addnorm import disk, hub, reading
from addnorm.errors import Mendable, unknown_name, value_in_short
from addnorm.words import a_few

__all__ = ["TextStream", "Tokenizer", "TokenizerError"]

ENDOFTEXT = "<|endoftext|>"
"""What GPT-2 puts between documents; the special token of the tokenizers made here."""

CARD = "addnorm_tokenizer.json"
"""Kind and identity of a saved tokenizer: what is loaded is compared with it."""

PARTS = ("vocab.json", "merges.txt")
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
ROLES = ("eos_token", "pad_token")
FOREIGN = {
    "tokenizer.model": "SentencePiece or tiktoken, which is not read here",
    "spiece.model": "SentencePiece, which is not read here",
    "vocab.txt": "WordPiece, which is not read here",
    "encoder.json": "OpenAI's name for vocab.json: rename it",
    "vocab.bpe": "OpenAI's name for merges.txt: rename it",
}

WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
WHITESPACE += "\u2028\u2029\u202f\u205f\u3000"
r"""Unicode's White_Space, which is the \s of GPT-2's expression; str.isspace has more."""

# GPT-2's words never reach from a character that is no whitespace to one that is, and its only
# look-ahead starts in whitespace: between the two, a text may be cut without changing an id.
CUT = re.compile(f"[^{WHITESPACE}](?=[{WHITESPACE}])")
CUT_LAST = re.compile(f"(?s:.*)[^{WHITESPACE}](?=[{WHITESPACE}])")

PIECE = 1 << 14  # characters encoded at a time; more does not go faster, and needs more memory
GROUP = 1 << 20  # characters the threads have at a time; an encoding has some 170 bytes for each
CHUNK = 1 << 20  # bytes of a file read at a time
LONGEST = 1 << 24  # characters without a place to cut, after which training cuts anywhere
QUIET = 1 << 24  # bytes of text that take no more than a few seconds to learn from


@final
class TokenizerError(Mendable):
    """A tokenizer that cannot be loaded, made or saved, or a text that it has no ids for; the
    message says why and what to do."""


# --- the kinds ------------------------------------------------------------------------------------


class Kind(ABC):
    """What the three kinds of tokenizer have to say; the rest is the same for all.

    ``pieces`` has the bytes of every id, ``special`` the tokens that no ordinary text gives;
    ``eos`` and ``pad`` are names from ``special``, or None. ``file`` is what the card vouches for.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    pieces: dict[int, bytes]
    special: dict[str, int]
    eos: str | None = None
    pad: str | None = None

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "Kind":
        """What ``save`` wrote; damage is a TokenizerError that names the file."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of ordinary texts, each a valid str."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """All that decides the ids, as JSON that is the same however it was stored."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything but the card."""


@final
class BytePairs(Kind):
    """Byte-level BPE, from what a ``tokenizer.json`` and a ``tokenizer_config.json`` hold."""

    name, file = "bpe", "tokenizer.json"

    def __init__(self, data: dict[str, Any], config: dict[str, Any]):
        self.config = config
        model, added = _check_bpe(data)
        if config.get("add_prefix_space"):
            raise TokenizerError(
                "the configuration asks for a space before every text, as none does here"
            )
        for role in ROLES:
            name = _token_text(config.get(role))
            if name is None or any(t["content"] == name and t["special"] for t in added):
                continue
            ids = {**model["vocab"], **{t["content"]: t["id"] for t in added}}
            if name not in ids:
                raise TokenizerError(
                    f"the configuration names {role} {name!r}: no token is called so"
                )
            # Ordinary for the file, but special for whoever wrote the configuration.
            added = [t for t in added if t["content"] != name]
            added.append(_special(name, ids[name]))
        self.vocab: dict[str, int] = model["vocab"]
        self.merges = [
            tuple(m.split(" ")) if isinstance(m, str) else (*m,) for m in model["merges"]
        ]
        self.added = sorted(added, key=lambda token: token["id"])
        self.ignore_merges = bool(model.get("ignore_merges"))
        self.normalizer = "NFC" if _flat(data.get("normalizer"), "normalizers") else None
        # Truncation and padding are saved by whoever last used them, and would act on every text.
        data = {**data, "added_tokens": self.added, "truncation": None, "padding": None}
        self._engine = _engine(json.dumps(data))
        for token in self.added:
            if (given := self._engine.token_to_id(token["content"])) != token["id"]:
                raise TokenizerError(
                    f"{token['content']!r} has id {token['id']}, but {given} is the next free one"
                )
        alphabet = _alphabet()
        literal = {token["content"]: token["id"] for token in self.added}
        ordinary = {t: i for t, i in self.vocab.items() if t not in literal}
        self.pieces = {i: bytes(alphabet[c] for c in t) for t, i in ordinary.items()}
        self.pieces |= {i: token.encode() for token, i in literal.items()}
        self.special = {t["content"]: t["id"] for t in self.added if t["special"]}
        self.eos = _token_text(config.get("eos_token"))
        if self.eos is None and ENDOFTEXT in self.special:
            self.eos = ENDOFTEXT
        self.pad = _token_text(config.get("pad_token"))
        # CUT is safe for GPT-2's expression only, and if no token spans the place of a cut.
        self.may_cut = self._words() == [{"type": "ByteLevel", "use_regex": True}] and not any(
            CUT.search(token["content"]) for token in self.added if not token["special"]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": self._engine.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._engine = _engine(state["_engine"])

    def _words(self) -> list[dict[str, Any]]:
        """How a text is split into words, without what changes no id."""
        assert self._engine.pre_tokenizer is not None
        steps = _flat(json.loads(self._engine.pre_tokenizer.__getstate__()), "pretokenizers")
        leave_out = ("trim_offsets", "add_prefix_space")
        return [{k: v for k, v in step.items() if k not in leave_out} for step in steps]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        pieces = [(i, p) for i, text in enumerate(texts) for p in self._cut(text)]
        ids: list[list[int]] = [[] for _ in texts]
        for group in _groups(pieces):
            done = self._engine.encode_batch_fast([p for _, p in group], add_special_tokens=False)
            for (i, _), encoding in zip(group, done, strict=True):
                ids[i] += encoding.ids
        return ids

    def _cut(self, text: str) -> Iterator[str]:
        start = 0
        while self.may_cut and (place := CUT.search(text, start + PIECE)):
            yield text[start : place.end()]
            start = place.end()
        yield text[start:]

    def content(self) -> dict[str, Any]:
        literal = {token["content"] for token in self.added}
        match = [
            [t["id"], t["content"]] + ([] if t["special"] else [t["single_word"], t["normalized"]])
            for t in self.added
        ]
        return {
            "vocab": {token: i for token, i in self.vocab.items() if token not in literal},
            "merges": self.merges,
            "ignore_merges": self.ignore_merges,
            "added": match,
            "normalizer": self.normalizer,
            "words": self._words(),
        }

    def save(self, folder: Path) -> None:
        disk.write_text(folder / self.file, self._engine.to_str(pretty=True))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,  # else transformers 4 drops some in decode
            **self.config,
            **({} if self.eos is None else {"eos_token": self.eos}),
        }
        disk.write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2))

    @classmethod
    def load(cls, folder: Path) -> "BytePairs":
        _expect_files(folder)
        path, config = folder / cls.file, _read_config(folder)
        if path.exists():
            data = reading.json_object(path, TokenizerError)
        else:
            path = folder / "vocab.json"
            data = _from_vocab_and_merges(folder, config)
        try:
            return cls(data, config)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None

    @classmethod
    def train(cls, texts: Iterator[str], vocab_size: int, progress: bool) -> "BytePairs":
        """Learn merges. Ids as in GPT-2: the bytes, then the merges, then the special token."""
        byte_level = tokenizers.pre_tokenizers.ByteLevel
        if vocab_size < 257:
            raise TokenizerError(
                f"vocab_size is {vocab_size}: 256 bytes and {ENDOFTEXT} need 257, and merges more"
            )
        engine = tokenizers.Tokenizer(tokenizers.models.BPE())
        engine.pre_tokenizer = byte_level(add_prefix_space=False)
        engine.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,  # a pair seen once teaches nothing
            initial_alphabet=byte_level.alphabet(),
            show_progress=progress,
        )
        engine.train_from_iterator(texts, trainer)
        engine.add_special_tokens([tokenizers.AddedToken(ENDOFTEXT, normalized=False)])
        return cls(json.loads(engine.to_str()), {})


@final
class Characters(Kind):
    """One id per character, in the order of ``characters``."""

    name, file = "characters", "characters.json"

    def __init__(self, characters: str):
        _check_text(characters)
        if not characters:
            raise TokenizerError("there is no character in it")
        twice = sorted(c for c, n in Counter(characters).items() if n > 1)
        if twice:
            raise TokenizerError(f"{', '.join(map(repr, twice))} more than once")
        self.characters = characters
        self.special = {}
        self.pieces = {i: c.encode() for i, c in enumerate(characters)}
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
        told = [f"{c!r} (U+{ord(c):04X}) at {a_few(where, 4)}" for c, where in places.items()]
        return (
            f"not in this tokenizer's vocabulary of {len(self._ids)} characters: "
            f"{a_few(told, 8, '; ')}. It was made from another text; make it from all that it is "
            "to encode, or use one that has an id for everything: Tokenizer.bytes(), or BPE"
        )

    def content(self) -> dict[str, Any]:
        return {"characters": self.characters}

    def save(self, folder: Path) -> None:
        disk.write_text(folder / self.file, json.dumps(self.content()))

    @classmethod
    def load(cls, folder: Path) -> "Characters":
        path = folder / cls.file
        held = reading.json_object(path, TokenizerError)
        characters = reading.field(held, "characters", str, path, TokenizerError)
        try:
            return cls(characters)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None


@final
class Bytes(Kind):
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


KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (BytePairs, Characters, Bytes)}


# --- the tokenizer --------------------------------------------------------------------------------


@final
class Tokenizer:
    """Text to ids and back. Made by ``from_pretrained``, ``train``, ``characters`` or ``bytes``."""

    def __init__(self, kind: Kind):
        self._kind = kind
        ordinary = {i: piece for i, piece in kind.pieces.items() if i not in kind.special.values()}
        self._byte_ids = {piece[0]: i for i, piece in ordinary.items() if len(piece) == 1}
        longest_first = sorted(kind.special, key=len, reverse=True)
        self._specials = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path) -> "Tokenizer":
        """From a folder that holds ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, or
        what ``save`` wrote; or, if there is no such folder, from the Hugging Face hub or its cache.
        """
        folder = _find(path_or_id)
        with reading.system_errors(folder, TokenizerError):
            return cls._of_folder(folder)

    @classmethod
    def _of_folder(cls, folder: Path) -> "Tokenizer":
        card_path = folder / CARD
        if not os.path.lexists(card_path):
            return cls(BytePairs.load(folder))
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
        twice any more; nothing is learned across or from ``<|endoftext|>``. "characters" takes all
        characters there are; more than ``vocab_size`` of them are an error. The same text gives the
        same tokenizer, whether read from a file or given as a str.
        """
        sources = [texts_or_files] if isinstance(texts_or_files, str | Path) else texts_or_files
        if kind == "characters":
            found = set[str]().union(*_read_texts(sources))
            if not found:
                raise TokenizerError("there is no text to make a tokenizer from")
            if vocab_size is not None and len(found) > vocab_size:
                raise TokenizerError(
                    f"the text has {len(found)} characters, vocab_size is {vocab_size}"
                )
            return cls(Characters("".join(sorted(found))))
        if kind != "bpe":
            raise TokenizerError(
                f"unknown kind {kind!r}: 'bpe' and 'characters' are learned from text; for bytes "
                "there is Tokenizer.bytes()"
            )
        if vocab_size is None:
            raise TokenizerError("kind 'bpe' needs a vocab_size; GPT-2 has 50257")
        sources = list(sources) if isinstance(sources, Sequence) else sources
        # The bar of the training itself, which knows what is left to do; only where one can see it.
        progress = sys.stderr.isatty() and _size(sources) > QUIET
        return cls(BytePairs.train(_documents(sources), vocab_size, progress))

    @classmethod
    def characters(cls, text: str | Path | Iterable[str | Path]) -> "Tokenizer":
        """One id for each character that occurs in the text (or file), sorted by code point."""
        return cls.train(text, kind="characters")

    @classmethod
    def bytes(cls) -> "Tokenizer":
        """UTF-8 bytes, ids 0 to 255, and ``<|endoftext|>``, id 256."""
        return cls(Bytes())

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
        """ "bpe", "characters" or "bytes"."""
        return self._kind.name

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

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} tokens, identity {self.identity})"

    # ------------------------------------------------------------------------------ text to ids

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of a text. With ``allow_special``, where the text of a special token stands there
        is that token; leave it out for text from strangers."""
        return self.encode_batch([text], allow_special)[0]

    def encode_batch(self, texts: Iterable[str], allow_special: bool = False) -> list[list[int]]:
        """The ids of many texts, with threads where the kind has them (BPE)."""
        if isinstance(texts, str):
            raise TypeError("encode_batch takes several texts; encode takes one")
        texts = list(texts)
        for text in texts:
            _check_text(text)
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

    def encode_bytes(self, data: builtins.bytes) -> list[int]:
        """The ids of bytes that may not be UTF-8: those that are not get the ids of single bytes,
        so that ``decode_bytes`` gives ``data`` back."""
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
        """The bytes of all ids, one after the other."""
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
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self) -> "TextStream":
        """Decodes one id at a time."""
        return TextStream(self)

    # ----------------------------------------------------------------------------------- saving

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer beside a model. BPE as ``tokenizer.json``, for ``tokenizers`` and the
        ``AutoTokenizer`` of transformers too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        others = {kind.file for kind in KINDS.values()} - {self._kind.file, CARD}
        if there := sorted(name for name in others if (folder / name).exists()):
            raise TokenizerError(
                f"{folder} holds a tokenizer of another kind ({', '.join(there)}), which other "
                f"programs would take for this one, of kind {self.kind!r}: delete it, or save "
                "somewhere else"
            )
        self._kind.save(folder)
        card = {"kind": self.kind, "identity": self.identity}
        disk.write_text(folder / CARD, json.dumps(card, indent=2))


@final
class TextStream:
    """Text from ids as they come, whole characters only: what ``push`` returned and finally
    ``flush``, joined, is what ``decode`` gives for all ids at once."""

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
    """The folder, or what the hub or its cache has under that name."""
    folder = hub.local_folder(path_or_id, TokenizerError)
    if folder is not None:
        return folder
    name = str(path_or_id)
    files = [CARD, *(kind.file for kind in KINDS.values()), *CONFIGS, *PARTS, "added_tokens.json"]
    advice = (
        "On a machine with a network, run\n"
        f"    hf download {name} {' '.join(PARTS)} --local-dir FOLDER\n"
        "or the same with tokenizer.json and tokenizer_config.json instead of these two, and use "
        "FOLDER instead of the name. What was downloaded once is taken from the hub's cache, even "
        "with HF_HUB_OFFLINE=1"
    )
    return hub.download(name, files, TokenizerError, advice)


def _expect_files(folder: Path) -> None:
    """The files of a BPE, or a FileNotFoundError that says what is there instead."""
    there = sorted(path.name for path in folder.iterdir())
    parts = [name for name in PARTS if name in there]
    if BytePairs.file in there or len(parts) == len(PARTS):
        return
    if parts:
        (missing,) = {*PARTS} - {*parts}
        raise TokenizerError(
            f"{folder} has {parts[0]}, but not {missing}: both come from one download, and neither "
            "can be made from the other"
        )
    foreign = [f"{name} is {what}" for name, what in FOREIGN.items() if name in there]
    raise TokenizerError(
        f"no tokenizer in {folder}: expected {BytePairs.file}, or {' and '.join(PARTS)}, or what "
        f"Tokenizer.save wrote, with its {CARD}. "
        + (f"There is: {a_few(there, 20)}" if there else "The folder is empty")
        + (f" ({'; '.join(foreign)})" if foreign else "")
    )


def _read_config(folder: Path) -> dict[str, Any]:
    """What the makers say about the tokens' roles; tokenizer_config.json has the last word."""
    last, first = (
        reading.json_object(p, TokenizerError) if os.path.lexists(p := folder / name) else {}
        for name in CONFIGS
    )
    roles = {role: first[role] for role in ROLES if first.get(role) and not last.get(role)}
    return {**last, **roles}


def _from_vocab_and_merges(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """``vocab.json`` and ``merges.txt`` in the form of a ``tokenizer.json``."""
    vocab = reading.json_object(folder / "vocab.json", TokenizerError)
    path = folder / "added_tokens.json"
    added = reading.json_object(path, TokenizerError) if os.path.lexists(path) else {}
    if more := sorted(added.keys() - vocab.keys()):
        raise TokenizerError(
            f"{path} has tokens that vocab.json does not have ({a_few(more, 5)}): of these old "
            "files only vocab.json and merges.txt are read; save the tokenizer as tokenizer.json "
            "with transformers"
        )
    path, merges, made = folder / "merges.txt", [], set()
    lines = reading.lines(path, TokenizerError)
    if lines:
        reading.check_no_pointer(path, lines[0], TokenizerError)
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise TokenizerError(f"{path}, line {number}: expected two tokens, found {line!r}")
        if (unknown := _unknown_token(pair, vocab)) is not None:
            raise TokenizerError(
                f"{path}, line {number}: {line!r} needs {unknown!r}: not in vocab.json"
            )
        merges.append(pair)
        made.add("".join(pair))
    # A file that was cut short at the end of a line shows in tokens that nothing makes.
    made |= {name for role in ROLES if (name := _token_text(config.get(role)))}
    bracketed = re.compile(r"<.+>|\[.+\]")  # <|endoftext|>, <s>, [PAD]: made by hand
    lost = [t for t in vocab if len(t) > 1 and t not in made and not bracketed.fullmatch(t)]
    if lost:
        raise TokenizerError(
            f"{path} has {len(merges)} merges, and {len(lost)} tokens of vocab.json come from none "
            f"of them ({a_few(map(repr, lost), 5)}): it is cut short, or from another tokenizer"
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [_special(ENDOFTEXT, vocab[ENDOFTEXT])] if ENDOFTEXT in vocab else [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _token_text(token: Any) -> str | None:
    """A token in a configuration is a str, or an object with its ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise TokenizerError(f"the configuration has {reading.in_words(text)} for a token")
    return text


def _special(token: str, id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": token, **flags, "special": True}


def _unknown_token(pair: Sequence[str], vocab: dict[str, int]) -> str | None:
    for token in (*pair, "".join(pair)):
        if token not in vocab:
            return token
    return None


def _groups(pieces: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """The pieces in order, GROUP characters of them at a time."""
    group: list[tuple[int, str]] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[1])
        if size >= GROUP:
            yield group
            group, size = [], 0
    yield group


def _alphabet() -> dict[str, int]:
    """GPT-2's way of writing bytes as characters: those that print as themselves, and the others as
    the characters from U+0100."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted({*range(256)} - {*visible})
    return {chr(b): b for b in visible} | {chr(256 + n): b for n, b in enumerate(others)}


def _flat(step: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """A step of a ``tokenizer.json``, or the steps of a Sequence, which has them in ``members``."""
    if step is None:
        return []
    if not isinstance(step, dict):
        raise TokenizerError(f"a step in it is {reading.in_words(step)}, expected an object")
    if step.get("type") == "Sequence":
        inside = reading.field({members: [], **step}, members, list, "it", TokenizerError)
        return [inner for member in inside for inner in _flat(member, members)]
    step = {"type": "without a name", **step}
    reading.field(step, "type", str, "a step in it", TokenizerError)
    return [step]


def _check_bpe(data: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Model and added tokens of a ``tokenizer.json``; ValueError for what ``BytePairs`` is not."""
    model = data.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("no model in it: not a tokenizer.json")
    usual = {**_special("", -1), "special": False}
    added = [{**usual, **token} for token in _objects(data.get("added_tokens"), "added_tokens")]
    for token in added:
        for key, value in usual.items():
            reading.field(token, key, type(value), "a token in added_tokens", TokenizerError)
    kind = model.get("type") or ("BPE" if "merges" in model else "without a name")
    found = [f"model {kind}"] if kind != "BPE" else []
    steps = _flat(data.get("pre_tokenizer"), "pretokenizers")
    names = [step["type"] for step in steps]
    if names.count("ByteLevel") != 1 or {*names} - {"ByteLevel", "Split", "Digits", "Punctuation"}:
        found.append(f"pre-tokenizer {', '.join(names) or 'none'}")
    for step in steps:
        if step["type"] == "ByteLevel" and step.get("add_prefix_space", True):
            found.append("add_prefix_space, which puts a space before every text")
        if step.get("behavior") == "Removed":
            found.append(f"a {step['type']} that removes text")
    for step in _flat(data.get("normalizer"), "normalizers"):
        if step["type"] != "NFC":
            found.append(f"normalizer {step['type']}")
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            found.append(f"{option} {model[option]!r}")
    for token in added:
        if not token["special"] and (token["lstrip"] or token["rstrip"]):
            found.append(f"token {token['content']!r} that swallows the spaces around it")
    if found:
        raise TokenizerError(
            f"only byte-level BPE of GPT-2's family is read here, found: {a_few(found, 6, '; ')}"
        )
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise TokenizerError("its model has no vocabulary or no merges")
    _check_vocabulary(model, {token["content"]: token["id"] for token in added})
    return model, added


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of objects, or nothing."""
    if value is not None and not isinstance(value, list):
        raise TokenizerError(f"{name} is {reading.in_words(value)}, expected a list")
    for one in value or []:
        if not isinstance(one, dict):
            raise TokenizerError(f"{name} holds {reading.in_words(one)}, expected objects")
    return value or []


def _check_vocabulary(model: dict[str, Any], added: dict[str, int]) -> None:
    vocab, alphabet = model["vocab"], _alphabet()
    tokens = {**vocab, **added}
    if bad := [t for t, i in tokens.items() if type(i) is not int or i < 0]:
        raise TokenizerError(f"the id of {bad[0]!r} is {tokens[bad[0]]!r}, not a number from 0")
    if bad := [t for t, i in added.items() if vocab.get(t, i) != i]:
        raise TokenizerError(f"token {bad[0]!r} has two ids, {vocab[bad[0]]} and {added[bad[0]]}")
    if len(set(tokens.values())) < len(tokens):
        first: dict[int, str] = {}
        one, two = next((first[i], t) for t, i in tokens.items() if first.setdefault(i, t) != t)
        raise TokenizerError(f"tokens {one!r} and {two!r} have the same id, {tokens[two]}")
    if missing := [f"0x{b:02x}" for c, b in alphabet.items() if c not in vocab or c in added]:
        raise TokenizerError(f"no token for the single bytes {a_few(missing, 5)}: not byte-level")
    if bad := [t for t in vocab if not alphabet.keys() >= set(t) and t not in added]:
        raise TokenizerError(f"token {bad[0]!r} is not written in GPT-2's alphabet of bytes")
    for number, merge in enumerate(model["merges"], 1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(token) for token in pair] != [str, str]:
            raise TokenizerError(f"merge {number} is {value_in_short(merge)}: expected two tokens")
        if (unknown := _unknown_token(pair, vocab)) is not None:
            raise TokenizerError(
                f"merge {number}, {merge!r}, needs {unknown!r}: not in the vocabulary"
            )


def _engine(text: str) -> tokenizers.Tokenizer:
    try:
        engine = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # what the package raises has no class of its own
        raise TokenizerError(f"the tokenizers package does not read it: {error}") from None
    engine.encode_special_tokens = True  # as ordinary text; the package does not save this
    return engine


# --- texts ----------------------------------------------------------------------------------------


def _check_text(text: str) -> None:
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


def _read_texts(sources: Iterable[str | Path]) -> Iterator[str]:
    """All text, in pieces of about CHUNK, cut where CUT allows it; one source after the other."""
    for source in sources:
        rest = ""
        for chunk in _chunks(source):
            rest += chunk
            end = len(rest) if len(rest) > LONGEST else 0
            if place := CUT_LAST.match(rest):
                end = place.end()
            if end:
                yield rest[:end]
                rest = rest[end:]
        if rest:
            yield rest


def _chunks(source: str | Path) -> Iterator[str]:
    if isinstance(source, Path):
        yield from _read_file(source)
        return
    _check_text(source)
    # 255 bytes is the longest name that there is: to ask for a longer one is an error
    short = len(source) < 256 and len(source.encode()) < 256
    if short and re.fullmatch(r".*[\\/.].*", source) and Path(source).is_file():
        raise TokenizerError(f"{source!r} is a file: give Path({source!r}); a str is taken as text")
    for start in range(0, len(source), CHUNK):
        yield source[start : start + CHUNK]


def _read_file(path: Path) -> Iterator[str]:
    if path.is_dir():
        raise TokenizerError(f"{path} is a folder: give its files, as sorted(folder.rglob('*'))")
    decoder = reading.Decoder(path, TokenizerError, "convert it first, or pass its text")
    with reading.system_errors(path, TokenizerError), path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _documents(sources: Iterable[str | Path]) -> Iterator[str]:
    """What a BPE learns from."""
    empty = True
    for text in _read_texts(sources):
        for part in text.split(ENDOFTEXT):
            empty = empty and not part
            yield part
    if empty:
        raise TokenizerError("there is no text to make a tokenizer from")


def _size(sources: Iterable[str | Path]) -> float:
    """About how many bytes of text; without an end for what can be read once only."""
    if not isinstance(sources, Sequence):
        return float("inf")
    with reading.system_errors("the files to learn from", TokenizerError):
        return sum(s.stat().st_size if isinstance(s, Path) else len(s) for s in sources)
