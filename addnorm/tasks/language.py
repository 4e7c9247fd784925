"""Language modelling on text of one's own, token after token: a ``GPT``'s settings, and the task,
whatever the model."""

import gzip
import lzma
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.adapt import Adapt
from addnorm.data.prepared import Prepared, Tokens
from addnorm.data.sources import DataError
from addnorm.data.tokenizer import Tokenizer
from addnorm.data.windows import Windows, document_of
from addnorm.generation import generate
from addnorm.generation.decode import LanguageModel
from addnorm.models.gpt_config import GPTConfig
from addnorm.settings import (
    AtResume,
    SettingsError,
    setting,
)
from addnorm.tasks.beginnings import (
    FROM_NOTHING,
    OF_ADAPTER,
    OF_GPT,
    check_adapter,
    compare,
    opened_model,
    owns_its_weights,
    with_clock,
)
from addnorm.tasks.language_settings import LanguageModelSettings
from addnorm.tasks.texts import opened
from addnorm.tasks.writers import GPTWriter, Writer
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, register
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.memory import MODULES, Needs
from addnorm.training.parallel import here, sum_dtype
from addnorm.training.task import Batch, Best, Task

IGNORED = -100  # what F.cross_entropy passes over
EVAL_TOKENS = 1 << 14  # in one forward of an evaluation
COMPRESSIBLE = 1 << 26  # bytes of held-out text up to which compressors are tried
MOST_NATS = 700.0  # the exponential of more is no float64
PROMPTS = {"stdlib": ["def ", "class ", "import "]}
"""Data -> what its samples begin with; those of other data with the held-out text."""


@final
@register
@dataclass(frozen=True, kw_only=True)
class LanguageSettings(LanguageModelSettings):
    """The settings of a GPT's training, apart from the loop's."""

    name = "language"
    usual = True
    tokenizer: str = setting("bytes", AtResume.IF_SAME, FROM_NOTHING, elsewhere=True)
    """bytes, characters, bpe:SIZE (learned from the data), or a folder or hub id with one."""
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of a GPT-2 or of ours to start from; its model settings are taken."""
    model: GPTConfig = field(
        default_factory=lambda: GPTConfig(
            vocab_size=1, context_length=256, dim=256, n_layers=4, n_heads=4
        ),
        metadata=OF_GPT,
    )
    adapt: Adapt = field(default_factory=Adapt, metadata=OF_ADAPTER)
    """What is trained beside the model of init_from instead of all of it (docs/adapt.md)."""

    def beside(self, loop: LoopSettings) -> "LanguageSettings":
        """AdaLoRA's ranks fall by the clock of the run, where nothing else is said."""
        return with_clock(self, self.adapt, loop)

    def begins_another(self, then: Mapping[str, Any]) -> bool:
        """Not if what was trained is no part of the model's own weights."""
        return owns_its_weights(then)

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """The setting behind a fact: for the model and its start that is ``init_from``."""
        if fact in ("model", "start"):
            return ["init_from"]
        return super().sources(fact, then, now)

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "LanguageTask":
        """Read and tokenize the data, and make the task of it.

        ``choices`` are settings that somebody asked for: where ``init_from`` decides what they are,
        it is an error if that is something else.
        """
        tokenizer: Tokenizer | None = None
        start: str | None = None
        config = replace(self.model, dropout=self.dropout)
        check_adapter(self.adapt, self.init_from)
        if self.init_from is not None:
            config, tokenizer, start = opened_model(self.init_from, self.dropout)
        if self.adapt.kind == "prefix" and self.adapt.positions == "shifted":
            raise SettingsError(
                f"adapt.positions=shifted begins at position {self.adapt.length} of "
                f"{config.context_length}, and the windows of training take all of them: leave "
                "them kept"
            )
        source = opened(self.data)
        if tokenizer is not None:
            compare(self, self.init_from, config, tokenizer, choices)
        tokenizer = tokenizer or self.own_tokenizer(source)
        data = self.prepared(source, tokenizer)
        if self.init_from is None:
            config = replace(config, vocab_size=tokenizer.vocab_size)
        writer = GPTWriter(config, self.adapt, self.init_from, start, tokenizer)
        return LanguageTask(self, writer, tokenizer, data)


