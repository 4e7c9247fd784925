"""Conversations: a ``GPT`` that answers, learned from the assistant's turns and their ends alone.

A row is a conversation, or the part of a long one that ends in an answer to be learned; what has no
room is left out by the rule of ``addnorm.data.chat``, which is the rule while one talks with the
model too. A batch has rows of unlike length, filled up behind; which, and in which order, depends
on (seed, step) alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from addnorm.adapt import Adapt
from addnorm.data.chat import (
    END,
    ROLE_MARKS,
    TOKENS,
    ChatError,
    ChatRow,
    ChatTokenizer,
    words_template,
)
from addnorm.data.dialogues import ASSISTANT, SYSTEM, USER, Dialogue, read_dialogues, to_object
from addnorm.data.order import order_key, shuffled
from addnorm.data.sources import DataError, Texts
from addnorm.data.split import HASHES, text_hash
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files import chat as chat_files
from addnorm.files import folders
from addnorm.generation import generate
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from addnorm.settings import AtResume, SettingsError, check_effect, setting
from addnorm.tasks.beginnings import (
    FROM_NOTHING,
    OF_ADAPTER,
    OF_GPT,
    check_adapter,
    compare,
    config_beside,
    opened_model,
    owns_its_weights,
    put_adapter,
    save_model,
    with_clock,
    with_more_tokens,
)
from addnorm.tasks.examples import WORST, Picture, Reply, worst_replies
from addnorm.tasks.texts import check, chosen, expanded
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.parallel import here, sum_dtype
from addnorm.training.task import Batch, Best, Task
from addnorm.uses.dialogue_scores import (
    ROWS,
    DialogueScore,
    answer_batch,
    answer_bytes,
    answer_nats,
    total_nats,
)
from addnorm.words import plural

GLANCE_ROWS = 512  # of the held-out ones, for the curve while training
MOST_SAMPLES = 100  # each takes about a second of every evaluation
SAMPLE = 100  # tokens of a sample at most
QUESTIONS = 100  # held-out ones among which the worst answers are looked for
SOURCES = {
    "content": ["data", "val_data"],
    "tokenizer": ["tokenizer"],
    "template": ["template"],
    "rows_per_step": ["rows_per_step"],
    "context": ["model.context_length"],
    "model": ["init_from"],
    "start": ["init_from"],
}
"""Fact of a task -> the settings that it comes from."""


@final
@register
@dataclass(frozen=True, kw_only=True)
class ChatSettings(TaskSettings):
    """The settings of a training on conversations, apart from the loop's."""

    name = "chat"
    data: str = setting("", AtResume.IF_SAME)
    """Conversations: a .jsonl with messages (OpenAI) or conversations (ShareGPT), a .yml of the
    chatterbot corpus, or a folder of such files."""
    tokenizer: str = setting("bytes", AtResume.IF_SAME, FROM_NOTHING, elsewhere=True)
    """bytes, characters, bpe:SIZE (learned from the data), or a folder or hub id with one."""
    template: Literal["auto", "tokens", "words"] = setting("auto", AtResume.IF_SAME)
    """The marks around turns: new tokens, or words and the token that ends a text; auto: those of
    the model of init_from if it has any, else words with an adapter, tokens without."""
    val_data: str = setting("", AtResume.IF_SAME)
    """Conversations to hold out, in one of these formats; by itself a share of data."""
    val_fraction: float = setting(0.1, AtResume.ANEW, {"val_data": ("",)})
    """How many of the conversations are held out, chosen by a hash of the first turn of each."""
    rows_per_step: int = setting(32, AtResume.BY_TUNING)
    """Conversations in one optimizer step, over all micro-batches and processes."""
    dropout: float = setting(0.0, AtResume.WITH_NOTICE)
    """In embeddings, attention and branches."""
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of a GPT-2 or of ours to start from; its model settings are taken."""
    samples: int = setting(3, AtResume.FREELY)
    """Held-out first turns to answer at evaluations, for whoever watches."""
    cache: Path = setting(Path("~/.cache/addnorm/data"), AtResume.FREELY)
    """Where learned tokenizers are kept."""
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
        if self.rows_per_step < 1:
            raise SettingsError(f"rows_per_step must be at least 1, got {self.rows_per_step}")
        if not 0 <= self.samples <= MOST_SAMPLES:
            raise SettingsError(f"samples must be between 0 and {MOST_SAMPLES}, got {self.samples}")

    def beside(self, loop: LoopSettings) -> "ChatSettings":
        """AdaLoRA's ranks fall by the clock of the run, where nothing else is said."""
        return with_clock(self, self.adapt, loop)

    def begins_another(self, then: Mapping[str, Any]) -> bool:
        """Not if what was trained is no part of the model's own weights."""
        return owns_its_weights(then)

    def by_heart(self) -> Mapping[str, Any]:
        """No dropout."""
        return {"dropout": 0.0}

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
        """The settings behind a fact."""
        return SOURCES.get(fact, [])

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "ChatTask":
        """Read the conversations, and make the task of them; all ``choices`` count."""
        if not self.data:
            raise SettingsError("data is not set: a .jsonl of conversations, or a folder of them")
        check_adapter(self.adapt, self.init_from)
        splits = self._splits()
        dialogues = [dialogue for part in splits.values() for dialogue in part]
        config, start = replace(self.model, dropout=self.dropout), None
        if self.init_from is not None:
            config, tokenizer, start = opened_model(self.init_from, self.dropout)
            compare(self, self.init_from, config, tokenizer, choices)
        else:
            tokenizer = self._tokenizer(dialogues, splits["train"])
        chat = self._chat(tokenizer)
        size = chat.vocab_size if start is None else max(chat.vocab_size, config.vocab_size)
        config = replace(config, vocab_size=size)
        return ChatTask(self, config, chat, splits, Start(start, tokenizer.vocab_size))

    def _splits(self) -> dict[str, list[Dialogue]]:
        """``train`` and ``val``."""
        words = f"data={self.data}" + (f", val_data={self.val_data}" if self.val_data else "")
        try:
            dialogues = read_dialogues(expanded("data", self.data))
            if not self.val_data:
                return split_dialogues(dialogues, self.val_fraction)
            return {"train": dialogues, "val": read_dialogues(expanded("val_data", self.val_data))}
        except DataError as error:
            raise DataError(f"{words}: {error}") from None

    def _tokenizer(self, dialogues: Sequence[Dialogue], train: Sequence[Dialogue]) -> Tokenizer:
        """The tokenizer that the setting names. One that is learned learns from ``train``; one of
        characters has those of all ``dialogues``."""
        texts = [turn.text for dialogue in train for turn in dialogue]
        return chosen(
            self.tokenizer,
            texts=lambda: texts,
            decides=lambda: [Texts(texts).identity()],
            cache=expanded("cache", self.cache),
            characters=lambda: [turn.text for dialogue in dialogues for turn in dialogue],
        )

    def _chat(self, tokenizer: Tokenizer) -> ChatTokenizer:
        """The tokenizer with the marks that ``template`` asks for, and with new tokens for them if
        it lacks some; a ``SettingsError`` where the model or its adapter cannot have these
        marks."""
        kind = self.template
        if kind == "auto" and self.init_from is not None:
            try:
                own = chat_files.read(folders.find(self.init_from), tokenizer)
            except Mendable as error:
                raise SettingsError(
                    f"init_from={self.init_from}: {error}. template=tokens gives it other marks"
                ) from None
            if own is not None:
                return own
        if kind == "auto":
            kind = "tokens" if self.adapt.kind == "none" else "words"
        if kind == "words":
            # its name, since a template is made of texts
            end = next((n for n, id in tokenizer.special.items() if id == tokenizer.eos_id), None)
            if end is None:
                raise SettingsError(
                    "template=words needs a tokenizer with a token that ends a text, and this one "
                    "has none: take template=tokens"
                )
            return ChatTokenizer(tokenizer, words_template(end))
        marked = tokenizer.with_special([*ROLE_MARKS.values(), END])
        if marked is not tokenizer and self.adapt.kind != "none":
            raise SettingsError(
                f"template=tokens adds tokens to the model, and adapt.kind={self.adapt.kind} "
                "trains no table of tokens: take template=words"
            )
        return ChatTokenizer(marked, TOKENS)


