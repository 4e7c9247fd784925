"""What tasks on texts have in common: checks of their settings, and the choice of a tokenizer.

A tokenizer that is learned from the text is kept, in the folder of the tokenized data, under a hash
of all that decides it: it is learned once, and every later start and process finds the same.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from addnorm import reading
from addnorm.data.sources import DataError, Source, open_source
from addnorm.data.tokenizer import Tokenizer, TokenizerError
from addnorm.errors import Mendable
from addnorm.files import folders
from addnorm.files.folders import WeightsError
from addnorm.settings import SettingsError
from addnorm.training.loop_settings import LoopSettings

FORMAT = 1  # changes whenever the same text would give another tokenizer
UNCASED, CASED = "wordpiece", "wordpiece-cased"
LEARNED = {"bpe": 257, UNCASED: 100, CASED: 100}
"""The kinds that are learned, to a size -> the fewest tokens: of a byte-level BPE the bytes and the
end of a text."""
MOST_TOKENS = 1 << 20  # far beyond any use: more is a slip of the finger


def check(tokenizer: str, val_fraction: float, dropout: float) -> None:
    """Raise a ``SettingsError`` if one of these settings, which all tasks on texts have, makes no
    sense; whether a tokenizer is where one is named is not looked at."""
    _learned(tokenizer)
    if not 0.0 < val_fraction < 1.0:
        raise SettingsError(
            f"val_fraction must be between 0 and 1, both excluded, got {val_fraction:g}"
        )
    if not 0.0 <= dropout < 1.0:
        raise SettingsError(f"dropout must be in [0, 1), got {dropout:g}")


def refuse_muon(loop: LoopSettings) -> None:
    """Raise a ``SettingsError`` if the optimizer of a recurrent model is Muon, which is for the
    matrices of a Transformer's stack, of which there are none."""
    if loop.optimizer == "muon":
        raise SettingsError(
            "optimizer=muon is for the matrices of a Transformer's blocks, and a recurrent model "
            "has none: use optimizer=adamw"
        )


def expanded(key: str, path: str | Path) -> Path:
    """The path of a setting, with the home folder for a ~; a ``SettingsError`` that begins with its
    ``key`` where it cannot be one."""
    try:
        return reading.place(path, SettingsError)
    except SettingsError as error:
        raise SettingsError(f"{key}={error}") from None


def opened(data: str) -> Source:
    """The source that the setting data names; a ``SettingsError`` if it is empty, a ``DataError``
    that begins with it where there is no such text."""
    if not data:
        raise SettingsError("data is not set: a text file, a folder, a .jsonl file or hf:NAME")
    try:
        return open_source(data)
    except DataError as error:
        raise DataError(f"data={data}: {error}") from None


def chosen(
    setting: str,
    texts: Callable[[], Iterable[str]],
    decides: Callable[[], Sequence[Any]],
    cache: Path,
    characters: Callable[[], Iterable[str]] | None = None,
    name: str = "tokenizer",
) -> Tokenizer:
    """What the setting names: "bytes", "bpe:SIZE", "wordpiece:SIZE", "wordpiece-cased:SIZE", a
    folder or a hub id, and "characters" where the task says which text has all of them.

    What is learned learns from ``texts``, unless ``cache`` holds one that learned from the same:
    ``decides`` is what they depend on, as JSON can hold it. ``characters`` are all texts that a
    tokenizer of characters has to be able to write. Each is called only where it is needed.
    ``name`` is the setting's, for messages.
    """
    if setting == "bytes":
        return Tokenizer.bytes()
    if setting == "characters" and characters is not None:
        return Tokenizer.characters(characters())
    learned = _learned(setting, name)
    if learned is not None:
        card = json.dumps([FORMAT, *learned, *decides()])
        key = hashlib.sha256(card.encode()).hexdigest()[:16]
        return _learned_once(cache / f"tokenizer-{key}", texts, *learned, name)
    try:
        return Tokenizer.from_pretrained(setting)
    except Mendable as error:
        names = ["bytes", *([] if characters is None else ["characters"]), "bpe:SIZE"]
        words = f"{', '.join(names)}, {UNCASED}:SIZE or {CASED}:SIZE"
        raise SettingsError(
            f"{name}={setting} is not {words}, and not a folder or hub id with a tokenizer: {error}"
        ) from None


def fits(setting: str, tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is one that the setting names; of one that is learned, whatever from, and
    with special tokens that came later or without."""
    learned = _learned(setting)
    if learned is not None:
        kind, size = learned
        later = max(len(tokenizer.special) - 1, 0)  # a learned BPE has one of itself: the end
        alike = (tokenizer.kind, tokenizer.cased) == (kind.removesuffix("-cased"), kind != UNCASED)
        return alike and size in (tokenizer.vocab_size, tokenizer.vocab_size - later)
    if setting in ("bytes", "characters"):
        return tokenizer.kind == setting
    # Nothing is learned any more, so that texts and cache do not matter.
    return chosen(setting, list, list, Path()).identity == tokenizer.identity


def _learned(setting: str, name: str = "tokenizer") -> tuple[str, int] | None:
    """(kind, size) of the tokenizer, if the setting asks for one that is learned; None: it does
    not. A size that cannot be is a ``SettingsError``."""
    kind, _, size = setting.partition(":")
    if kind not in LEARNED:
        return None
    least = LEARNED[kind]
    # 7 digits hold MOST_TOKENS; int() refuses thousands of them, with an error of its own
    if not size.isdecimal() or len(size) > 7 or not least <= int(size) <= MOST_TOKENS:
        raise SettingsError(
            f"{name}={setting}: say how many tokens, at least {least} and at most "
            f"{MOST_TOKENS:,}, as in {kind}:4096"
        )
    return kind, int(size)


def _learned_once(
    folder: Path, texts: Callable[[], Iterable[str]], kind: str, size: int, name: str
) -> Tokenizer:
    """The tokenizer that is stored in the folder; if there is none, or it is damaged, which is
    warned of, a new one of ``size`` tokens is learned and stored first. ``name``: of the setting,
    for the ``DataError`` where that cannot be."""
    if folder.exists():
        try:
            return _stored(folder)
        except Mendable as error:
            warnings.warn(f"{error}. The tokenizer is learned again", stacklevel=2)
    try:
        tokenizer = Tokenizer.train(texts(), vocab_size=size, kind=kind)
    except TokenizerError as error:
        raise DataError(f"{name}={kind}:{size} cannot be learned: {error}") from None
    try:
        folders.write(folder, tokenizer.save)
    except OSError as error:
        if not folder.is_dir():  # else somebody else was faster
            raise DataError(f"cannot write to {folder.parent}: {error.strerror}") from None
    return _stored(folder)


def _stored(folder: Path) -> Tokenizer:
    """The tokenizer in a folder; a ``Mendable`` unless it is what was written there, to the
    byte."""
    if not folders.verify(folder):
        raise WeightsError(f"{folder / folders.CHECKSUMS} is missing")
    return Tokenizer.from_pretrained(folder)
