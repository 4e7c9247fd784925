"""WordPiece: BERT's tokenizer, from its files, or learned from text.

A text is cleaned, for models without case made lower-case and stripped of accents, and cut into
words at whitespace, punctuation and around each Chinese character; a word is the longest token that
it begins with, then the longest that goes on from there, written with ``##``, and so on (Devlin et
al. 2019, arXiv 1810.04805; its code, https://github.com/google-research/bert/tokenization.py). So,
unlike the other kinds, it does not give a text back as it was: spacing is lost, by most models case
too, and what has no token is ``[UNK]``.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, WhitespaceSplit

from addnorm import disk, reading
from addnorm.data.cuts import CUT
from addnorm.data.tokenizer.bpe_files import FILE, read_config, token_text
from addnorm.data.tokenizer.kind import TokenizerError, TokenizerKind
from addnorm.errors import value_in_short
from addnorm.words import a_few

VOCABULARY = "vocab.txt"
ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""What a token is for -> how BERT writes it."""
INSIDE = "##"
"""What a token that goes on with a word is written with."""
FIRST_SIZE = 100
"""The fewest tokens that are learned."""
ALPHABET = 0.75
"""The largest share of single characters among the tokens that are learned."""
PIECE = 1 << 14  # characters encoded at a time
NORMALIZER: dict[str, Any] = {
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
"""What is done to a text, where nothing else is said."""


@final
class WordPieces(TokenizerKind):
    """WordPiece, from its vocabulary, token -> id.

    ``normalizer``: the options of NORMALIZER that are different.
    ``roles``: the tokens for cls, sep, mask, pad and unk; those of ROLES where nothing is said.
    ``config``: what tokenizer_config.json says besides, to be written again.
    """

    name, file, exact = "wordpiece", FILE, False

    def __init__(
        self,
        vocab: Mapping[str, int],
        normalizer: Mapping[str, Any] | None = None,
        roles: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.vocab = dict(sorted(vocab.items(), key=lambda pair: pair[1]))
        self.normalizer = {**NORMALIZER, **(normalizer or {})}
        self.cased = not self.normalizer["lowercase"]
        self.roles = {**ROLES, **(roles or {})}
        self.config = dict(config or {})
        if missing := [token for token in self.roles.values() if token not in self.vocab]:
            raise TokenizerError(f"the vocabulary has no {a_few(missing)}, which a BERT needs")
        if bad := [t for t, i in self.vocab.items() if type(i) is not int or i < 0]:
            raise TokenizerError(f"the id of {bad[0]!r} is {value_in_short(self.vocab[bad[0]])}")
        if len({*self.vocab.values()}) < len(self.vocab):
            raise TokenizerError("two tokens have the same id")
        self.special = {token: self.vocab[token] for token in self.roles.values()}
        self.pad, self.eos = self.roles["pad"], self.roles["sep"]
        ordinary = {t: i for t, i in self.vocab.items() if t not in self.special}
        self.pieces = {i: _piece(token) for token, i in ordinary.items()}
        self.pieces |= {i: f" {token}".encode() for token, i in self.special.items()}
        self._engine = self._made_engine()

    def _made_engine(self) -> tokenizers.Tokenizer:
        """The tokenizer of the ``tokenizers`` package that does the work, and writes the file."""
        unknown = self.roles["unk"]
        engine = tokenizers.Tokenizer(WordPiece(self.vocab, unk_token=unknown))
        engine.normalizer = BertNormalizer(**self.normalizer)
        engine.pre_tokenizer = BertPreTokenizer()
        engine.decoder = tokenizers.decoders.WordPiece()
        cls, sep = self.roles["cls"], self.roles["sep"]
        engine.post_processor = tokenizers.processors.BertProcessing(
            (sep, self.vocab[sep]), (cls, self.vocab[cls])
        )
        engine.add_special_tokens([*self.special])
        engine.encode_special_tokens = True  # in somebody's text they are text
        return engine

    def __getstate__(self) -> dict[str, Any]:
        # processes are sent the vocabulary, and make an engine of their own
        return {**self.__dict__, "_engine": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._engine = self._made_engine()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Text by text, in pieces that the engine takes; without [CLS] and [SEP]."""
        pieces = [(i, piece) for i, text in enumerate(texts) for piece in _cut(text)]
        encodings = self._engine.encode_batch_fast(
            [piece for _, piece in pieces], add_special_tokens=False
        )
        ids: list[list[int]] = [[] for _ in texts]
        for (i, _), encoding in zip(pieces, encodings, strict=True):
            ids[i] += encoding.ids
        return ids

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(ids, of each the (first, last + 1) of its characters in the text as it was given)."""
        pieces = [*_cut(text)]
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        first = 0
        for piece, encoding in zip(
            pieces, self._engine.encode_batch(pieces, add_special_tokens=False), strict=True
        ):
            ids += encoding.ids
            places += [(first + start, first + end) for start, end in encoding.offsets]
            first += len(piece)
        return ids, places

    def content(self) -> dict[str, Any]:
        return {"vocab": self.vocab, "normalizer": self.normalizer, "roles": self.roles}

    def save(self, folder: Path) -> None:
        """tokenizer.json, and beside it what transformers asks for, by which ``load`` knows the
        roles again."""
        disk.write_text(folder / self.file, self._engine.to_str(pretty=True))
        names = {f"{role}_token": token for role, token in self.roles.items()}
        config = {
            **self.config,
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.normalizer["lowercase"],
            "strip_accents": self.normalizer["strip_accents"],
            "tokenize_chinese_chars": self.normalizer["handle_chinese_chars"],
            **names,
        }
        disk.write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2))

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether the files of a folder are those of a WordPiece; a tokenizer.json decides before a
        vocab.txt."""
        if not (folder / FILE).exists():
            return (folder / VOCABULARY).exists()
        model = reading.json_object(folder / FILE, TokenizerError).get("model")
        return isinstance(model, dict) and model.get("type") == "WordPiece"

    @classmethod
    def load(cls, folder: Path) -> "WordPieces":
        """From tokenizer.json, or else from a BERT's vocab.txt; one of them must be there."""
        config = read_config(folder)
        roles = {r: name for r in ROLES if (name := token_text(config.get(f"{r}_token")))}
        path = folder / cls.file
        if path.exists():
            vocab, normalizer = _of_json(reading.json_object(path, TokenizerError), path)
        else:
            path = folder / VOCABULARY
            vocab, normalizer = (
                _of_lines(path),
                {
                    "lowercase": config.get("do_lower_case", True),
                    "strip_accents": config.get("strip_accents"),
                    "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
                },
            )
        try:
            return cls(vocab, normalizer, roles, config)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, progress: bool, cased: bool = False
    ) -> "WordPieces":
        """Learn the tokens: the special ones, single characters, and what joins most often.

        The same text gives the same tokens, ``vocab_size`` of them, or fewer if no two come
        together twice any more. Rare characters are left out where the others take three quarters
        of the vocabulary. ``progress``: with a bar. ``cased``: case and accents stay.
        """
        if vocab_size < FIRST_SIZE:
            raise TokenizerError(f"vocab_size is {vocab_size}: at least {FIRST_SIZE} are learned")
        normalizer = {**NORMALIZER, "lowercase": not cased}
        words = _counted(texts, normalizer)
        first = [*ROLES.values(), *_alphabet(words, int(vocab_size * ALPHABET))]
        engine = tokenizers.Tokenizer(WordPiece({}, unk_token=ROLES["unk"]))
        engine.pre_tokenizer = WhitespaceSplit()
        single = [token for token in first if len(token) == 1]
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            # they get their ids in this order; else it is that of a hash table
            special_tokens=first,
            initial_alphabet=single,
            limit_alphabet=len(single),
            show_progress=progress,
        )
        engine.train_from_iterator(_repeated(words), trainer)
        return cls(engine.get_vocab(), normalizer)


