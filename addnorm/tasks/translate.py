"""Translating: an encoder-decoder on pairs of a source and its target, whatever they are."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.data.pairs import FORMATS, Pair
from addnorm.data.rows import padded
from addnorm.data.sources import DataError, Texts
from addnorm.data.tokenizer import Tokenizer
from addnorm.data.tokenizer.pair import TextTokenizer, TokenizerPair, pair, read_pair
from addnorm.errors import Mendable
from addnorm.files import folders, seq2seq
from addnorm.generation.search import stacked
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.seq2seq_config import Seq2SeqConfig
from addnorm.progress import ProgressBar
from addnorm.settings import (
    AT_RESUME,
    ELSEWHERE,
    HIDDEN,
    INSIDE,
    NEEDS,
    AtResume,
    SettingsError,
    check_effect,
    setting,
)
from addnorm.tasks.beginnings import FROM_NOTHING, WITH_EPS, SchemesWithNorms
from addnorm.tasks.examples import Look, Picture, attention, worst_translations
from addnorm.tasks.paired_texts import PairedTexts, buckets, ids_of, read_paired_texts
from addnorm.tasks.texts import check, chosen, expanded
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.parallel import here, sum_dtype
from addnorm.training.task import Batch, Best, Task
from addnorm.uses.translation import Translation
from addnorm.uses.translation_scores import translation_scores
from addnorm.words import plural

EVAL_ROWS = 32  # pairs that go through the model at once in an evaluation
POOL = 50  # batches whose rows are sorted by length together
IGNORED = -100  # what F.cross_entropy passes over
SOURCES = {
    "content": ["data", "val_data"],
    "tokenizers": ["tokenizer", "target_tokenizer"],
    "rows_per_step": ["rows_per_step"],
    "start": ["init_from"],
    "model": ["init_from"],
}
"""Fact of a task -> the settings that it comes from."""
MOST_SAMPLES = 100  # each takes time in every evaluation
LOOKS, SEEN = 3, 20
"""Translations of which it is shown where the model looked, and the most tokens of a side."""
END = "(end)"
MOST_NATS = 700.0  # the exponential of more is no float64


@final
@register
@dataclass(frozen=True, kw_only=True)
class TranslateSettings(TaskSettings):
    """The settings of a translator's training, apart from the loop's."""

    name = "translate"
    data: str = setting("", AtResume.IF_SAME)
    """Pairs: a .tsv (source, tab, target), a .jsonl with source and target, two files of lines as
    A,B, a .po or a .mo."""
    val_data: str = setting("", AtResume.IF_SAME)
    """Pairs to hold out, in one of these formats; by itself a share of data."""
    val_fraction: float = setting(0.05, AtResume.ANEW, {"val_data": ("",)})
    """How many of the pairs are held out, chosen by a hash of each source."""
    tokenizer: str = setting("bpe:8192", AtResume.IF_SAME, FROM_NOTHING, elsewhere=True)
    """bytes, characters, bpe:SIZE (learned from the training texts), or a folder or hub id."""
    target_tokenizer: str = setting("", AtResume.IF_SAME, FROM_NOTHING, elsewhere=True)
    """The same for the targets alone; by itself both sides share one, and its table."""
    rows_per_step: int = setting(64, AtResume.BY_TUNING)
    """Pairs in one optimizer step, of like length, over all micro-batches and processes."""
    dropout: float = setting(0.1, AtResume.WITH_NOTICE)
    """In embeddings and branches."""
    label_smoothing: float = setting(0.1, AtResume.WITH_NOTICE)
    """The share of a target's weight that goes to all tokens alike."""
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of Marian's or of ours to start from; its model and tokenizers are
    taken."""
    glance_pairs: int = setting(1000, AtResume.WITH_NOTICE)
    """Held-out pairs that evaluations before the last one see."""
    score_pairs: int = setting(500, AtResume.WITH_NOTICE)
    """Held-out sources that are translated at the end, for BLEU, chrF and exact matches."""
    beams: int = setting(4, AtResume.WITH_NOTICE)
    """Of the search at the end; the samples before are greedy."""
    samples: int = setting(3, AtResume.FREELY)
    """Held-out sources to translate at evaluations, for whoever watches."""
    cache: Path = setting(Path("~/.cache/addnorm/data"), AtResume.FREELY)
    """Where learned tokenizers are kept."""
    model: Seq2SeqConfig = field(
        default_factory=lambda: Seq2SeqConfig(vocab_size=2),
        metadata={
            HIDDEN: (
                *("vocab_size", "target_vocab_size", "dropout"),
                *("start_id", "end_id", "pad_id"),
            ),
            NEEDS: (FROM_NOTHING,),
            ELSEWHERE: True,
            INSIDE: {
                "norm": ({"scheme": SchemesWithNorms()},),
                "eps": ({"scheme": SchemesWithNorms(), "norm": WITH_EPS},),
            },
            AT_RESUME: AtResume.ANEW,
        },
    )

    def __post_init__(self) -> None:
        check_effect(self)
        check(self.tokenizer, self.val_fraction, self.dropout)
        if not 0.0 <= self.label_smoothing < 1.0:
            raise SettingsError(f"label_smoothing must be in [0, 1), got {self.label_smoothing:g}")
        for name in ("rows_per_step", "glance_pairs", "beams"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.score_pairs < 0:
            raise SettingsError(f"score_pairs must be at least 0, got {self.score_pairs}")
        if not 0 <= self.samples <= MOST_SAMPLES:
            raise SettingsError(f"samples must be from 0 to {MOST_SAMPLES}, got {self.samples}")

    def by_heart(self) -> Mapping[str, Any]:
        """No dropout anywhere, and targets that can be met."""
        # beside init_from settings of the model have no effect, and to set one is an error
        return {
            "dropout": 0.0,
            "label_smoothing": 0.0,
            **(
                {"model.attention_dropout": 0.0, "model.hidden_dropout": 0.0}
                if self.init_from is None
                else {}
            ),
        }

    def begins_another(self, then: Mapping[str, Any]) -> bool:
        """From any translator."""
        return then.get("task") == self.name

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
        """The settings behind a fact."""
        return SOURCES.get(fact, [])

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "TranslateTask":
        """Read and tokenize the pairs, and make the task of them; all ``choices`` count."""
        if not self.data:
            raise SettingsError(f"data is not set: {FORMATS}")
        words = f"data={self.data}" + (f", val_data={self.val_data}" if self.val_data else "")
        try:
            texts = read_paired_texts(self.data, self.val_data, self.val_fraction)
        except DataError as error:
            raise DataError(f"{words}: {error}") from None
        beginning = self._beginning(texts, choices)
        task = TranslateTask(self, beginning, texts)
        for name, rows in task.splits.items():
            if not rows:
                raise DataError(
                    f"{words}: all pairs for {name} are longer than the model's context of "
                    f"{beginning.config.context_length} tokens: raise model.context_length"
                )
        return task

    def _beginning(self, texts: PairedTexts, choices: Mapping[str, Any]) -> "TranslatorStart":
        """The model and the tokenizers: those of ``init_from``, or new ones by the settings. A
        ``SettingsError`` where ``choices`` name a model or tokenizer beside ``init_from``."""
        if self.init_from is not None:
            keys = [k for k in choices if k.startswith("model.") or k.endswith("tokenizer")]
            if keys:
                raise SettingsError(
                    f"init_from={self.init_from} comes with a model and its tokenizers: leave out "
                    f"{', '.join(keys)}, or leave out init_from to start from scratch"
                )
            return _start(self.init_from, self.dropout)
        return TranslatorStart(*self._anew(texts))

    def _anew(self, texts: PairedTexts) -> tuple[Seq2SeqConfig, TokenizerPair]:
        """(the model's choices, by the settings, and the tokenizers that they name, learned from
        the texts where they are learned)."""
        sides = [[row.source for row in texts.train], [row.target for row in texts.train]]
        held_out = [[row.source for row in texts.val], [row.target for row in texts.val]]
        if self.target_tokenizer:
            source = self._tokenizer("tokenizer", sides[0], held_out[0])
            target = self._tokenizer("target_tokenizer", sides[1], held_out[1])
        else:
            source = target = self._tokenizer(
                "tokenizer", sides[0] + sides[1], held_out[0] + held_out[1]
            )
        both = pair(source, target)
        # the start of a target, which is its padding too, has an id behind all that a text may have
        start = max(target.vocab_size, both.target_end + 1)
        sizes = max(source.vocab_size, both.source_end + 1), start + 1
        config = replace(
            self.model,
            vocab_size=sizes[0] if self.target_tokenizer else sizes[1],
            target_vocab_size=sizes[1] if self.target_tokenizer else None,
            start_id=start,
            pad_id=start,
            end_id=both.target_end,
            dropout=self.dropout,
        )
        return config, both

    def _tokenizer(self, name: str, train: list[str], val: list[str]) -> Tokenizer:
        """The tokenizer that the setting ``name`` asks for, as ``chosen`` reads it. It learns from
        ``train``; one of characters has those of ``val`` as well."""
        return chosen(
            getattr(self, name),
            texts=lambda: train,
            decides=lambda: [Texts(train).identity()],
            cache=expanded("cache", self.cache),
            characters=lambda: train + val,
            name=name,
        )


class TranslatorStart(NamedTuple):
    """What a training begins with."""

    config: Seq2SeqConfig
    pair: TokenizerPair
    identity: str | None = None
    """Of the weights that it begins with; None: it begins with new ones."""


def _start(path_or_id: str, dropout: float) -> TranslatorStart:
    """What ``init_from`` names, a ``SettingsError`` where it is no translator; its weights are read
    here only to see that they can be. ``dropout`` replaces what the folder says."""
    try:
        folder = folders.find(path_or_id)
        model = seq2seq.load(folder, dropout=dropout)[0]
        both = read_pair(folder)
        if both is None:
            raise Mendable(f"{folder} has no tokenizer beside the model")
        return TranslatorStart(model.config, both, folders.identity(folder))
    except Mendable as error:
        raise SettingsError(f"init_from={path_or_id}: {error}") from None


@final
class TranslateTask(Task):
    """Which target belongs to a source.

    ``settings``: those of the training. ``beginning``: the model's choices and its tokenizers.
    ``texts``: what there is to learn from, and what is held out.

    ``splits`` are the pairs in ids that fit into the context, ``long`` how many of each split
    do not. It is for the caller to refuse a split that is empty.
    """

    best = Best("val_loss", "min")
    noun = "A translator"
    unit = "tokens"
    commands = MappingProxyType(
        {
            "Ask it": 'addnorm predict {model} "Open the file."',
            "How good it is on other pairs": "addnorm eval {model} PAIRS.tsv",
        }
    )

    def __init__(
        self, settings: TranslateSettings, beginning: TranslatorStart, texts: PairedTexts
    ) -> None:
        self.settings, self.texts = settings, texts
        self.config, self.pair, self.identity = beginning
        self.start = self.config.start_id
        sides: dict[str, Sequence[Pair]] = {"train": texts.train, "val": texts.val}
        self.splits, self.long = {}, dict[str, int]()
        for name, side in sides.items():
            self.splits[name], self.long[name] = ids_of(
                side, self.pair, self.start, self.config.context_length
            )
        self._lengths = {
            name: np.array([len(row.source) + len(row.target) for row in rows], np.int64)
            for name, rows in self.splits.items()
        }
        self._epochs: dict[tuple[str, int, int], list[NDArray[np.int64]]] = {}
        self._pictures: list[Picture] = []

    # --- for the loop -----------------------------------------------------------------------------

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the ids of a step, and of each micro-batch the logits with their gradient and
        what every layer keeps of the stream, for rows of mean length."""
        c, size = self.config, self.settings.rows_per_step
        layers = c.encoder_layers + c.decoder_layers
        parameters, trained = self._counts()
        own = -(-size // processes)
        rows = min(micro_rows or own, own)
        length = sum(len(row.target) for row in self.splits["train"]) // len(self.splits["train"])
        # Bytes: 40 for a token of source and one of target, as ids of 8 in the rows and in the
        # batch, where targets are there twice, as labels too. In float32: logits and their
        # gradient, and in each layer the stream after two sublayers and what these read.
        batch = own * length * 40 + rows * length * 4 * (2 * c.targets + 4 * layers * c.dim)
        names = ("dim", "encoder_layers", "decoder_layers", "hidden")
        because = ", ".join(f"model.{n}={getattr(c, n)}" for n in names)
        because += f", rows_per_step={size}, micro_rows={micro_rows}, a vocabulary of {c.targets:,}"
        return Needs(parameters, trained, layers * MODULES, batch, because)

    def _counts(self) -> tuple[int, int]:
        """(parameters, those that are trained): each side as deep as it is beside one layer of the
        other, so that neither is built deep, less what was counted twice."""
        c = self.config
        encoder = counted(lambda layers: self._empty(layers, 1), c.encoder_layers)
        decoder = counted(lambda layers: self._empty(1, layers), c.decoder_layers)
        common = counted(lambda layers: self._empty(1, 1), 1)
        parameters, trained = (
            a + b - both for a, b, both in zip(encoder, decoder, common, strict=True)
        )
        return parameters, trained

    def _empty(self, encoder_layers: int, decoder_layers: int) -> Seq2Seq:
        """The model without memory, with so many layers."""
        config = replace(self.config, encoder_layers=encoder_layers, decoder_layers=decoder_layers)
        with torch.device("meta"):
            return Seq2Seq(config)

    def model(self) -> Seq2Seq:
        """A new model, or the one that ``init_from`` names."""
        if self.settings.init_from is None:
            return Seq2Seq(self.config)
        return Seq2Seq.from_pretrained(self.settings.init_from, dropout=self.settings.dropout)

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's, which are of like length; none where the last
        step of an epoch has fewer rows than there are processes. As ``_padded`` has them."""
        epoch, place = divmod(step, self._steps(split))
        rows = self._epoch(split, seed, epoch)[place]
        mine = rows[rank::world]
        return self._padded([self.splits[split][i] for i in mine])

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows."""
        return self.batch(split, seed, step, 0, self.settings.rows_per_step)

    def _steps(self, split: str) -> int:
        """Batches of an epoch: whole pools, and what is left."""
        return -(-len(self.splits[split]) // self.settings.rows_per_step)

    def _epoch(self, split: str, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """The batches of an epoch, each the numbers of its rows. They are kept for the steps to
        come, and those of epochs before the last one thrown away."""
        key = split, seed, epoch
        if key not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k[2] >= epoch - 1}
            size = self.settings.rows_per_step
            self._epochs[key] = buckets(self._lengths[split], size, POOL, seed, epoch)
        return self._epochs[key]

    def _padded(self, rows: Sequence[Any]) -> Batch:
        """``source`` and ``valid`` (which of it is real), (B, S); ``target``, which the model
        reads, and ``labels``, the same one token further, which it has to say, (B, T)."""
        source = padded([row.source for row in rows])
        return {
            "source": source["ids"],
            "valid": source["valid"],
            "target": stacked([row.target[:-1].tolist() for row in rows], self.config.pad_id),
            "labels": stacked([row.target[1:].tolist() for row in rows], IGNORED),
        }

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy of every token of the targets and of their ends, smoothed and summed; each
        is told all that stands before it. ``nll``: without smoothing."""
        logits = model(batch["source"], batch["target"], batch["valid"]).float()
        labels = batch["labels"]
        count = (labels != IGNORED).sum()
        flat = logits.flatten(0, 1)
        smoothing = self.settings.label_smoothing
        total = F.cross_entropy(
            flat,
            labels.flatten(),
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=smoothing,
        )
        if not smoothing:
            return total, count, {}
        with torch.no_grad():
            nll = F.cross_entropy(flat, labels.flatten(), reduction="sum", ignore_index=IGNORED)
        return total, count, {"nll": nll}

    # --- what is held out -------------------------------------------------------------------------

    def glance(self, model: nn.Module) -> dict[str, float]:
        """Nats per token of the first held-out pairs."""
        return {"val_loss": self._loss(model, self.settings.glance_pairs)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats per token of all that was held out, and how good translations of its first sources
        are: the figures of ``addnorm eval``. Every process searches all of them, since a sharded
        model is the work of all processes at once."""
        figures = {"val_loss": self._loss(model, len(self.splits["val"]))}
        figures["perplexity"] = math.exp(min(figures["val_loss"], MOST_NATS))
        rows = self.texts.val[: self.settings.score_pairs]
        if not isinstance(model, Seq2Seq) or not rows:
            return figures
        how = {"beams": self.settings.beams, "n_best": 1, "length_penalty": 1.0}
        use = Translation(model, self.pair)
        with ProgressBar("translating", patience=2.0) as bar:
            outputs, _ = use.outputs([row.source for row in rows], how, EVAL_ROWS, bar)
        looks = attention(self._looks(model, rows, outputs))
        self._pictures = [*worst_translations(rows, outputs), *looks]
        scores = translation_scores(outputs, [row.target for row in rows])
        # a metric is a number: signatures and notes are left to ``addnorm eval``
        return figures | {k: v for k, v in scores.items() if isinstance(v, float)}

    def _loss(self, model: nn.Module, most: int) -> float:
        """Nats per token of the first ``most`` held-out pairs, those of like length together. By
        all processes together: each must call it, and gets the same."""
        device = next(model.parameters()).device
        world, rows = (
            here(device),
            sorted(self.splits["val"][:most], key=lambda row: (len(row.target), row.number)),
        )
        sums = torch.zeros(2, dtype=torch.float64)
        step = EVAL_ROWS * world.size
        with evaluation_mode(model.modules()), torch.no_grad():
            for first in range(0, len(rows), step):
                # A process without a row computes one all the same: a sharded model needs them all.
                mine = rows[first : first + step][world.rank :: world.size]
                batch = {n: t.to(device) for n, t in self._padded(mine or rows[:1]).items()}
                logits = model(batch["source"], batch["target"], batch["valid"]).float()
                nll = F.cross_entropy(
                    logits.flatten(0, 1),
                    batch["labels"].flatten(),
                    reduction="none",
                    ignore_index=IGNORED,
                )
                if mine:
                    sums[0] += nll.cpu().double().sum()
                    sums[1] += (batch["labels"] != IGNORED).sum().cpu()
        nats, count = world.total(sums.to(sum_dtype(device))).tolist()
        return float(nats / count)

    def _looks(self, model: Seq2Seq, rows: Sequence[Pair], outputs: Sequence[str]) -> list[Look]:
        """What the model looked at for its translations of the first of these sources that are
        short enough to be seen at a glance; with several processes nothing."""
        device = next(model.parameters()).device
        looks: list[Look] = []
        if here(device).size > 1:
            return looks
        most = min(SEEN, self.config.context_length)
        for row, output in zip(rows, outputs, strict=True):
            source, target = self.pair.encode(row.source), self.pair.target.encode(output)
            if len(looks) == LOOKS or max(len(source), len(target) + 1) > most:
                continue
            batch = (torch.tensor([ids], device=device) for ids in (source, [self.start, *target]))
            shares = model.attention(*batch)[0].tolist()
            columns = [_name(self.pair.source, id) for id in source[:-1]]
            names = [_name(self.pair.target, id) for id in target]
            looks.append(Look([*columns, END], [*names, END], shares))
        return looks

    def pictures(self) -> list[Picture]:
        """The worst translations of the last evaluation of all, and what the model looked at."""
        return self._pictures

    def sample(self, model: nn.Module) -> list[str]:
        """Greedy translations of the first held-out sources, with what stands in the data."""
        rows = self.texts.val[: self.settings.samples]
        if not isinstance(model, Seq2Seq) or not rows:
            return []
        how = {"beams": 1, "n_best": 1, "length_penalty": 1.0}
        use = Translation(model, self.pair)
        with ProgressBar(hidden=True) as bar:
            outputs, _ = use.outputs([row.source for row in rows], how, EVAL_ROWS, bar)
        return [
            f"{row.source}\n→ {output}\n= {row.target}"
            for row, output in zip(rows, outputs, strict=True)
        ]

    # --- for whoever uses it ----------------------------------------------------------------------

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm.load``, ``addnorm predict`` and, where it is a Marian, transformers."""
        assert isinstance(model, Seq2Seq)
        model.save_pretrained(folder, tokenizer=self.pair)

    def facts(self) -> dict[str, Any]:
        """The pairs, the tokenizers, what the model is and which weights it began with."""
        content = hashlib.sha256()
        for rows in self.splits.values():
            for row in rows:
                for ids in (row.source, row.target):
                    content.update(np.array(len(ids)).tobytes() + ids.tobytes())
            content.update(b"|")
        dropouts = ("dropout", "attention_dropout", "hidden_dropout")
        return {
            "content": content.hexdigest()[:16],
            "tokenizers": [self.pair.source.identity, self.pair.target.identity],
            "rows_per_step": self.settings.rows_per_step,
            "model": {k: v for k, v in asdict(self.config).items() if k not in dropouts},
            **({} if self.identity is None else {"start": self.identity}),
        }

    def introduction(self) -> list[str]:
        """The data, what is left out of it, and the model."""
        c = self.config
        parameters, _ = self._counts()
        train, val = (len(self.splits[name]) for name in ("train", "val"))
        lines = [
            f"{self.settings.data}: {train:,} pairs to learn from, {val:,} held out; a step is "
            f"{self.settings.rows_per_step} of them, an epoch {self._steps('train'):,} steps",
            *self.texts.remarks,
        ]
        for name, what in (("train", "to learn from"), ("val", "held out")):
            if self.long[name]:
                lines.append(
                    f"{plural(self.long[name], 'pair')} {what} left out of the loss: a side is "
                    f"longer than {c.context_length} tokens (model.context_length)"
                )
        if self.settings.score_pairs < len(self.texts.val):
            lines.append(
                f"translated at the end: {self.settings.score_pairs:,} of {len(self.texts.val):,} "
                "held-out sources (score_pairs); addnorm eval measures on any file"
            )
        lines.append(
            f"model: {parameters:,} parameters, {c.scheme}, {c.encoder_layers} + "
            f"{c.decoder_layers} layers of width {c.dim}, "
            + (
                f"a shared vocabulary of {c.vocab_size:,}"
                if c.target_vocab_size is None
                else f"vocabularies of {c.vocab_size:,} and {c.targets:,}"
            )
        )
        return lines


def _name(tokenizer: TextTokenizer, id: int) -> str:
    """A token as a picture names it: its text, with signs for what is not seen."""
    return tokenizer.decode([id]).replace(" ", "␣").replace("\n", "⏎") or "∅"
