"""Masked language modelling: a ``Bert`` on text of one's own, or on from published weights.

A row is [CLS], a window of the text, [SEP]; documents follow each other with a [SEP] between them,
as in RoBERTa's FULL-SENTENCES (Liu et al. 2019, arXiv 1907.11692, section 4.2), which also found
that predicting the next sentence does not help, so nothing of it is learned here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.data.masking import IGNORED, Masking
from addnorm.data.preparation import prepare, training_texts
from addnorm.data.prepared import Prepared, Tokens
from addnorm.data.rows import padded
from addnorm.data.sources import DataError
from addnorm.data.tokenizer import Tokenizer
from addnorm.data.windows import Windows
from addnorm.errors import Mendable
from addnorm.files import bert
from addnorm.models.bert import Bert
from addnorm.models.bert_config import BertConfig
from addnorm.settings import (
    AT_RESUME,
    HIDDEN,
    NEEDS,
    AtResume,
    SettingsError,
    check_effect,
    setting,
)
from addnorm.tasks.beginnings import FROM_NOTHING, opened_as
from addnorm.tasks.examples import WORST, Filling, Picture, worst_fillings
from addnorm.tasks.texts import check, chosen, expanded, opened
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.parallel import here, sum_dtype
from addnorm.training.task import Batch, Best, Task

AROUND = 2  # [CLS] and [SEP]
EVAL_TOKENS = 1 << 14  # in one forward of an evaluation
HELD_OUT = 1 << 32  # in the key of the masks of the held-out text: no seed of a run is as large
SHOWN = 12  # tokens on each side of a masked one that is shown
SOURCES = {
    "content": ["data"],
    "tokenizer": ["tokenizer"],
    "rows_per_step": ["tokens_per_step"],
    "masks": ["masked", "whole_words"],
    "model": ["init_from"],
    "start": ["init_from"],
}
"""Fact of a task -> the settings that it comes from."""


@final
@register
@dataclass(frozen=True, kw_only=True)
class PretrainBertSettings(TaskSettings):
    """The settings of a masked language model's training, apart from the loop's."""

    name = "pretrain_bert"
    data: str = setting("stdlib", AtResume.IF_SAME)
    """A text file, a folder, a .jsonl file, hf:NAME, or stdlib: the source of Python's library."""
    tokenizer: str = setting("wordpiece:8192", AtResume.IF_SAME, FROM_NOTHING)
    """wordpiece:SIZE, without case, or wordpiece-cased:SIZE (learned from the data), or a folder or
    hub id with a WordPiece."""
    split: Literal["auto", "documents", "tail"] = setting("auto", AtResume.ANEW)
    """What is held out: whole documents, or the end of each; auto: documents, if there are many."""
    val_fraction: float = setting(0.1, AtResume.ANEW)
    """How much of the data is held out."""
    tokens_per_step: int = setting(8192, AtResume.BY_TUNING)
    """Tokens in one optimizer step, over all micro-batches and processes."""
    masked: float = setting(0.15, AtResume.BY_TUNING)
    """The share of the tokens that the model is asked for."""
    whole_words: bool = setting(False, AtResume.BY_TUNING)
    """Mask all pieces of a word together; of Chinese each character is a word."""
    dropout: float = setting(0.1, AtResume.WITH_NOTICE)
    """In embeddings, attention and branches."""
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of a BERT to start from; its model settings and tokenizer are taken."""
    samples: int = setting(3, AtResume.FREELY)
    """Masked tokens that are shown at evaluations, with what the model takes them for."""
    glance_tokens: int = setting(1 << 16, AtResume.WITH_NOTICE)
    """Tokens of the held-out data that evaluations before the last one see."""
    cache: Path = setting(Path("~/.cache/addnorm/data"), AtResume.FREELY)
    """Where tokenized data and learned tokenizers are kept."""
    model: BertConfig = field(
        default_factory=lambda: BertConfig(
            vocab_size=1, context_length=128, dim=256, n_layers=4, n_heads=4
        ),
        metadata={
            HIDDEN: (
                *("vocab_size", "head", "labels", "several"),
                *("dropout", "attention_dropout", "head_dropout"),
            ),
            AT_RESUME: AtResume.ANEW,
            NEEDS: (FROM_NOTHING,),
        },
    )

    def __post_init__(self) -> None:
        check_effect(self)
        check(self.tokenizer, self.val_fraction, self.dropout)
        for name in ("tokens_per_step", "glance_tokens"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.samples <= 100:
            raise SettingsError(f"samples must be between 0 and 100, got {self.samples}")
        if not 0.0 < self.masked < 1.0:
            raise SettingsError(
                f"masked must be between 0 and 1, both excluded, got {self.masked:g}"
            )
        if self.model.context_length <= AROUND:
            raise SettingsError(
                "model.context_length must be at least 3: [CLS] and [SEP] are around the text"
            )

    def by_heart(self) -> Mapping[str, Any]:
        """No dropout."""
        return {"dropout": 0.0}

    def begins_another(self, then: Mapping[str, Any]) -> bool:
        """It can: the model that was made is a BERT."""
        return True

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """The settings behind a fact."""
        return SOURCES.get(fact, [])

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "PretrainBertTask":
        """Read and tokenize the data, and make the task of it; all ``choices`` count."""
        source = opened(self.data)
        config, start = replace(self.model, dropout=self.dropout), None
        if self.init_from is None:
            tokenizer = chosen(
                self.tokenizer,
                texts=lambda: training_texts(
                    source, val_fraction=self.val_fraction, split=self.split
                ),
                decides=lambda: [source.identity(), self.split, self.val_fraction],
                cache=expanded("cache", self.cache),
            )
            config = replace(
                config, vocab_size=tokenizer.vocab_size, attention_dropout=self.dropout
            )
        else:
            read = partial(_masked, dropout=self.dropout)
            config, tokenizer, start = opened_as(read, self.init_from)
        try:
            masking = Masking(tokenizer, self.masked, self.whole_words)
        except Mendable as error:
            where = "tokenizer" if self.init_from is None else "init_from"
            value = self.tokenizer if self.init_from is None else self.init_from
            raise SettingsError(f"{where}={value}: {error}") from None
        data = prepare(
            source,
            tokenizer,
            expanded("cache", self.cache),
            val_fraction=self.val_fraction,
            split=self.split,
        )
        return PretrainBertTask(self, config, tokenizer, data, masking, start)


def _masked(folder: Path, dropout: float) -> BertConfig:
    """The configuration of a BERT's folder, with the head masked. ``dropout`` replaces its own."""
    config = bert.inspect(folder, dropout).config
    return replace(config, head="masked", labels=2)  # 2: what it is without a head for labels


