"""Questions on passages: a BERT with a head for spans, on SQuAD's json, from scratch or from one.

It learns from windows of the passages, as they are read later: of a window that has the whole
answer where it begins and ends, of another that there is none, which both ends say at [CLS].
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.data.order import order_key, shuffled
from addnorm.data.passages import (
    LONGEST_ANSWER,
    PassageReader,
    PassageTokens,
    PassageWindow,
    Span,
    best_answer,
    best_spans,
    window_batch,
)
from addnorm.data.sources import DataError, Texts
from addnorm.data.split import text_hash
from addnorm.data.squad import SquadQuestion, read_squad
from addnorm.data.tokenizer import Tokenizer
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
from addnorm.tasks.examples import Picture, worst_answers
from addnorm.tasks.texts import check, chosen, expanded
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.parallel import here, sum_dtype
from addnorm.training.task import Batch, Best, Task
from addnorm.uses.answer_scores import score
from addnorm.words import plural

EVAL_ROWS = 64  # windows that go through the model at once in an evaluation
MOST_SAMPLES = 20  # more would be read by nobody, at every evaluation
ENOUGH = 5  # articles, from which on whole ones are held out
AROUND = 200  # characters of a passage on either side of an answer, in a sample

SOURCES = {
    "content": "data",
    "tokenizer": "tokenizer",
    "rows_per_step": "rows_per_step",
    "model": "init_from",
    "start": "init_from",
}
"""Fact of a task -> the setting that it comes from."""


@final
@register
@dataclass(frozen=True, kw_only=True)
class AnswerSettings(TaskSettings):
    """The settings of a training on questions and answers, apart from the loop's."""

    name = "answer"
    data: str = setting("", AtResume.IF_SAME)
    """A .json file of questions on passages, as SQuAD has them, 1.1 or 2.0."""
    val_data: str = setting("", AtResume.IF_SAME)
    """Another such file, to hold out; empty: a part of data is held out."""
    tokenizer: str = setting("wordpiece-cased:8192", AtResume.IF_SAME, FROM_NOTHING)
    """wordpiece-cased:SIZE or wordpiece:SIZE (learned from the passages and questions), or a folder
    or hub id with one."""
    val_fraction: float = setting(0.1, AtResume.ANEW, {"val_data": ("",)})
    """How many of the articles are held out, or of the passages, if there are few articles."""
    rows_per_step: int = setting(32, AtResume.BY_TUNING)
    """Windows in one optimizer step, over all micro-batches and processes."""
    dropout: float = setting(0.1, AtResume.WITH_NOTICE)
    """In embeddings and branches."""
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of a BERT to start from; its model settings and tokenizer are taken."""
    samples: int = setting(3, AtResume.FREELY)
    """Questions to answer at evaluations, for whoever watches."""
    glance_questions: int = setting(300, AtResume.WITH_NOTICE)
    """Held-out questions that evaluations before the last one see."""
    cache: Path = setting(Path("~/.cache/addnorm/data"), AtResume.FREELY)
    """Where learned tokenizers are kept."""
    model: BertConfig = field(
        default_factory=lambda: BertConfig(
            vocab_size=1,
            context_length=256,
            dim=128,
            n_layers=4,
            n_heads=4,
            scheme="pre_norm",
        ),
        metadata={
            HIDDEN: (
                *("vocab_size", "types", "head", "labels", "several", "pooling"),
                *("dropout", "attention_dropout", "head_dropout"),
            ),
            AT_RESUME: AtResume.ANEW,
            NEEDS: (FROM_NOTHING,),
        },
    )

    def __post_init__(self) -> None:
        check_effect(self)
        check(self.tokenizer, self.val_fraction, self.dropout)
        for name in ("rows_per_step", "glance_questions"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.samples <= MOST_SAMPLES:
            raise SettingsError(f"samples must be between 0 and {MOST_SAMPLES}, got {self.samples}")

    def by_heart(self) -> Mapping[str, Any]:
        """No dropout."""
        return {"dropout": 0.0}

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """The settings behind a fact."""
        keys = [SOURCES[fact]] if fact in SOURCES else []
        return [*keys, "val_data"] if fact == "content" and self.val_data else keys

    def begins_another(self, then: Mapping[str, Any]) -> bool:
        """Any of them can go on with other data."""
        return True

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "AnswerTask":
        """Read and tokenize the questions, and make the task of them; all ``choices`` count. A
        ``SettingsError`` or ``DataError`` begins with the setting that is wrong."""
        train, val, remarks = self._questions()
        start: str | None = None
        if self.init_from is None:
            texts = [*dict.fromkeys(q.context for q in train), *(q.question for q in train)]
            tokenizer = chosen(
                self.tokenizer,
                texts=lambda: texts,
                decides=lambda: [Texts(texts).identity()],
                cache=expanded("cache", self.cache),
            )
            config = replace(self.model, head="answer", dropout=self.dropout)
            config = replace(config, vocab_size=tokenizer.vocab_size)
        else:
            read = partial(_answering, dropout=self.dropout)
            config, tokenizer, start = opened_as(read, self.init_from)
        try:
            reader = PassageReader(tokenizer, config.context_length)
        except Mendable as error:
            where = self.init_from or f"tokenizer={self.tokenizer}"
            raise SettingsError(f"{where}: {error}") from None
        splits = {"train": QuestionRows(train, reader), "val": QuestionRows(val, reader)}
        return AnswerTask(self, config, tokenizer, splits, remarks, start)

    def _questions(self) -> tuple[list[SquadQuestion], list[SquadQuestion], list[str]]:
        """(to learn from, held out, what was left out of the files, in sentences). What is held out
        is val_data, or else a part of data; either way it is ``mixed``, as ``glance`` needs it."""
        if not self.data:
            raise SettingsError(
                "data is not set: a .json file of questions on passages, as SQuAD's"
            )
        files = {}
        for key in ("data", "val_data"):
            if path := getattr(self, key):
                try:
                    files[key] = read_squad(expanded(key, path))
                except DataError as error:
                    raise DataError(f"{key}={error}") from None
        remarks = [f"{key}: {r}" for key, file in files.items() if (r := file.remark())]
        if "val_data" in files:
            return files["data"].questions, mixed(files["val_data"].questions), remarks
        try:
            train, val = hold_out(files["data"].questions, self.val_fraction)
        except DataError as error:
            raise DataError(f"data={self.data}: {error}") from None
        return train, val, remarks


class QuestionWindows(NamedTuple):
    """A question and how a model reads it: the passage, and the windows of it."""

    row: SquadQuestion
    passage: PassageTokens
    windows: list[PassageWindow]

    def targets(self) -> list[tuple[int, int]]:
        """Of each window the tokens with which the first of the right answers begins and ends,
        counted from the window's [CLS]; (0, 0), that token itself: the answer is not in it."""
        if not self.row.answers:
            return [(0, 0)] * len(self.windows)
        answer = self.row.answers[0]
        return [w.places(self.passage, answer.start, answer.end) for w in self.windows]


