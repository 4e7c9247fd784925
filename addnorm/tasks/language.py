"""Language modelling: a ``GPT`` on text of one's own, token after token."""

import gzip
import lzma
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.adapt import Adapt
from addnorm.data.preparation import prepare, training_texts
from addnorm.data.prepared import Prepared, Tokens
from addnorm.data.sources import DataError, Source
from addnorm.data.tokenizer import Tokenizer
from addnorm.data.windows import Windows, document_of
from addnorm.generation import generate
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from addnorm.settings import (
    AtResume,
    SettingsError,
    check_effect,
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
    put_adapter,
    save_model,
    with_clock,
)
from addnorm.tasks.texts import check, chosen, expanded, opened
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.parallel import here, sum_dtype
from addnorm.training.task import Batch, Best, Task

IGNORED = -100  # what F.cross_entropy passes over
EVAL_TOKENS = 1 << 14  # in one forward of an evaluation
COMPRESSIBLE = 1 << 26  # bytes of held-out text up to which compressors are tried
MOST_SAMPLES = 100  # each takes about a second of every evaluation
SOURCES = {
    "content": "data",
    "tokenizer": "tokenizer",
    "rows_per_step": "tokens_per_step",
    "context": "model.context_length",
    "model": "init_from",
    "start": "init_from",
}
"""Fact of a task -> the setting that it comes from."""
PROMPTS = {"stdlib": ["def ", "class ", "import "]}


@final
@register
@dataclass(frozen=True, kw_only=True)
class LanguageSettings(TaskSettings):
    """The settings of a language model's training, apart from the loop's."""

    name = "language"
    usual = True
    data: str = setting("stdlib", AtResume.IF_SAME)
    """A text file, a folder, a .jsonl file, hf:NAME, or stdlib: the source of Python's library."""
    tokenizer: str = setting("bytes", AtResume.IF_SAME, FROM_NOTHING, elsewhere=True)
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
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of a GPT-2 or of ours to start from; its model settings are taken."""
    samples: int = setting(3, AtResume.FREELY)
    """Texts to write at evaluations, for whoever watches."""
    glance_tokens: int = setting(1 << 16, AtResume.WITH_NOTICE)
    """Tokens of the held-out data that evaluations before the last one see."""
    cache: Path = setting(Path("~/.cache/addnorm/data"), AtResume.FREELY)
    """Where tokenized data and learned tokenizers are kept."""
    model: GPTConfig = field(
        default_factory=lambda: GPTConfig(
            vocab_size=1, context_length=256, dim=256, n_layers=4, n_heads=4
        ),
        metadata=OF_GPT,
    )
    adapt: Adapt = field(default_factory=Adapt, metadata=OF_ADAPTER)
    """What is trained beside the model of init_from instead of all of it (docs/adapt.md)."""

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

    def beside(self, loop: LoopSettings) -> "LanguageSettings":
        """AdaLoRA's ranks fall by the clock of the run, where nothing else is said."""
        return with_clock(self, self.adapt, loop)

    def begins_another(self, then: Mapping[str, Any]) -> bool:
        """Not if what was trained is no part of the model's own weights."""
        return owns_its_weights(then)

    def by_heart(self) -> Mapping[str, Any]:
        """No dropout, and the loss alone."""
        return {"dropout": 0.0, "z_loss": 0.0}

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """What was read decides the tokenizer too, if that is learned from it."""
        keys = [SOURCES[fact]] if fact in SOURCES else []
        if self.tokenizer == "characters" and then.get("tokenizer") != now.get("tokenizer"):
            keys.append("tokenizer")  # the new text may have some that the weights do not know
        return keys

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
        tokenizer = tokenizer or self._tokenizer(source)
        data = prepare(
            source,
            tokenizer,
            expanded("cache", self.cache),
            val_fraction=self.val_fraction,
            split=self.split,
        )
        if self.init_from is None:
            config = replace(config, vocab_size=tokenizer.vocab_size)
        return LanguageTask(self, config, tokenizer, data, start)

    def _tokenizer(self, source: Source) -> Tokenizer:
        """What the setting names; what is learned is learned from the training text."""
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