@final
class PretrainBertTask(Task):
    """Masked tokens of windows of prepared data.

    ``settings``: those of the training. ``config``: the model's. ``tokenizer``, ``data``: what the
    text is read as. ``masking``: what is asked for. ``start``: which weights it begins with; None:
    new ones.
    """

    best = Best("val_loss", "min")
    noun = "A masked language model"
    unit = "masked tokens"
    commands = MappingProxyType(
        {
            "Teach it a use": "addnorm train --recipe finetune_bert init_from={model} "
            "--data LABELLED.csv",
        }
    )

    def __init__(
        self,
        settings: PretrainBertSettings,
        config: BertConfig,
        tokenizer: Tokenizer,
        data: Prepared,
        masking: Masking,
        start: str | None = None,
    ) -> None:
        self.settings, self.config, self.tokenizer, self.data = settings, config, tokenizer, data
        self.masking, self.start = masking, start
        self.room = config.context_length - AROUND
        self.rows = max(1, round(settings.tokens_per_step / config.context_length))
        self.tokens: dict[str, Tokens] = {name: data.split(name) for name in ("train", "val")}
        self._windows: dict[tuple[str, int], Windows] = {}
        self._pictures: list[Picture] = []
        self._ends = np.array([tokenizer.role_id("cls")]), np.array([tokenizer.role_id("sep")])
        try:
            self.windows("train", 0)  # refuses data that is too short, before a model is made
        except DataError as error:
            raise DataError(
                f"{error} (model.context_length={config.context_length}, "
                f"val_fraction={settings.val_fraction:g}, data={settings.data})"
            ) from None

    def windows(self, split: str, seed: int) -> Windows:
        """The windows of a split in the order in which ``seed`` reads them, made once and kept."""
        key = split, seed
        if key not in self._windows:
            self._windows[key] = Windows(self.tokens[split], self.room, seed)
        return self._windows[key]

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the ids of a step, and of each micro-batch the logits of masked tokens with
        their gradient and what every layer keeps of the stream."""
        c, s = self.config, self.settings
        parameters, trained = counted(self._empty, c.n_layers)
        own = -(-self.rows // processes)
        tokens = min(micro_rows or own, own) * c.context_length
        # bytes: an id and its target are 16; logits and stream are in float32
        batch = own * c.context_length * 16
        batch += int(tokens * 4 * (2 * c.vocab_size * s.masked + 2 * c.n_layers * c.dim))
        names = ("context_length", "dim", "n_layers", "hidden")
        because = ", ".join(f"model.{n}={getattr(c, n)}" for n in names)
        because += f", tokens_per_step={s.tokens_per_step}, micro_rows={micro_rows}"
        because += f", a vocabulary of {c.vocab_size:,}"
        return Needs(parameters, trained, c.n_layers * MODULES, batch, because)

    def _empty(self, layers: int) -> Bert:
        """The model with ``layers`` layers, on the meta device."""
        with torch.device("meta"):
            return Bert(replace(self.config, n_layers=layers))

    def model(self) -> Bert:
        """A new model, or the one that ``init_from`` names, with a head for tokens."""
        if self.settings.init_from is None:
            return Bert(self.config)
        return bert.load(self.settings.init_from, dropout=self.settings.dropout, head="masked")[0]

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's: ``ids`` and ``targets``, both (rows, T)."""
        first, count = step * self.rows + rank, max(self.rows - rank, 0)
        # a window comes with the token after it, which only a causal model predicts
        texts = self.windows(split, seed).rows(first, count, world)[:, :-1]
        batch = self._masked(list(texts), [[seed, first + i * world] for i in range(len(texts))])
        return {name: batch[name] for name in ("ids", "targets")}  # all of them are real

    def _masked(
        self, texts: Sequence[NDArray[np.int64]], keys: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """``ids``, ``valid`` and ``targets``, (rows, T), of texts with [CLS] and [SEP] around them;
        ``keys``: of each text what decides its masks."""
        cls, sep = self._ends
        rows = [
            self.masking.row(np.concatenate([cls, text, sep]), key)
            for text, key in zip(texts, keys, strict=True)
        ]
        targets = padded([row.targets for row in rows], IGNORED)["ids"]
        return {**padded([row.ids for row in rows]), "targets": targets}

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows."""
        return self.batch(split, seed, step, 0, self.rows)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy of the masked tokens, in float32, summed; ``masked_accuracy``: how many of
        them are the most probable one."""
        at = batch["targets"] != IGNORED
        logits, targets = self._logits(model, batch, at), batch["targets"][at]
        nll = F.cross_entropy(logits, targets, reduction="sum")
        right = (logits.argmax(-1) == targets).sum()
        return nll, at.sum(), {"masked_accuracy": right}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats per masked token of the whole validation split, and how many are found."""
        return self._score(model, len(self.tokens["val"]))

    def glance(self, model: nn.Module) -> dict[str, float]:
        """The same of the beginning of the validation split."""
        return self._score(model, self.settings.glance_tokens)

    def _score(self, model: nn.Module, limit: int) -> dict[str, float]:
        """val_loss and masked_accuracy of the first ``limit`` tokens held out: windows side by
        side, the masks of each always the same. By all processes together: each must call it, and
        gets the same."""
        device = next(model.parameters()).device
        world = here(device)
        windows = list(range(-(-min(len(self.tokens["val"]), limit) // self.room)))
        step = max(1, EVAL_TOKENS // self.config.context_length) * world.size
        # of each: nats, masked tokens, those found; each process fills its own rows, the others are
        # 0, so that the sum over processes is all of them
        sums = torch.zeros(len(windows), 3, dtype=torch.float64)
        with evaluation_mode(model.modules()), torch.no_grad():
            for first in range(0, len(windows), step):
                mine = windows[first : first + step][world.rank :: world.size]
                # A process without a window computes one all the same: a sharded model needs all.
                batch = {n: t.to(device) for n, t in self._held_out(mine or windows[:1]).items()}
                at = batch["targets"] != IGNORED
                logits, targets = self._logits(model, batch, at), batch["targets"][at]
                nll = F.cross_entropy(logits, targets, reduction="none")
                numbers = torch.stack([nll, torch.ones_like(nll), logits.argmax(-1) == targets], -1)
                if mine:
                    which = torch.tensor(mine)[at.nonzero()[:, 0].cpu()]
                    sums.index_add_(0, which, numbers.cpu().double())
            sums = world.total(sums.to(sum_dtype(device))).double().cpu()
            self._pictures = self._worst(model, sums)
        nats, count, right = sums.sum(0).tolist()
        return {"val_loss": nats / max(count, 1), "masked_accuracy": right / max(count, 1)}

    def _logits(self, model: nn.Module, batch: Batch, at: Tensor) -> Tensor:
        """(N, vocabulary) in float32, of the N masked places, which are True in ``at``."""
        logits: Tensor = model(batch["ids"], batch.get("valid"), at=at).float()
        return logits

    def _worst(self, model: nn.Module, sums: Tensor) -> list[Picture]:
        """What is filled into the windows of the greatest loss; ``sums`` has a row for each, nats
        and masked tokens at its beginning."""
        nats, count = sums[:, 0], sums[:, 1]
        means = nats / count.clamp(min=1)
        means[count < count.mean() / 2] = 0.0  # of a few tokens it is chance
        worst = [i for i in means.argsort(descending=True)[:WORST].tolist() if means[i] > 0]
        if not worst:
            return []
        device = next(model.parameters()).device
        batch = self._held_out(worst)
        at = batch["targets"] != IGNORED
        on_device = {n: t.to(device) for n, t in batch.items()}
        guesses = iter(self._logits(model, on_device, at.to(device)).argmax(-1).tolist())
        rows = zip(worst, batch["ids"], batch["valid"], batch["targets"], strict=True)
        fillings = []
        for i, ids, valid, targets in rows:
            parts: list[tuple[str, str | None]] = []
            text = ids[valid].tolist()[1:-1]  # without [CLS] and the last [SEP]
            for id, target in zip(text, targets[1:].tolist(), strict=False):
                masked = target != IGNORED
                guess = self._text(next(guesses)) if masked else None
                parts.append((self._text(target if masked else id), guess))
            fillings.append(Filling(parts, float(means[i])))
        return worst_fillings(fillings, len(sums))

    def _text(self, id: int) -> str:
        """What a token adds to a text, with the space before it."""
        return self.tokenizer.decode_bytes([id]).decode("utf-8", "replace")

    def pictures(self) -> list[Picture]:
        """What is filled in where the last evaluation found the greatest loss."""
        return self._pictures

    def _held_out(self, windows: Sequence[int]) -> dict[str, Tensor]:
        """``ids``, ``valid`` and ``targets`` of these windows of the validation split, by their
        numbers; the last of the split is shorter, and filled up."""
        tokens, texts = self.tokens["val"], []
        for start in (self.room * n for n in windows):
            text = tokens.read(start, min(start + self.room, len(tokens)))
            texts.append(text.astype(np.int64))
        return self._masked(texts, [[HELD_OUT, n] for n in windows])

    def sample(self, model: nn.Module) -> list[str]:
        """Masked tokens of the held-out text, and what the model takes them for."""
        if not isinstance(model, Bert) or not self.settings.samples:
            return []
        batch, lines = self._held_out([0]), []
        device = next(model.parameters()).device
        with evaluation_mode(model.modules()), torch.no_grad():
            at = (batch["targets"] != IGNORED).to(device)
            guesses = model(batch["ids"].to(device), at=at).argmax(-1).tolist()
        ids, targets = batch["ids"][0], batch["targets"][0]
        places = (targets != IGNORED).nonzero()[:, 0].tolist()
        for place, guess in list(zip(places, guesses, strict=True))[: self.settings.samples]:
            left = self.tokenizer.decode(ids[max(1, place - SHOWN) : place].tolist())
            right = self.tokenizer.decode(ids[place + 1 : place + 1 + SHOWN].tolist())
            truth, word = (self.tokenizer.decode([i]) for i in (int(targets[place]), guess))
            verdict = "right" if truth == word else f"it is {truth}"
            lines.append(f"{left} [{word}] {right} ({verdict})")
        return lines

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``Bert.from_pretrained``, transformers and the recipe finetune_bert."""
        assert isinstance(model, Bert)
        bert.save(model, folder, tokenizer=self.tokenizer)

    def facts(self) -> dict[str, Any]:
        """The data, the tokenizer, the rows and masks of a step, what the model is and which
        weights it began with."""
        aside = ("dropout", "attention_dropout", "head_dropout")
        model = {key: value for key, value in asdict(self.config).items() if key not in aside}
        return {
            "content": self.data.summary.content,
            "tokenizer": self.tokenizer.identity,
            "rows_per_step": self.rows,
            "masks": [self.masking.share, self.masking.whole_words],
            "model": model,
            **({} if self.start is None else {"start": self.start}),
        }

    def introduction(self) -> list[str]:
        """The data, and what follows from tokens_per_step."""
        c, what = self.config, "words" if self.masking.whole_words else "tokens"
        parameters, _ = counted(self._empty, c.n_layers)
        epoch = len(self.windows("train", 0)) / self.rows
        return [
            str(self.data.summary),
            f"model: {parameters:,} parameters, {c.scheme}, {c.n_layers} layers of width {c.dim}, "
            f"context {c.context_length}, vocabulary {c.vocab_size:,}",
            f"step: {self.rows} rows of {c.context_length} tokens, {self.masking.share:.0%} of "
            f"them masked, by {what}; an epoch is {epoch:,.0f} steps",
        ]