@final
class QuestionRows:
    """Questions in tokens; those that a model cannot read are left out.

    ``questions``: all of them. ``reader``: makes windows of them.

    Afterwards ``questions`` are those that can be read, in their order, and ``refusals`` says of
    each of the others why not. A ``DataError`` if none is left.
    """

    def __init__(self, questions: Sequence[SquadQuestion], reader: PassageReader) -> None:
        self.reader, self.questions = reader, list[SquadQuestion]()
        self._passages: dict[str, PassageTokens] = {}
        self._queries: list[PassageTokens] = []
        self.refusals: list[str] = []
        counts = []
        for row in questions:
            if row.context not in self._passages:
                self._passages[row.context] = reader.tokens(row.context)
            query = reader.tokens(row.question)
            try:
                counts.append(len(reader.windows(query, self._passages[row.context])))
            except DataError as error:
                self.refusals.append(f"{row.id}: {error}")
                continue
            self.questions.append(row)
            self._queries.append(query)
        if not counts:
            raise DataError(f"no question can be used: {self.refusals[0]}")
        self._ends = np.cumsum(counts)  # windows up to each question's last, for ``window``

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return int(self._ends[-1])

    def question(self, i: int) -> QuestionWindows:
        """Question ``i`` of ``questions`` with all its windows, which are made anew each time."""
        passage = self._passages[self.questions[i].context]
        windows = self.reader.windows(self._queries[i], passage)
        return QuestionWindows(self.questions[i], passage, windows)

    def window(self, n: int) -> tuple[PassageWindow, tuple[int, int]]:
        """Window ``n`` of all, counted through the questions in their order, and its target, as
        ``QuestionWindows.targets`` has it."""
        i = int(np.searchsorted(self._ends, n, side="right"))
        question = self.question(i)
        at = n - int(self._ends[i])  # negative: counted from the end of the question's windows
        return question.windows[at], question.targets()[at]

    def identity(self) -> bytes:
        """A hash of all questions and answers."""
        content = hashlib.sha256()
        for row in self.questions:
            content.update(repr(tuple(row)).encode("utf-8", "surrogatepass"))
        return content.digest()