@final
class LanguageTask(Task):
    """Next-token prediction on the windows of prepared data.

    ``settings``: those of the training. ``writer``: the model. ``tokenizer``, ``data``: what the
    text is read as.
    """

    best = Best("val_loss", "min")
    noun = "A language model"
    unit = "tokens"
    commands = MappingProxyType(
        {
            "Write with it": 'addnorm generate {model} "Once upon a time"',
            "How probable it finds a text": "addnorm eval {model} text.txt",
        }
    )

    def __init__(
        self,
        settings: LanguageModelSettings,
        writer: Writer,
        tokenizer: Tokenizer,
        data: Prepared,
    ) -> None:
        self.settings, self.writer, self.tokenizer, self.data = settings, writer, tokenizer, data
        config = self.config = writer.config
        self.rows = max(1, round(settings.tokens_per_step / config.context_length))
        self.tokens: dict[str, Tokens] = {name: data.split(name) for name in ("train", "val")}
        self._windows: dict[tuple[str, int], Windows] = {}
        where = f"(model.context_length={config.context_length}, val_fraction="
        where += f"{settings.val_fraction:g}, data={settings.data})"
        try:
            self.windows("train", 0)
        except DataError as error:
            raise DataError(f"{error} {where}") from None
        if len(self.tokens["val"]) < 2:  # the first is not predicted
            raise DataError(
                f"the val split has one token: raise val_fraction, or give more {where}"
            )

    def windows(self, split: str, seed: int) -> Windows:
        """The windows of a split in the order in which ``seed`` reads them, made once and kept."""
        key = split, seed
        if key not in self._windows:
            self._windows[key] = Windows(self.tokens[split], self.config.context_length, seed)
        return self._windows[key]

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the ids of a step, and of each micro-batch the logits with their gradient and
        what every layer keeps of the stream."""
        c, s = self.config, self.settings
        parameters, trained = self.writer.counts()
        own = -(-self.rows // processes)
        tokens = min(micro_rows or own, own) * c.context_length
        # bytes: ids of 8; logits and their gradient, and two of the stream a layer, in float32
        batch = own * (c.context_length + 1) * 8
        batch += tokens * 4 * (2 * c.vocab_size + 2 * c.n_layers * c.dim)
        because = f"{self.writer.because()}, tokens_per_step={s.tokens_per_step}"
        because += f", micro_rows={micro_rows}, a vocabulary of {c.vocab_size:,}"
        return Needs(parameters, trained, c.n_layers * MODULES, batch, because)

    def model(self) -> nn.Module:
        """A new model, or what it begins as."""
        return self.writer.model()

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's: (rows, context + 1) ids, and ``documents``
        of the same shape if they are masked."""
        windows = self.windows(split, seed)
        mine = step * self.rows + rank, max(self.rows - rank, 0), world
        batch = {"ids": torch.from_numpy(windows.rows(*mine))}
        if self.settings.document_mask:
            batch["documents"] = torch.from_numpy(windows.documents(*mine))
        return batch

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows."""
        return self.batch(split, seed, step, 0, self.rows)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy of every next token, in float32, summed."""
        ids = batch["ids"]
        documents = {"documents": batch["documents"][:, :-1]} if "documents" in batch else {}
        logits = model(ids[:, :-1], **documents).float()  # (B, T, V)
        flat, targets = logits.flatten(0, 1), ids[:, 1:].flatten()
        nll = F.cross_entropy(flat, targets, reduction="sum")
        count = torch.tensor(targets.numel(), device=ids.device)
        if not self.settings.z_loss:
            return nll, count, {}
        z = self.settings.z_loss * flat.logsumexp(-1).square().sum()
        return nll + z, count, {"nll": nll, "z": z}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats per token, perplexity and bits per byte of the whole validation split."""
        tokens = self.tokens["val"]
        nats, count = self._score(model, len(tokens))
        loss = nats / count
        bits = nats / math.log(2) / max(tokens.bytes, 1)
        perplexity = math.exp(min(loss, MOST_NATS))
        return {"val_loss": loss, "perplexity": perplexity, "bits_per_byte": bits}

    def glance(self, model: nn.Module) -> dict[str, float]:
        """Nats per token of the beginning of the validation split."""
        nats, count = self._score(model, self.settings.glance_tokens)
        return {"val_loss": nats / count}

    def _score(self, model: nn.Module, limit: int) -> tuple[float, int]:
        """(nats, tokens) over all processes, of the first ``limit`` tokens of the validation split
        that are predicted: windows side by side, so that each token but the first is, once. Every
        process must call it, and gets the same."""
        device = next(model.parameters()).device
        world, tokens, context = here(device), self.tokens["val"], self.config.context_length
        last = min(len(tokens), limit + 1) - 1  # tokens 1 to last are predicted
        starts = list(range(0, last, context))
        rows = max(1, EVAL_TOKENS // context) * world.size
        sums = torch.zeros(2, dtype=torch.float64)
        with evaluation_mode(model.modules()), torch.no_grad():
            for first in range(0, len(starts), rows):
                mine = starts[first : first + rows][world.rank :: world.size]
                # A process without a window computes one all the same, and the last window is as
                # long as the others: a sharded model is the work of all processes at once.
                ids, targets = self._rows(mine or starts[:1], last)
                documents = {
                    n: t.to(device) for n, t in self._documents(mine or starts[:1]).items()
                }
                logits = model(ids.to(device), **documents).float()
                nll = F.cross_entropy(
                    logits.flatten(0, 1), targets.flatten().to(device), reduction="none"
                )
                if mine:
                    sums[0] += nll.cpu().double().sum()
                    sums[1] += (targets != IGNORED).sum()
        nats, count = world.total(sums.to(sum_dtype(device))).tolist()
        return nats, round(count)

    def _rows(self, starts: Sequence[int], last: int) -> tuple[Tensor, Tensor]:
        """(ids, targets) of the validation windows that begin at ``starts``, both (rows, context).
        What is beyond token ``last`` is 0 as an id and IGNORED as a target."""
        context = self.config.context_length
        ids = torch.zeros(len(starts), context + 1, dtype=torch.long)
        targets = torch.full((len(starts), context), IGNORED)
        for i, start in enumerate(starts):
            stop = min(start + context, last) + 1
            ids[i, : stop - start] = torch.from_numpy(
                self.tokens["val"].read(start, stop).astype("int64")
            )
            targets[i, : stop - start - 1] = ids[i, 1 : stop - start]
        return ids[:, :-1], targets

    def _documents(self, starts: Sequence[int]) -> dict[str, Tensor]:
        """``documents`` of the validation windows that begin at ``starts``, (rows, context), as the
        model's keyword; empty if training does not mask them either."""
        if not self.settings.document_mask:
            return {}
        indices = np.array(starts)[:, None] + np.arange(self.config.context_length)
        return {"documents": torch.from_numpy(document_of(self.tokens["val"], indices))}

    def sample(self, model: nn.Module) -> list[str]:
        """Texts from fixed prompts and seeds, so that those of one run can be compared."""
        if not isinstance(model, self.writer.kind) or not self.settings.samples:
            return []
        prompts = PROMPTS.get(self.settings.data) or [self._opening()]
        results = generate(
            cast(LanguageModel, model),
            [prompts[i % len(prompts)] for i in range(self.settings.samples)],
            tokenizer=self.tokenizer,
            max_new_tokens=min(200, 2 * self.config.context_length),  # a paragraph
            temperature=0.8,  # less than the model's own spread: what a small one writes is read
            top_p=0.95,
            seed=0,
        )
        return [f"{result.prompt}{result.text}" for result in results]

    def _opening(self) -> str:
        """The first line of the held-out text, or what there is of it in 64 tokens, 40 letters at
        most, to be gone on from; "The" where it is empty."""
        tokens = self.tokens["val"]
        ids = [int(i) for i in tokens.read(0, min(len(tokens), 64))]
        text = self.tokenizer.decode([i for i in ids if i != self.tokenizer.eos_id])
        return text.strip().partition("\n")[0][:40] or "The"

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm.load``, in the format of the model."""
        self.writer.save(model, folder, self.tokenizer)

    def beside(self) -> dict[str, Any]:
        """``compressed``: compressor -> bits per byte that it needs for the held-out text; nothing
        where that is so large that it would take long."""
        tokens = self.tokens["val"]
        if tokens.bytes > COMPRESSIBLE:
            return {}
        pieces = [self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocab_size)]
        if self.tokenizer.eos_id is not None:
            pieces[self.tokenizer.eos_id] = b""  # as in bits_per_byte: it is no byte of the text
        ids = tokens.read(0, len(tokens)).tolist()
        data = b"".join([pieces[i] for i in ids])
        bits = {
            "gzip -9": 8 * len(gzip.compress(data, 9)) / max(len(data), 1),
            "xz -9": 8 * len(lzma.compress(data, preset=9)) / max(len(data), 1),
        }
        return {"compressed": bits}

    def facts(self) -> dict[str, Any]:
        """The data, the tokenizer, the rows of a step, and what the model is."""
        return {
            "content": self.data.summary.content,
            "tokenizer": self.tokenizer.identity,
            "rows_per_step": self.rows,
            "context": self.config.context_length,
            **self.writer.facts(),
        }

    def introduction(self) -> list[str]:
        """The data, the model, and what follows from tokens_per_step."""
        step = self.rows * self.config.context_length
        epoch = len(self.windows("train", 0)) / self.rows
        return [
            str(self.data.summary),
            *self.writer.introduction(),
            f"step: {self.rows} rows of {self.config.context_length} tokens = {step:,} tokens; an "
            f"epoch is {epoch:,.0f} steps",
        ]
