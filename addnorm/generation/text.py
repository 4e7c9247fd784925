"""Text after text: ``generate`` at once, ``stream_text`` piece by piece.

What one row gets is decided by its prompt, the options and its seed alone: not by the other prompts
of the batch (apart from rounding), and not by whether it is streamed.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, Unpack, final, overload

import torch
from torch import Tensor

from addnorm.errors import Mendable, unknown_name
from addnorm.generation.beyond_context import Beyond
from addnorm.generation.constraint import TokenBytes, pieces
from addnorm.generation.decode import Decoder, LanguageModel, check_beyond, row_seeds, whole
from addnorm.generation.limits import Limits, Stop
from addnorm.generation.sampling import Sampling
from addnorm.generation.stopping import StopStrings, looped

FOREVER = 1 << 62  # tokens: a budget in which every text can be finished that can be at all
Finish = Literal["stop", "eos", "length"]
PromptInput = str | Sequence[int]
"""What a text follows: a text, or the ids of one, which may be such as no text has."""


class CharacterStream(Protocol):
    """Ids to text, one at a time: only whole characters come out."""

    def push(self, id: int) -> str: ...

    def flush(self) -> str: ...


class TokenizerLike(TokenBytes, Protocol):
    """What generation needs of a tokenizer; ``addnorm.data.tokenizer.Tokenizer`` has it."""

    @property
    def identity(self) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def stream(self) -> CharacterStream: ...


@final
@dataclass(frozen=True)
class Generated:
    """What was written after one prompt.

    ``prompt``, ``prompt_ids``: the prompt, "" where it came as ids, and its ids.
    ``text``: what was written, without the prompt, the stop string and the end of text.
    ``ids``: every token that was chosen, those of the stop string and EOS included.
    ``logprobs``: of each of them, in the model's own distribution (temperature 1, no filter).
    ``top_logprobs``: the most probable ids at each place with theirs, if they were asked for.
    ``finish``: why it ended: "stop" at a stop string or where the regex has no more to say, "eos",
    "length"; None: it was interrupted.
    ``stop``: the stop string that ended it.
    ``looped``: whether it ends in a loop, as ``addnorm.generation.stopping.looped`` says.
    ``seed``: alone with this seed, the prompt gets the same answer; None: it was greedy.
    """

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    top_logprobs: list[list[tuple[int, float]]]
    finish: Finish | None
    stop: str | None
    looped: bool
    seed: int | None


class Piece(NamedTuple):
    """A part of the text of a row.

    ``row``: the number of its prompt; ``text``: whole characters, and nothing of a stop string.
    """

    row: int
    text: str


@final
class _Row:
    """One prompt and what has come of it so far. ``texts`` are the parts that were passed on; what
    may yet become a stop string, or half a character, waits in between."""

    def __init__(
        self, prompt: str, prompt_ids: list[int], characters: CharacterStream, stops: StopStrings
    ) -> None:
        self.prompt, self.prompt_ids = prompt, prompt_ids
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.top: list[list[tuple[int, float]]] = []
        self.texts: list[str] = []
        self.state = 0  # in the constraint
        self.finish: Finish | None = None
        self._characters, self._watch = characters, stops.watch()

    def read(self, id: int) -> str:
        """The text that is certain after one more id; sets ``finish`` at a stop string."""
        return self._pass_on(self._watch.push(self._characters.push(id)))

    def end(self) -> str:
        """The text that was waiting for more, of a row that is over: it is text after all, unless a
        stop string was in it."""
        text = self._watch.push(self._characters.flush())
        return self._pass_on(text + ("" if self._watch.hit else self._watch.tail))

    def _pass_on(self, text: str) -> str:
        """Note a text that is certain, and that the row is over if a stop string came behind it."""
        if self._watch.hit:
            self.finish = "stop"
        self.texts.append(text)
        return text

    def result(self, seed: int | None) -> Generated:
        """What there is so far, copied; of a row that is not over with the text that waits."""
        waiting = "" if self.finish else self._watch.tail
        of_text = self.ids[:-1] if self.finish == "eos" else self.ids
        return Generated(
            prompt=self.prompt,
            text="".join(self.texts) + waiting,
            prompt_ids=list(self.prompt_ids),
            ids=list(self.ids),
            logprobs=list(self.logprobs),
            top_logprobs=list(self.top),
            finish=self.finish,
            stop=self._watch.hit,
            looped=looped(of_text),
            seed=seed,
        )


class WritingOptions(TypedDict, total=False):
    """What ``generate`` and ``stream_text`` take, for type checkers: the fields of ``Sampling`` and
    ``Limits``, which have the defaults, and the last two arguments of ``Writing``."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    max_new_tokens: int
    stop: Stop
    eos: int | Literal["tokenizer"] | None
    banned_words: Sequence[str]
    regex: str | None
    beyond: Beyond
    seed: int | Sequence[int] | None
    top_logprobs: int