@final
class AnswerTask(Task):
    """Where in a passage the answer to a question stands.

    ``settings``: those of the training. ``config``: the model's. ``tokenizer``: what makes ids of
    the texts. ``splits``: train and val. ``remarks``: what was left out of the files, in sentences.
    ``start``: a hash of the weights it begins with; None: new ones.
    """

    best = Best("f1", "max")
    noun = "A model that answers questions on passages"
    unit = "windows"
    commands = MappingProxyType(
        {
            "Ask it, of objects with context and question": "addnorm predict {model} FILE.jsonl",
            "How good its answers are": "addnorm eval {model} FILE.json",
        }
    )

    def __init__(
        self,
        settings: AnswerSettings,
        config: BertConfig,
        tokenizer: Tokenizer,
        splits: dict[str, QuestionRows],
        remarks: Sequence[str] = (),
        start: str | None = None,
    ) -> None:
        self.settings, self.config, self.tokenizer = settings, config, tokenizer
        self.splits, self.remarks, self.start = splits, remarks, start
        self._pictures: list[Picture] = []

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the ids of a step, and of each micro-batch what every layer keeps."""
        c, size = self.config, self.settings.rows_per_step
        parameters, trained = counted(self._empty, c.n_layers)
        own = -(-size // processes)
        batch = own * c.context_length * 17  # bytes: ids and types of 8 each, valid of 1
        # in float32, and two of them a layer at the least: one after attention, one after the MLP
        batch += min(micro_rows or own, own) * c.context_length * 4 * 2 * c.n_layers * c.dim
        names = ("context_length", "dim", "n_layers")
        because = ", ".join(f"model.{n}={getattr(c, n)}" for n in names)
        because += f", rows_per_step={size}, micro_rows={micro_rows}"
        return Needs(parameters, trained, c.n_layers * MODULES, batch, because)

    def _empty(self, layers: int) -> Bert:
        """The model without memory, with so many layers."""
        with torch.device("meta"):
            return Bert(replace(self.config, n_layers=layers))

    def model(self) -> Bert:
        """New, or what ``init_from`` names."""
        if self.settings.init_from is None:
            return Bert(self.config)
        return Bert.from_pretrained(
            self.settings.init_from, dropout=self.settings.dropout, head="answer"
        )

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's windows, in an order of each epoch's own."""
        rows, size = self.splits[split], self.settings.rows_per_step
        numbers = np.arange(step * size, (step + 1) * size)[rank::world]
        epochs, places = np.divmod(numbers, rows.windows)
        for epoch in np.unique(epochs):
            key = order_key(f"{split}, seed {seed}, epoch {epoch}")
            mine = epochs == epoch
            places[mine] = shuffled(places[mine], rows.windows, key)
        pairs = [rows.window(int(n)) for n in places]
        targets = torch.tensor([target for _, target in pairs]).reshape(-1, 2)
        batch = window_batch([window for window, _ in pairs])
        return {**batch, "start": targets[:, 0], "end": targets[:, 1]}

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows."""
        return self.batch(split, seed, step, 0, self.settings.rows_per_step)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy of beginning and end, their mean, summed over windows; ``right`` are those
        of which both are the most probable."""
        logits = self._logits(model, batch)
        targets = torch.stack([batch["start"], batch["end"]], -1)  # (B, 2)
        nll = F.cross_entropy(logits, targets, reduction="sum") / 2
        right = (logits.argmax(1) == targets).all(-1).sum()
        return nll, torch.tensor(len(targets), device=nll.device), {"right": right}

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, T, 2) in float32, -inf where there is no token, so that padding changes nothing."""
        # a model with a single type, as one from init_from may be, sees question and passage alike
        types = batch["types"].clamp(max=self.config.types - 1)
        logits = model(batch["ids"], batch["valid"], types).float()
        return logits.masked_fill(~batch["valid"][..., None], -torch.inf)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Exact match and F1 of all questions held out, and the loss of their windows."""
        return self._measured(model, len(self.splits["val"]))

    def glance(self, model: nn.Module) -> dict[str, float]:
        """The same of the first ones, which a hash has put there."""
        return self._measured(model, min(self.settings.glance_questions, len(self.splits["val"])))

    def _measured(self, model: nn.Module, limit: int) -> dict[str, float]:
        """f1, exact_match (both from 0 to 1) and val_loss of the first ``limit`` questions held
        out, one at least; every process calls it with the same."""
        rows = self.splits["val"]
        questions = [rows.question(i) for i in range(limit)]
        spans, loss = self._spans(model, questions)
        scores = [
            score(
                "" if span.start is None else q.row.context[span.start : span.end],
                [answer.text for answer in q.row.answers],
            )
            for q, span in zip(questions, spans, strict=True)
        ]
        self._pictures = worst_answers([q.row for q in questions], spans, scores)
        exact, f1 = (sum(values) / limit for values in zip(*scores, strict=True))
        return {"f1": f1, "exact_match": exact, "val_loss": loss}

    def _spans(
        self, model: nn.Module, questions: Sequence[QuestionWindows]
    ) -> tuple[list[Span], float]:
        """The answer to each, and the mean loss of their windows. By all processes together: each
        must call it with the same questions, and gets the same."""
        device = next(model.parameters()).device
        world = here(device)
        windows = [window for q in questions for window in q.windows]
        targets = [target for q in questions for target in q.targets()]
        # Four columns are those of best_spans, one is the loss. Each process fills its own rows,
        # the others are 0, so that the sum over processes is all of them.
        sums = torch.zeros(len(windows), 5, dtype=torch.float64)
        step = EVAL_ROWS * world.size
        with evaluation_mode(model.modules()), torch.no_grad():
            for first in range(0, len(windows), step):
                mine = range(first, min(first + step, len(windows)))[world.rank :: world.size]
                # A process without a row computes one all the same: a sharded model needs them all.
                part = [windows[i] for i in mine] or windows[:1]
                batch = {n: t.to(device) for n, t in window_batch(part).items()}
                logits = self._logits(model, batch).cpu()
                if mine:
                    right = torch.tensor([targets[i] for i in mine])
                    nll = F.cross_entropy(logits, right, reduction="none").mean(-1)
                    sums[list(mine), :4] = best_spans(logits, part, LONGEST_ANSWER)
                    sums[list(mine), 4] = nll.double()
        sums = world.total(sums.to(sum_dtype(device))).double()
        parts = sums[:, :4].split([len(q.windows) for q in questions])
        spans = [
            best_answer(of_one, q.windows, q.passage, 0.0)
            for of_one, q in zip(parts, questions, strict=True)
        ]
        return spans, float(sums[:, 4].mean())

    def pictures(self) -> list[Picture]:
        """The worst answers of the last evaluation."""
        return self._pictures

    def sample(self, model: nn.Module) -> list[str]:
        """Held-out questions, with the answer marked in its passage."""
        if not isinstance(model, Bert):
            return []
        rows = self.splits["val"]
        questions = [rows.question(i) for i in range(min(self.settings.samples, len(rows)))]
        if not questions:
            return []
        spans, _ = self._spans(model, questions)
        return [marked(q.row, span) for q, span in zip(questions, spans, strict=True)]

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm.load``, ``addnorm predict`` and, if it is one, transformers' BERT."""
        assert isinstance(model, Bert)
        model.save_pretrained(folder, tokenizer=self.tokenizer)

    def facts(self) -> dict[str, Any]:
        """The questions, the tokenizer, what the model is and which weights it began with."""
        dropouts = ("dropout", "attention_dropout", "head_dropout")
        model = {key: value for key, value in asdict(self.config).items() if key not in dropouts}
        content = hashlib.sha256(b"".join(self.splits[n].identity() for n in ("train", "val")))
        return {
            "content": content.hexdigest()[:16],
            "tokenizer": self.tokenizer.identity,
            "rows_per_step": self.settings.rows_per_step,
            "model": model,
            **({} if self.start is None else {"start": self.start}),
        }

    def introduction(self) -> list[str]:
        """The data and the model."""
        return [*self._about_data(), self._about_model()]

    def _about_data(self) -> Iterator[str]:
        """Sentences on how much there is, what was left out, and answers that are too long."""
        train, val = self.splits["train"], self.splits["val"]
        impossible = sum(not row.answers for row in val.questions) / len(val)
        yield (
            f"{self.settings.data}: {plural(len(train), 'question')} to learn from in "
            f"{plural(train.windows, 'window')}, {len(val):,} held out, of which {impossible:.1%} "
            "have no answer"
        )
        yield from self.remarks
        for name, rows in self.splits.items():
            if rows.refusals:
                count = plural(len(rows.refusals), "question")
                yield f"{name}: {count} left out, as {rows.refusals[0]}"
        if self._longest > LONGEST_ANSWER:
            yield (
                f"the longest answer has {self._longest} tokens; what is answered has at most "
                f"{LONGEST_ANSWER}, unless predict and eval are given another --max-answer"
            )

    @cached_property
    def _longest(self) -> int:
        """Tokens of the longest answer held out."""
        rows = self.splits["val"]
        questions = (rows.question(i) for i in range(len(rows)))
        return max(e - s + 1 for question in questions for s, e in question.targets())

    def _about_model(self) -> str:
        """The size and the shape of the model, in a line."""
        c = self.config
        parameters, _ = counted(self._empty, c.n_layers)
        return (
            f"model: {parameters:,} parameters, {c.scheme}, {c.n_layers} layers of width {c.dim}, "
            f"{c.context_length} tokens at a time"
        )


