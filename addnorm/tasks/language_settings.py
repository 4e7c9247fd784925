"""What the training of any language model has for settings: its data, and what is asked of it."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from addnorm.data.preparation import prepare, training_texts
from addnorm.data.prepared import Prepared
from addnorm.data.sources import Source
from addnorm.data.tokenizer import Tokenizer
from addnorm.settings import AtResume, SettingsError, check_effect, setting
from addnorm.tasks.texts import check, chosen, expanded
from addnorm.training.config import TaskSettings

MOST_SAMPLES = 100  # each takes about a second of every evaluation
SOURCES = {
    "content": "data",
    "tokenizer": "tokenizer",
    "rows_per_step": "tokens_per_step",
    "context": "model.context_length",
}
"""Fact of a task -> the setting that it comes from."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelSettings(TaskSettings, ABC):
    """The settings of a language model's training, whatever the model, apart from the loop's."""

    data: str = setting("stdlib", AtResume.IF_SAME)
    """A text file, a folder, a .jsonl file, hf:NAME, or stdlib: the source of Python's library."""
    tokenizer: str = setting("bytes", AtResume.IF_SAME)
    """bytes, characters, bpe:SIZE (learned from the data), or a folder or hub id with one."""
    split: Literal["auto", "documents", "tail"] = setting("auto", AtResume.ANEW)
    """What is held out: whole documents, or the end of each; auto: documents, if there are many."""
    val_fraction: float = setting(0.1, AtResume.ANEW)
    """How much of the data is held out."""
    tokens_per_step: int = setting(8192, AtResume.BY_TUNING)
    """Tokens in one optimizer step, over all micro-batches and processes."""
    document_mask: bool = setting(False, AtResume.BY_TUNING)
    """Tokens see nothing of the documents before theirs, in training and in evaluations."""
    dropout: float = setting(0.0, AtResume.WITH_NOTICE)
    """In embeddings, attention and branches."""
    z_loss: float = setting(0.0, AtResume.WITH_NOTICE)
    """Times the squared logarithm of the softmax's denominator (Chowdhery et al. 2022): 1e-4."""
    samples: int = setting(3, AtResume.FREELY)
    """Texts to write at evaluations, for whoever watches."""
    glance_tokens: int = setting(1 << 16, AtResume.WITH_NOTICE)
    """Tokens of the held-out data that evaluations before the last one see."""
    cache: Path = setting(Path("~/.cache/addnorm/data"), AtResume.FREELY)
    """Where tokenized data and learned tokenizers are kept."""

    def __post_init__(self) -> None:
        check_effect(self)
        check(self.tokenizer, self.val_fraction, self.dropout)
        for name in ("tokens_per_step", "glance_tokens"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.samples <= MOST_SAMPLES:
            raise SettingsError(f"samples must be between 0 and {MOST_SAMPLES}, got {self.samples}")
        if self.z_loss < 0:
            raise SettingsError(f"z_loss must not be negative, got {self.z_loss:g}")

    def by_heart(self) -> Mapping[str, Any]:
        """No dropout, and the loss alone."""
        return {"dropout": 0.0, "z_loss": 0.0}

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """The settings behind a fact; the tokenizer too where it is of characters and another one
        now, since what was read decides it."""
        keys = [SOURCES[fact]] if fact in SOURCES else []
        if self.tokenizer == "characters" and then.get("tokenizer") != now.get("tokenizer"):
            keys.append("tokenizer")  # the new text may have some that the weights do not know
        return keys

    def prepared(self, source: Source, tokenizer: Tokenizer) -> Prepared:
        """The tokens of the data, both splits, on disk: from the cache, or put there now."""
        return prepare(
            source,
            tokenizer,
            expanded("cache", self.cache),
            val_fraction=self.val_fraction,
            split=self.split,
        )

    def own_tokenizer(self, source: Source) -> Tokenizer:
        """The tokenizer that the setting names; one that is learned learns from the training text
        of ``source``. A ``SettingsError`` for one that does not give a text back as it was."""
        split, share = self.split, self.val_fraction
        tokenizer = chosen(
            self.tokenizer,
            texts=lambda: training_texts(source, val_fraction=share, split=split),
            decides=lambda: [source.identity(), split, share],
            cache=expanded("cache", self.cache),
            # all there are: one that only the held-out text has is no secret
            characters=source.documents,
        )
        if not tokenizer.exact:
            raise SettingsError(
                f"tokenizer={self.tokenizer}: {tokenizer.kind} loses case and spacing, which a "
                "language model is to write: use bytes, characters or bpe:SIZE"
            )
        return tokenizer