def _piece(token: str) -> bytes:
    """A token's bytes: a word begins with a space, which is left out where a text begins."""
    inside = token.startswith(INSIDE) and len(token) > len(INSIDE)
    return (token.removeprefix(INSIDE) if inside else f" {token}").encode()


def _cut(text: str) -> Iterator[str]:
    """A text in parts of some ``PIECE`` characters, the last one shorter, which have the same
    tokens as the whole: they are cut at whitespace, where no word goes on."""
    start = 0
    while place := CUT.search(text, start + PIECE):
        yield text[start : place.end()]
        start = place.end()
    yield text[start:]


# --- files ----------------------------------------------------------------------------------------


def _of_lines(file: Path) -> dict[str, int]:
    """Token -> id, of a vocab.txt with a token in each line, whose id is the number of the line
    from 0; a TokenizerError where one stands twice, or none."""
    lines = reading.lines(file, TokenizerError)
    if lines:
        reading.check_no_pointer(file, lines[0], TokenizerError)
    while lines and not lines[-1]:
        lines.pop()
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines):
        token = line.rstrip("\r")
        if token in vocab:
            raise TokenizerError(
                f"{file}, line {number + 1}: {token!r} is in line {vocab[token] + 1} as well"
            )
        vocab[token] = number
    if not vocab:
        raise TokenizerError(f"{file} holds no token")
    return vocab