def hold_out(
    questions: Sequence[SquadQuestion], fraction: float
) -> tuple[list[SquadQuestion], list[SquadQuestion]]:
    """(to learn from, held out), whole articles, or whole passages where there are few articles:
    those whose hashes are the smallest, until there are ``fraction`` of the questions; one at least
    is left to learn from. A ``DataError`` where there is a single passage."""
    by_title = len({row.title for row in questions}) >= ENOUGH
    groups: dict[str, list[SquadQuestion]] = {}
    for row in questions:
        groups.setdefault(row.title if by_title else row.context, []).append(row)
    if len(groups) < 2:
        raise DataError("it has one passage: give more, or val_data=FILE with what to hold out")
    val: list[SquadQuestion] = []
    order = sorted(groups, key=text_hash)
    while len(order) > 1 and len(val) < fraction * len(questions):
        val += groups[order.pop(0)]
    rest = set(order)
    return [row for name in groups if name in rest for row in groups[name]], mixed(val)


def mixed(questions: Sequence[SquadQuestion]) -> list[SquadQuestion]:
    """In the order of their hashes, so that the first few, which ``glance`` looks at, are of all
    passages, and the same in every run."""
    return sorted(questions, key=lambda row: text_hash(f"{row.id} {row.question} {row.context}"))


def marked(row: SquadQuestion, span: Span) -> str:
    """The question, the passage with what was answered marked, [[so]], and AROUND characters on
    either side, and what is right; a sample, for a person."""
    if span.start is None or span.end is None:
        passage = row.context[: 2 * AROUND]
        text = f"(no answer) {passage}{'...' if len(row.context) > len(passage) else ''}"
    else:
        first, last = max(span.start - AROUND, 0), span.end + AROUND
        before = f"{'...' if first else ''}{row.context[first : span.start]}"
        after = f"{row.context[span.end : last]}{'...' if last < len(row.context) else ''}"
        text = f"{before}[[{row.context[span.start : span.end]}]]{after}"
    right = " / ".join(dict.fromkeys(answer.text for answer in row.answers)) or "(no answer)"
    return f"{row.question}\n{text}\nright: {right}"


def _answering(folder: Path, dropout: float) -> BertConfig:
    """The configuration of a BERT's folder, with the head answer. ``dropout`` replaces its own."""
    return replace(bert.inspect(folder, dropout).config, head="answer")
