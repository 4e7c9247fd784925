"""What the commands that ask a model have in common: how it searches its answers."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

from addnorm import reading
from addnorm.cli import output
from addnorm.cli.arguments import optional
from addnorm.cli.models import Place, as_writer, kind_of_model, open_model
from addnorm.cli.refusal import Refusal
from addnorm.errors import Mendable, value_in_short
from addnorm.words import plural

if TYPE_CHECKING:
    from addnorm.pretrained import Loaded
    from addnorm.uses.cloze import Cloze
    from addnorm.uses.use import Use


@final
@dataclass(frozen=True)
class Search:
    """How a model that writes its answers looks for them."""

    beams: Annotated[int | None, optional("N")] = None
    """Translations and speech: how many texts are followed while one is searched, 4 and 8 by
    default; 1 takes the next best token."""
    length_penalty: Annotated[float | None, optional("X")] = None
    """Translations: a log-probability is divided by the length to the power of X, 1 by default."""


@final
@dataclass(frozen=True)
class Spans:
    """How a model that finds its answers in a passage looks for them."""

    threshold: Annotated[float | None, optional("X")] = None
    """Answers in passages: one whose score is below X is not given, 0 by default; the score is by
    how much its logits are above those of no answer."""
    max_answer: Annotated[int | None, optional("N")] = None
    """Answers in passages: the most tokens that one has, 64 by default."""


@final
@dataclass(frozen=True)
class Draws:
    """How a model that acts chooses its actions."""

    temperature: Annotated[float | None, optional("X")] = None
    """Actions: draw them by their probabilities at this temperature; 0 takes the most probable one.
    By default 0, but in an environment 1."""
    seed: Annotated[int | None, optional("N")] = None
    """Actions: what is drawn follows from it, and in an environment how an episode begins; 0 by
    default."""


@final
@dataclass(frozen=True)
class Acting:
    """Where and how a model that acts is tried."""

    env: Annotated[str | None, optional("NAME")] = None
    """Instead of DATA, where a model acts: the id of a gymnasium environment, or module:factory."""
    returns: Annotated[str | None, optional("R1,R2,...")] = None
    """Actions: which returns are asked for; by default the lowest, the quartiles and the highest of
    those that it learned from."""
    episodes: Annotated[int | None, optional("N")] = None
    """Actions: episodes for each return that is asked for, 100 by default."""
    max_steps: Annotated[int | None, optional("N")] = None
    """Actions: the most steps of an episode, 1000 by default."""

    def choices(self) -> dict[str, Any]:
        """Those of the options that somebody chose; a ``Refusal`` where returns are no numbers."""
        words = choices(**vars(self))
        if self.returns is not None:
            words["returns"] = _numbers(self.returns)
            if not words["returns"]:
                raise Refusal(
                    "--returns must be numbers with commas between, got "
                    f"{value_in_short(self.returns)}"
                )
        return words


@final
@dataclass(frozen=True)
class Hearing:
    """How a recognizer of speech chooses among what it may have heard."""

    lm: Annotated[str | None, optional("MODEL")] = None
    """Speech: a language model of characters beside it, which says what is probable at all."""
    lm_weight: Annotated[float | None, optional("X")] = None
    """Speech: how much its log-probability counts, 0.5 by default."""
    lm_bonus: Annotated[float | None, optional("X")] = None
    """Speech: what is added for each character, as a language model favours short texts; 0.5 by
    default."""
    ctc_weight: Annotated[float | None, optional("X")] = None
    """Speech: the share of CTC where a decoder judges too, 0.5 by default."""

    def choices(self, place: Place) -> dict[str, Any]:
        """Those that somebody chose, the language model read, to where ``place`` says; a
        ``Mendable`` if it is none."""
        words = choices(**vars(self))
        if self.lm is not None:
            words["lm"] = open_model(self.lm, place)
            kind = kind_of_model(words["lm"])
            if not kind.writes:
                raise Refusal(
                    f"--lm {self.lm} is {kind.noun}, and beside one there may be a language model "
                    "of characters"
                )
        return words


@final
@dataclass(frozen=True)
class Verbalizer:
    """How a language model is asked for a label."""

    pattern: Annotated[str | None, optional("TEXT")] = None
    """Language models: what stands around each text, such as "{text} It was {word}."; the label is
    the one whose word is the most probable. {word} may be left out at the end."""
    words: Annotated[Path | None, optional("FILE")] = None
    """Language models: a .json file with a word for each label, or a list of words."""
    calibrated: bool = False
    """Language models: compare each label with what it gets where the text is empty, as some words
    are probable anywhere."""

    def cloze(self, loaded: "Loaded", target: str, batch_size: int) -> "Cloze | None":
        """The model, asked in this way; None: nobody asked for it. A ``Mendable`` where options or
        model do not fit. ``target``: what the user called the model; ``batch_size``: pairs of text
        and word at once."""
        if self.pattern is None and self.words is None:
            if self.calibrated:
                raise Refusal("--calibrated has no effect without --pattern and --words")
            return None
        if self.pattern is None or self.words is None:
            raise Refusal("--pattern and --words belong together: give both")
        kind = kind_of_model(loaded)
        if not kind.writes:
            raise Refusal(f"--pattern has no effect: {target} is {kind.noun}, no language model")
        model, tokenizer = as_writer(loaded, target)
        from addnorm.uses.cloze import Cloze, read_words

        words = read_words(reading.place(self.words))
        return Cloze(
            model,
            tokenizer,
            self.pattern,
            words,
            calibrated=self.calibrated,
            batch_size=batch_size,
        )


def say_what_was_cut(cloze: "Cloze | None") -> None:
    """Tell how many texts were too long for the model, if there are any."""
    if cloze is not None and cloze.cut:
        verb = "does" if cloze.cut == 1 else "do"
        output.say(
            f"{plural(cloze.cut, 'text')} {verb} not fit the model's context of "
            f"{cloze.model.config.context_length} tokens with the pattern: cut on the left"
        )


def _numbers(text: str) -> list[float]:
    """Those between commas; none where a word is no number."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        return []


def choices(**options: Any) -> dict[str, Any]:
    """Those of the options that somebody chose."""
    return {name: value for name, value in options.items() if value is not None}


def all_choices(use: "Use", wishes: Mapping[str, Any], target: str) -> dict[str, Any]:
    """All options of a use, where some were chosen; a ``Refusal``, which names them as they are
    typed, where one has no effect or makes no sense. ``target``: what the user called the model."""
    for name in wishes:
        if name not in use.options:
            others = ", ".join(map(_typed, use.options)) or "no such options"
            raise Refusal(f"{_typed(name)} has no effect: {target} takes {others}")
    try:
        return use.with_defaults(wishes)
    except Mendable as error:
        raise Refusal(f"{target}: {as_typed(str(error), use.options)}") from None


def as_typed(message: str, names: Iterable[str]) -> str:
    """A message with the options of these ``names`` as a user types them: ``n_best=3`` is
    ``--n-best=3``."""
    for name in names:
        message = re.sub(rf"(?<![\w-]){name}(?==| must)", _typed(name), message)
    return message


def _typed(name: str) -> str:
    """An option of a use as one of the command's."""
    return f"--{name.replace('_', '-')}"