def _of_json(data: Mapping[str, Any], file: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """(the vocabulary, the normalizer's options) of a tokenizer.json; what is another tokenizer's,
    or damaged, is a ``TokenizerError``."""
    model, normalizer = data.get("model"), data.get("normalizer")
    before = data.get("pre_tokenizer")
    foreign = []
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"{file} has no vocabulary: it is damaged")
    if model.get("continuing_subword_prefix", INSIDE) != INSIDE:
        foreign.append(f"continuing_subword_prefix {model['continuing_subword_prefix']!r}")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        foreign.append(f"normalizer {value_in_short(normalizer)}")
    if not isinstance(before, dict) or before.get("type") != "BertPreTokenizer":
        foreign.append(f"pre-tokenizer {value_in_short(before)}")
    vocab = dict(model["vocab"])
    for token in data.get("added_tokens") or []:
        name = token.get("content") if isinstance(token, dict) else None
        if not isinstance(name, str) or vocab.setdefault(name, token.get("id")) != token.get("id"):
            raise TokenizerError(f"{file}: the added token {value_in_short(token)} is damaged")
        if not token.get("special", False):
            foreign.append(f"the added token {name!r}, which is not special")
    if foreign:
        raise TokenizerError(f"{file}: only BERT's WordPiece is read here, found {a_few(foreign)}")
    assert isinstance(normalizer, dict)
    return vocab, {name: normalizer[name] for name in NORMALIZER if name in normalizer}


# --- learning -------------------------------------------------------------------------------------


def _counted(texts: Iterable[str], normalizer: Mapping[str, Any]) -> Counter[str]:
    """How often each word is there, as the normalizer with these options leaves it."""
    normal, splitter = BertNormalizer(**normalizer), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        for piece in _cut(text):
            clean = normal.normalize_str(piece)
            words.update(word for word, _ in splitter.pre_tokenize_str(clean))
    if not words:
        raise TokenizerError("there is no text to make a tokenizer from")
    return words


def _alphabet(words: Mapping[str, int], most: int) -> list[str]:
    """Single characters, those inside words with ##, the most frequent ones if they are too many;
    in the order of their code points."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        counts[word[0]] += count
        for character in word[1:]:
            counts[character] += 0  # so that a word that is cut there can be written
            counts[INSIDE + character] += count
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return sorted(ranked[:most], key=lambda token: (len(token), token))


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    """Texts that together have each word as often as it was counted, at most 1000 copies in one,
    so that no text is long; in the order of the words, since the same words have to give the same
    tokens, in whichever order they were counted."""
    for word in sorted(words):
        count = words[word]
        while count > 0:
            yield " ".join([word] * min(count, 1000))
            count -= 1000