@final
class LanguageTask(Task):
    """Next-token prediction on the windows of prepared data; ``start`` identifies the weights that
    it begins with, None: new ones."""

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
        settings: LanguageSettings,
        config: GPTConfig,
        tokenizer: Tokenizer,
        data: Prepared,
        start: str | None = None,
    ) -> None:
        self.settings, self.config, self.tokenizer, self.data = settings, config, tokenizer, data
        self.start = start
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
        """The order in which a split is read."""
        key = split, seed
        if key not in self._windows:
            self._windows[key] = Windows(self.tokens[split], self.config.context_length, seed)
        return self._windows[key]

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the ids of a step, and of each micro-batch the logits with their gradient and
        what every layer keeps of the stream."""
        c, s = self.config, self.settings
        parameters, trained = counted(self._empty, c.n_layers)
        own = -(-self.rows // processes)
        tokens = min(micro_rows or own, own) * c.context_length
        batch = own * (c.context_length + 1) * 8
        batch += tokens * 4 * (2 * c.vocab_size + 2 * c.n_layers * c.dim)
        fields = {
            "model": ("context_length", "dim", "n_layers", "hidden", "vocab_multiple"),
            "adapt": () if s.adapt.kind == "none" else ("rank", "init_rank", "length", "width"),
        }
        groups = {"model": c, "adapt": s.adapt}
        words = [
            f"{group}.{n}={getattr(groups[group], n)}"
            for group, names in fields.items()
            for n in names
        ]
        because = ", ".join([*words, f"tokens_per_step={s.tokens_per_step}"])
        because += f", micro_rows={micro_rows}, a vocabulary of {c.vocab_size:,}"
        return Needs(parameters, trained, c.n_layers * MODULES, batch, because)

    def _empty(self, layers: int) -> GPT:
        """The model with ``layers`` layers, on the meta device, with its adapter if it has one."""
        with torch.device("meta"):
            model = GPT(replace(self.config, n_layers=layers))
            put_adapter(self.settings.adapt, model)
        return model

    def model(self) -> GPT:
        """A new model, or the one that ``init_from`` names."""
        if self.settings.init_from is None:
            return GPT(self.config)
        model = GPT.from_pretrained(self.settings.init_from, dropout=self.settings.dropout)
        put_adapter(self.settings.adapt, model)
        return model

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
        return {"val_loss": loss, "perplexity": math.exp(min(loss, 700.0)), "bits_per_byte": bits}

    def glance(self, model: nn.Module) -> dict[str, float]:
        """Nats per token of the beginning of the validation split."""
        nats, count = self._score(model, self.settings.glance_tokens)
        return {"val_loss": nats / count}

    def _score(self, model: nn.Module, limit: int) -> tuple[float, int]:
        """(nats, tokens) over all processes, of the first ``limit`` tokens of the validation split
        that are predicted: windows side by side, so that each token but the first is, once."""
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
        if not isinstance(model, GPT) or not self.settings.samples:
            return []
        prompts = PROMPTS.get(self.settings.data) or [self._opening()]
        results = generate(
            model,
            [prompts[i % len(prompts)] for i in range(self.settings.samples)],
            tokenizer=self.tokenizer,
            max_new_tokens=min(200, 2 * self.config.context_length),
            temperature=0.8,
            top_p=0.95,
            seed=0,
        )
        return [f"{result.prompt}{result.text}" for result in results]

    def _opening(self) -> str:
        """The first line of the held-out text, or what there is of it."""
        tokens = self.tokens["val"]
        ids = [int(i) for i in tokens.read(0, min(len(tokens), 64))]
        text = self.tokenizer.decode([i for i in ids if i != self.tokenizer.eos_id])
        return text.strip().partition("\n")[0][:40] or "The"

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``GPT.from_pretrained``, and for adapters too."""
        save_model(model, self.settings.adapt, folder, self.tokenizer)

    def beside(self) -> dict[str, Any]:
        """``compressed``: bits per byte that general compressors need for the same bytes."""
        tokens = self.tokens["val"]
        if tokens.bytes > COMPRESSIBLE:
            return {}
        pieces = [self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocab_size)]
        if self.tokenizer.eos_id is not None:
            pieces[self.tokenizer.eos_id] = b""
        ids = tokens.read(0, len(tokens)).tolist()
        data = b"".join([pieces[i] for i in ids])
        bits = {
            "gzip -9": 8 * len(gzip.compress(data, 9)) / max(len(data), 1),
            "xz -9": 8 * len(lzma.compress(data, preset=9)) / max(len(data), 1),
        }
        return {"compressed": bits}

    def facts(self) -> dict[str, Any]:
        """The data, the tokenizer, the rows of a step, what the model is and which weights it
        began with."""
        model = {key: value for key, value in asdict(self.config).items() if key != "dropout"}
        return {
            "content": self.data.summary.content,
            "tokenizer": self.tokenizer.identity,
            "rows_per_step": self.rows,
            "context": self.config.context_length,
            "model": model,
            **({} if self.start is None else {"start": self.start}),
        }

    def introduction(self) -> list[str]:
        """The data, and what follows from tokens_per_step."""
        c = self.config
        parameters, trained = counted(self._empty, c.n_layers)
        step = self.rows * c.context_length
        epoch = len(self.windows("train", 0)) / self.rows
        adapted = self.settings.adapt.kind
        adapter = f"only an adapter is trained: {adapted}, {trained:,} parameters"
        return [
            str(self.data.summary),
            *([] if adapted == "none" else [adapter]),
            f"model: {parameters:,} parameters, {c.scheme}, {c.n_layers} layers of width {c.dim}, "
            f"context {c.context_length}, vocabulary {c.vocab_size:,}",
            f"step: {self.rows} rows of {c.context_length} tokens = {step:,} tokens; an epoch is "
            f"{epoch:,.0f} steps",
        ]
