"""Byte-level BPE: GPT-2's, any other of its family, and one that is learned from text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import tokenizers

from addnorm import disk, reading
from addnorm.data.cuts import CUT
from addnorm.data.tokenizer.bpe_files import (
    FILE,
    ROLES,
    alphabet,
    check_bpe,
    expect_files,
    flat_steps,
    from_vocab_and_merges,
    read_config,
    special_token,
    token_text,
)
from addnorm.data.tokenizer.kind import ENDOFTEXT, TokenizerError, TokenizerKind

PIECE = 1 << 14  # characters encoded at a time; more does not go faster, and needs more memory
GROUP = 1 << 20  # characters the threads have at a time; an encoding has some 170 bytes for each


@final
class BytePairs(TokenizerKind):
    """Byte-level BPE.

    ``data``: what a ``tokenizer.json`` holds; ``config``: what a ``tokenizer_config.json`` holds.

    ``added`` are the tokens that are looked for before words are, special or not; ``may_cut``:
    whether a text may be encoded in parts that ``CUT`` finds, as ``packing`` and ``encode`` do.
    """

    name, file = "bpe", FILE

    def __init__(self, data: dict[str, Any], config: dict[str, Any]):
        self.config = config
        model, added = check_bpe(data)
        if config.get("add_prefix_space"):
            raise TokenizerError(
                "the configuration asks for a space before every text, as none does here"
            )
        for role in ROLES:
            name = token_text(config.get(role))
            if name is None or any(t["content"] == name and t["special"] for t in added):
                continue
            ids = {**model["vocab"], **{t["content"]: t["id"] for t in added}}  # of all tokens
            if name not in ids:
                raise TokenizerError(
                    f"the configuration names {role} {name!r}: no token is called so"
                )
            # Ordinary for the file, but special for whoever wrote the configuration.
            added = [t for t in added if t["content"] != name]
            added.append(special_token(name, ids[name]))
        self.vocab: dict[str, int] = model["vocab"]
        self.merges = [
            tuple(m.split(" ")) if isinstance(m, str) else (*m,) for m in model["merges"]
        ]
        self.added = sorted(added, key=lambda token: token["id"])
        self.ignore_merges = bool(model.get("ignore_merges"))
        self.normalizer = "NFC" if flat_steps(data.get("normalizer"), "normalizers") else None
        # Truncation and padding are saved by whoever last used them, and would act on every text.
        data = {**data, "added_tokens": self.added, "truncation": None, "padding": None}
        self._engine = _engine(json.dumps(data))
        for token in self.added:
            if (id := self._engine.token_to_id(token["content"])) != token["id"]:
                raise TokenizerError(
                    f"{token['content']!r} has id {token['id']}, but {id} is the next free one"
                )
        in_bytes = alphabet()
        literal = {token["content"]: token["id"] for token in self.added}
        ordinary = {t: i for t, i in self.vocab.items() if t not in literal}
        self.pieces = {i: bytes(in_bytes[c] for c in t) for t, i in ordinary.items()}
        self.pieces |= {i: token.encode() for token, i in literal.items()}
        self.special = {t["content"]: t["id"] for t in self.added if t["special"]}
        self.eos = token_text(config.get("eos_token"))
        if self.eos is None and ENDOFTEXT in self.special:
            self.eos = ENDOFTEXT
        self.pad = token_text(config.get("pad_token"))
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
        steps = flat_steps(json.loads(self._engine.pre_tokenizer.__getstate__()), "pretokenizers")
        leave_out = ("trim_offsets", "add_prefix_space")
        return [{k: v for k, v in step.items() if k not in leave_out} for step in steps]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """In pieces and groups of them, so that no more is in memory at once than GROUP says."""
        pieces = [(i, p) for i, text in enumerate(texts) for p in self._cut(text)]
        ids: list[list[int]] = [[] for _ in texts]
        for group in _groups(pieces):
            texts_of_group = [piece for _, piece in group]
            encodings = self._engine.encode_batch_fast(texts_of_group, add_special_tokens=False)
            for (i, _), encoding in zip(group, encodings, strict=True):
                ids[i] += encoding.ids
        return ids

    def _cut(self, text: str) -> Iterator[str]:
        """The text in pieces of about PIECE characters whose ids, joined, are its own; whole where
        no such cut is known."""
        start = 0
        while self.may_cut and (place := CUT.search(text, start + PIECE)):
            yield text[start : place.end()]
            start = place.end()
        yield text[start:]

    def content(self) -> dict[str, Any]:
        """The vocabulary, the merges, and how a text is normalized and split before them."""
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

    def with_special(self, names: Sequence[str]) -> "BytePairs":
        data, first = json.loads(self._engine.to_str()), max(self.pieces) + 1
        more = [special_token(name, first + i) for i, name in enumerate(names)]
        return BytePairs({**data, "added_tokens": [*data["added_tokens"], *more]}, self.config)

    def save(self, folder: Path) -> None:
        """tokenizer.json, and beside it what transformers asks for."""
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
        """From tokenizer.json, or else from vocab.json and merges.txt; without them, or where they
        are no byte-level BPE, a TokenizerError."""
        expect_files(folder)
        path, config = folder / cls.file, read_config(folder)
        if path.exists():
            data = reading.json_object(path, TokenizerError)
        else:
            path = folder / "vocab.json"
            data = from_vocab_and_merges(folder, config)
        try:
            return cls(data, config)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None

    @classmethod
    def train(cls, texts: Iterator[str], vocab_size: int, progress: bool) -> "BytePairs":
        """Learn merges, until there are ``vocab_size`` tokens or no pair comes twice. Ids as in
        GPT-2: the bytes, then the merges, then the special token. ``progress``: with a bar."""
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


def _groups(pieces: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """The pieces, (number of the text, characters of it), in order, GROUP characters of them at a
    time; the last group may be empty."""
    group: list[tuple[int, str]] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[1])
        if size >= GROUP:
            yield group
            group, size = [], 0
    yield group


def _engine(text: str) -> tokenizers.Tokenizer:
    """The tokenizer of the package ``tokenizers`` for the text of a ``tokenizer.json``, to which
    the text of a special token is text; a TokenizerError where the package refuses it."""
    try:
        engine = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # what the package raises has no class of its own
        raise TokenizerError(f"the tokenizers package does not read it: {error}") from None
    engine.encode_special_tokens = True  # as ordinary text; the package does not save this
    return engine