@final
class Writing:
    """The pieces of text of all rows as they come; ``results`` at any time.

    ``model``: what writes; ``prompts``: for each row a text, or a list of ids; ``tokenizer``: the
    model's own.
    ``sampling``: how a token is chosen; ``limits``: when a text ends, and which it may be.
    ``seed``: row i draws with ``seed + i``, or give one seed for each row; without it, the global
    generator decides.
    ``top_logprobs``: how many of the most probable tokens to note at every place.

    If the loop over it is left, or interrupted, ``results`` hold the text so far, with ``finish``
    None where a row was not done; another loop over it goes on from there.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[PromptInput],
        tokenizer: TokenizerLike,
        sampling: Sampling,
        limits: Limits,
        *,
        seed: int | Sequence[int] | None = None,
        top_logprobs: int = 0,
    ) -> None:
        check_tokenizer(model, tokenizer)
        self._eos = limits.eos_id(model, tokenizer)
        if top_logprobs not in range(tokenizer.vocab_size + 1):
            raise Mendable(
                f"top_logprobs must be between 0 and the {tokenizer.vocab_size} tokens there are, "
                f"got {top_logprobs}"
            )
        self._most, self._top = limits.max_new_tokens, top_logprobs
        stops = limits.stop_strings(len(prompts))
        self._constraint = limits.constraint(tokenizer)
        self._base = _decodable(model, tokenizer)
        self._rows = [
            _Row(
                prompt if isinstance(prompt, str) else "",
                _ids(model, tokenizer, prompt, i),
                tokenizer.stream(),
                stops[i],
            )
            for i, prompt in enumerate(prompts)
        ]
        prompt_ids = [row.prompt_ids for row in self._rows]
        longest = max(map(len, prompt_ids), default=0)
        check_beyond(limits.beyond, model, longest, limits.max_new_tokens)
        self._greedy = sampling.temperature == 0
        self._seeds = row_seeds(seed, len(prompts), sampling)
        self._decoder = Decoder(model, prompt_ids, sampling, self._seeds, limits.beyond)
        self._ready: list[Piece] = []
        for i in range(len(self._rows)):
            self._end_if_done(i)

    def __iter__(self) -> "Writing":
        return self

    def __next__(self) -> Piece:
        while not self._ready:
            if all(row.finish for row in self._rows):
                raise StopIteration
            self._step()
        return self._ready.pop(0)

    @property
    def results(self) -> list[Generated]:
        """What there is of every row."""
        return [
            row.result(None if self._greedy else seed)
            for row, seed in zip(self._rows, self._seeds, strict=True)
        ]

    @property
    def remaining(self) -> int:
        """How many tokens are still to come, of all rows, at most."""
        return sum(self._most - len(row.ids) for row in self._rows if not row.finish)

    def _step(self) -> None:
        """One token for every row that is not over; pieces that are certain go to ``_ready``."""
        places = list(self._decoder.rows)
        ids = self._decoder.step(self._candidates(places))
        for i, id, (logprob, top) in zip(
            places, ids, self._decoder.logprobs(self._top), strict=True
        ):
            row = self._rows[i]
            if row.finish:
                continue  # computed on, because the compiler wants the same shape
            row.ids.append(id)
            row.logprobs.append(logprob)
            if self._top:
                row.top.append(top)
            text = ""
            if id == self._eos:
                row.finish = "eos"
                text = row.end()
            else:
                text = row.read(id)
                if self._constraint is not None:
                    row.state = self._constraint.step(row.state, id)
            if text:
                self._ready.append(Piece(i, text))
            self._end_if_done(i)
        finished_rows = [i for i in places if self._rows[i].finish]
        if finished_rows:
            self._decoder.drop(finished_rows)

    def _end_if_done(self, i: int) -> None:
        """Finish row ``i`` if it has no token left, or nothing left to say by the constraint; what
        waited in it goes to ``_ready``. A row that is finished stays so."""
        row = self._rows[i]
        if row.finish:
            return
        rules, budget = self._constraint, self._most - len(row.ids)
        if budget == 0:
            row.finish = "length"
        if rules is not None and rules.may_end(row.state):
            if not rules.candidates(row.state, budget).any():
                row.finish = "length"  # there is more to say, but not in so few tokens
            if not rules.candidates(row.state, FOREVER).any():
                row.finish = "stop"
        if row.finish:
            text = row.end()
            if text:
                self._ready.append(Piece(i, text))

    def _candidates(self, places: Sequence[int]) -> Tensor | None:
        """(rows, V) or (V,) True for what may come next in the rows whose numbers are ``places``,
        those that are over included, of which everything may; None if everything may in all."""
        rules = self._constraint
        if rules is None:
            return self._base
        size = self._decoder.model.config.vocab_size
        candidates = torch.zeros(len(places), size, dtype=torch.bool)
        for mask, i in zip(candidates, places, strict=True):
            row = self._rows[i]
            if row.finish:
                mask[:] = True
                continue
            tokens = rules.candidates(row.state, self._most - len(row.ids))
            mask[: len(tokens)] = tokens
            if self._eos is not None and rules.may_end(row.state):
                mask[self._eos] = True
        return candidates.to(next(self._decoder.model.parameters()).device)


# --- the two functions ----------------------------------------------------------------------------


def stream_text(
    model: LanguageModel,
    prompts: str | Sequence[PromptInput],
    *,
    tokenizer: TokenizerLike,
    **options: Unpack[WritingOptions],
) -> Writing:
    """``generate``, but as the text comes: an iterator over ``Piece(row, text)``, with the
    ``results`` of ``generate``, or what there is of them.

        for piece in stream_text(model, "Once", tokenizer=tokenizer):
            print(piece.text, end="", flush=True)
    """
    for name in options:
        if name not in WritingOptions.__annotations__:
            raise TypeError(unknown_name("option", name, WritingOptions.__annotations__))
    rest: dict[str, Any] = {**options}
    sampling = Sampling(**_taken_out(rest, Sampling))
    limits = Limits(**_taken_out(rest, Limits))
    texts = [prompts] if isinstance(prompts, str) else prompts
    return Writing(model, texts, tokenizer, sampling, limits, **rest)


def _taken_out(options: dict[str, Any], kind: type[Sampling] | type[Limits]) -> dict[str, Any]:
    """The options that are fields of a class; they are then gone from ``options``."""
    names = [field.name for field in dataclasses.fields(kind) if field.name in options]
    return {name: options.pop(name) for name in names}


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] as well
    model: LanguageModel,
    prompts: str,
    *,
    tokenizer: TokenizerLike,
    **options: Unpack[WritingOptions],
) -> Generated: ...


@overload
def generate(
    model: LanguageModel,
    prompts: Sequence[PromptInput],
    *,
    tokenizer: TokenizerLike,
    **options: Unpack[WritingOptions],
) -> list[Generated]: ...


def generate(
    model: LanguageModel,
    prompts: str | Sequence[PromptInput],
    *,
    tokenizer: TokenizerLike,
    **options: Unpack[WritingOptions],
) -> Generated | list[Generated]:
    """What a language model writes after a prompt, or after each of several, of which each may be a
    list of ids as well.

    ``options`` say how each token is chosen: temperature, top_k, top_p, min_p, repetition_penalty,
    presence_penalty and frequency_penalty, with the defaults of ``addnorm.generation.Sampling``;
    and what limits the text: max_new_tokens, stop, eos, banned_words, regex and beyond, with those
    of ``addnorm.generation.Limits``. Both explain what they have. Two more:

    ``seed``: row i draws with ``seed + i``, or give one seed for each row; without it, the global
    generator decides.
    ``top_logprobs``: how many of the most probable tokens to note at every place; 0 unless given.
    """
    writing = stream_text(model, prompts, tokenizer=tokenizer, **options)
    for _ in writing:
        pass
    return writing.results[0] if isinstance(prompts, str) else writing.results


# --- checks ---------------------------------------------------------------------------------------


def check_tokenizer(model: LanguageModel, tokenizer: TokenizerLike) -> None:
    """Raise a ``Mendable`` for a tokenizer that is not the model's: it has more ids, or another
    identity than the model remembers, if it does."""
    size = model.config.vocab_size
    if tokenizer.vocab_size > size:
        raise Mendable(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {size}: it is not this "
            "model's tokenizer"
        )
    trained_with = getattr(model, "tokenizer_identity", None)
    if trained_with is not None and trained_with != tokenizer.identity:
        raise Mendable(
            f"the model was saved with the tokenizer {trained_with}, this one is "
            f"{tokenizer.identity}: its ids mean something else"
        )


def _ids(
    model: LanguageModel, tokenizer: TokenizerLike, prompt: PromptInput, row: int
) -> list[int]:
    """The ids of a prompt, at least one; of ids those themselves. ``row`` is its number, for the
    ``Mendable`` or ``TypeError`` where it is no prompt."""
    if not isinstance(prompt, str):
        if not isinstance(prompt, Sequence) or not all(whole(id) for id in prompt):
            raise TypeError(f"prompt {row} must be a str or a list of ids, got {prompt!r}")
        size = model.config.vocab_size
        if not prompt or not all(id in range(size) for id in prompt):
            raise Mendable(f"prompt {row} must have at least one id, each of the {size} there are")
        return [int(id) for id in prompt]
    ids = tokenizer.encode(prompt)
    if ids:
        return ids
    if tokenizer.eos_id is None:
        raise Mendable(
            f"prompt {row} is empty, and the tokenizer has no token that begins a text: give at "
            "least one character"
        )
    return [tokenizer.eos_id]  # what stood before every text in training


def _decodable(model: LanguageModel, tokenizer: TokenizerLike) -> Tensor | None:
    """(V,) False for ids that stand for nothing; None if there are none."""
    mask = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    bytes_of_ids = pieces(tokenizer)
    mask[: len(bytes_of_ids)] = torch.tensor([bool(piece) for piece in bytes_of_ids])
    return None if mask.all() else mask.to(next(model.parameters()).device)