def split_dialogues(
    dialogues: Sequence[Dialogue], val_fraction: float
) -> dict[str, list[Dialogue]]:
    """``train`` and ``val``, divided by a hash of the first turn that is not the system's: those
    that begin alike, whatever their case and spacing, go to the same side. A ``DataError`` where a
    side is empty."""
    splits: dict[str, list[Dialogue]] = {"train": [], "val": []}
    for dialogue in dialogues:
        number = text_hash(_opening(dialogue))
        splits["val" if number / HASHES < val_fraction else "train"].append(dialogue)
    for name, purpose in (("train", "learn from"), ("val", "hold out")):
        if not splits[name]:
            raise DataError(
                f"of {plural(len(dialogues), 'conversation')} none is left to {purpose} with "
                f"val_fraction={val_fraction:g}: conversations that begin alike stay together"
            )
    return splits


def _opening(dialogue: Dialogue) -> str:
    """The first turn that is not the system's, by its words."""
    first = next(turn.text for turn in dialogue if turn.role != SYSTEM)
    return " ".join(first.casefold().split())


class Start(NamedTuple):
    """What a training begins with: the ``identity`` of the weights, None: new ones, and how many
    ``tokens`` the tokenizer had before marks were added."""

    identity: str | None
    tokens: int


@final
class ChatTask(Task):
    """The next token of answers; the rest of a conversation is read only.

    ``settings``: those of the training. ``config``: that of the model without its adapter.
    ``chat``: what makes ids of conversations. ``splits``: train and val. ``start``: what the
    training begins with. A ``DataError`` where the context has no room for a conversation.
    """

    best = Best("val_loss", "min")
    noun = "A model of conversations"
    unit = "tokens of answers"
    commands = MappingProxyType(
        {
            "Talk with it": "addnorm chat {model}",
            "Write with it": 'addnorm generate {model} "Once upon a time"',
        }
    )

    def __init__(
        self,
        settings: ChatSettings,
        config: GPTConfig,
        chat: ChatTokenizer,
        splits: Mapping[str, Sequence[Dialogue]],
        start: Start,
    ) -> None:
        self.settings, self.base, self.chat, self.start = settings, config, chat, start
        config = self.config = config_beside(settings.adapt, config)
        self.dialogues = splits
        self._pictures: list[Picture] = []
        try:
            self.rows = {
                name: [row for one in part for row in chat.rows(one, config.context_length)]
                for name, part in splits.items()
            }
        except ChatError as error:
            raise DataError(
                f"{error} (model.context_length={config.context_length}, data={settings.data})"
            ) from None

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the ids of a step, and of each micro-batch the logits with their gradient and
        what every layer keeps of the stream."""
        c, size = self.config, self.settings.rows_per_step
        parameters, trained = counted(self._empty, c.n_layers)
        longest = max(len(row.ids) for rows in self.rows.values() for row in rows)
        own = -(-size // processes)
        tokens = min(micro_rows or own, own) * longest
        # bytes: an id and its target are 9; logits and stream are in float32
        batch = own * longest * 9 + tokens * 4 * (2 * c.vocab_size + 2 * c.n_layers * c.dim)
        names = ("context_length", "dim", "n_layers", "hidden", "vocab_multiple")
        because = ", ".join(f"model.{n}={getattr(c, n)}" for n in names)
        because += f", rows_per_step={size}, micro_rows={micro_rows}"
        because += f", a vocabulary of {c.vocab_size:,}"
        return Needs(parameters, trained, c.n_layers * MODULES, batch, because)

    def _empty(self, layers: int) -> GPT:
        """The model without memory, with so many layers."""
        with torch.device("meta"):
            model = GPT(replace(self.base, n_layers=layers))
            put_adapter(self.settings.adapt, model, self.chat)
        return model

    def model(self) -> GPT:
        """New, or what ``init_from`` names, with rows for the marks where it had none."""
        if self.settings.init_from is None:
            model = GPT(self.base)
        else:
            model = GPT.from_pretrained(self.settings.init_from, dropout=self.settings.dropout)
            if self.start.tokens < self.chat.vocab_size:
                model = with_more_tokens(model, self.base, self.start.tokens)
            put_adapter(self.settings.adapt, model, self.chat)
        model.tokenizer_identity = self.chat.identity
        return model

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's: ``ids`` and which of them are a ``target``,
        both (rows, longest)."""
        rows, size = self.rows[split], self.settings.rows_per_step
        numbers = np.arange(step * size, (step + 1) * size)
        places = np.empty_like(numbers)
        for epoch in np.unique(numbers // len(rows)):
            ours = numbers // len(rows) == epoch
            key = order_key(f"addnorm chat, seed {seed}, epoch {epoch}")
            places[ours] = shuffled(numbers[ours] % len(rows), len(rows), key)
        # filled up to the longest of the step, so that a row is the same on any number of processes
        return {n: t[rank::world] for n, t in answer_batch([rows[i] for i in places]).items()}

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows."""
        return self.batch(split, seed, step, 0, self.settings.rows_per_step)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy of the tokens of answers and of their ends, in float32, summed."""
        return *answer_nats(model, batch), {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats per token, perplexity and bits per byte of all answers that were held out."""
        rows = self.rows["val"]
        score = DialogueScore(*self._score(model, rows), answer_bytes(self.chat, rows))
        self._pictures = self._worst(model)
        return {
            "val_loss": score.loss,
            "perplexity": score.perplexity,
            "bits_per_byte": score.bits_per_byte,
        }

    def glance(self, model: nn.Module) -> dict[str, float]:
        """Nats per token of the first answers that were held out."""
        nats, count = self._score(model, self.rows["val"][:GLANCE_ROWS])
        return {"val_loss": nats / max(count, 1)}

    def _score(self, model: nn.Module, rows: Sequence[ChatRow]) -> tuple[float, int]:
        """(nats, tokens) of the answers of these rows. By all processes together: each must call it
        with the same rows, and gets the same."""
        device = next(model.parameters()).device
        world = here(device)
        step = ROWS * world.size
        # a process without a row computes one that counts nothing: a sharded model needs them all
        silent = [row._replace(target=np.zeros_like(row.target)) for row in rows[:1]]
        parts = (
            rows[first : first + step][world.rank :: world.size] or silent
            for first in range(0, len(rows), step)
        )
        sums = torch.tensor(total_nats(model, parts), dtype=torch.float64)
        nats, tokens = world.total(sums.to(sum_dtype(device))).tolist()
        return nats, round(tokens)

    def sample(self, model: nn.Module) -> list[str]:
        """Answers to held-out first turns, from fixed seeds: those of one run can be compared."""
        openings = [exchange[:-1] for exchange in self._exchanges(self.settings.samples)]
        if not isinstance(model, GPT) or not openings:
            return []
        context = self.config.context_length
        prompts = [self.chat.prompt(opening, context, SAMPLE) for opening in openings]
        answers = generate(
            model,
            [prompt.ids for prompt in prompts],
            tokenizer=self.chat,
            max_new_tokens=min(prompt.answer for prompt in prompts),
            temperature=0.8,  # as addnorm chat has it by itself
            top_p=0.95,
            seed=0,
        )
        return [
            f"> {opening[-1].text}\n{answer.text}"
            for opening, answer in zip(openings, answers, strict=True)
        ]

    def _exchanges(self, most: int) -> list[Dialogue]:
        """The beginnings of held-out conversations up to the first answer, where that is to a turn
        of the user: so many of them, and one where several have the same turn."""
        exchanges: dict[str, Dialogue] = {}
        for dialogue in self.dialogues["val"]:
            roles = [turn.role for turn in dialogue]
            first = roles.index(ASSISTANT)
            if first and roles[first - 1] == USER:
                exchanges.setdefault(dialogue[first - 1].text, dialogue[: first + 1])
        return list(exchanges.values())[:most]

    def _worst(self, model: nn.Module) -> list[Picture]:
        """Of the first held-out questions those whose right answers are the least probable, and
        what the model says instead, its most probable token at each place; with several processes
        nothing."""
        device, context = next(model.parameters()).device, self.config.context_length
        exchanges = self._exchanges(QUESTIONS)
        if not isinstance(model, GPT) or not exchanges or here(device).size > 1:
            return []
        rows = [self.chat.rows(exchange, context)[-1] for exchange in exchanges]
        nats = [total / max(count, 1) for total, count in (self._score(model, [r]) for r in rows)]
        order = sorted(range(len(rows)), key=lambda i: -nats[i])[:WORST]
        prompts = [self.chat.prompt(exchanges[i][:-1], context, SAMPLE) for i in order]
        answers = generate(
            model,
            [prompt.ids for prompt in prompts],
            tokenizer=self.chat,
            max_new_tokens=min(prompt.answer for prompt in prompts),
            temperature=0.0,
        )
        replies = [
            Reply(exchanges[i][-2].text, exchanges[i][-1].text, answer.text, nats[i])
            for i, answer in zip(order, answers, strict=True)
        ]
        return worst_replies(replies, len(rows))

    def pictures(self) -> list[Picture]:
        """The worst answers of the last evaluation of all."""
        return self._pictures

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm chat``, with the template beside the tokenizer, and for adapters too."""
        save_model(model, self.settings.adapt, folder, self.chat)

    def facts(self) -> dict[str, Any]:
        """The conversations, the marks, the tokenizer, the rows of a step, what the model is and
        which weights it began with."""
        content = hashlib.sha256()
        for name in ("train", "val"):
            for dialogue in self.dialogues[name]:
                content.update(json.dumps([name, to_object(dialogue)]).encode())
        model = {key: value for key, value in asdict(self.config).items() if key != "dropout"}
        return {
            "content": content.hexdigest()[:16],
            "tokenizer": self.chat.identity,
            "template": self.chat.template.to_json(),
            "rows_per_step": self.settings.rows_per_step,
            "context": self.config.context_length,
            "model": model,
            **({} if self.start.identity is None else {"start": self.start.identity}),
        }

    def introduction(self) -> list[str]:
        """The conversations, what of them is learned, and the model."""
        c, rows = self.config, self.rows["train"]
        parameters, trained = counted(self._empty, c.n_layers)
        train, val = (len(self.dialogues[name]) for name in ("train", "val"))
        learned = sum(int(row.target.sum()) for row in rows)
        tokens = sum(len(row.ids) for row in rows)
        lines = [
            f"{self.settings.data}: {plural(train, 'conversation')} to learn from, {val:,} held "
            f"out; {learned:,} of {tokens:,} tokens are of answers, and learned",
        ]
        if len(rows) > train:
            lines.append(
                f"longer ones than the context of {c.context_length} are cut: {len(rows):,} rows, "
                "in each as many of the last turns as have room"
            )
        learned_openings = {_opening(one) for one in self.dialogues["train"]}
        alike = sum(_opening(one) in learned_openings for one in self.dialogues["val"])
        if alike:
            lines.append(
                f"{plural(alike, 'conversation')} of {self.settings.val_data} "
                f"{'begins' if alike == 1 else 'begin'} as one of {self.settings.data} does: what "
                "is measured on such may be what was learned by heart"
            )
        if self.settings.adapt.kind != "none":
            lines.append(
                f"only an adapter is trained: {self.settings.adapt.kind}, {trained:,} parameters"
            )
        if self.start.identity is not None and self.start.tokens < self.chat.vocab_size:
            added = self.chat.vocab_size - self.start.tokens
            lines.append(f"the vocabulary gets {plural(added, 'token')} for the marks of turns")
        return [
            *lines,
            f"model: {parameters:,} parameters, {c.scheme}, {c.n_layers} layers of width {c.dim}, "
            f"context {c.context_length}, vocabulary {c.vocab_size:,}",
            f"step: {self.settings.rows_per_step} rows; an epoch is "
            f"{len(rows) / self.settings.rows_per_step:,.0f} steps",
        ]
