"""Ask a trained classifier which label a text has, and how probable each label is.

MODEL is the folder of a run, or another folder with a model. The answers go to stdout, one line for
each input and in their order; remarks go to stderr. The continuation of a text is for addnorm
generate.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

from addnorm import reading
from addnorm.cli import output
from addnorm.cli.arguments import Positional, arg, optional
from addnorm.cli.models import Place, open_model
from addnorm.cli.output import json_line, legible
from addnorm.cli.refusal import Refusal
from addnorm.progress import ProgressBar

if TYPE_CHECKING:
    from addnorm.models.prediction import Prediction

PATIENCE = 2.0  # seconds, from which on it is worth a bar
SHOWN = 60  # characters of an input beside its answer
STDIN = "-"


@final
@dataclass(frozen=True)
class Options:
    """What ``addnorm predict`` is asked."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A run's folder, or a folder with a model."""
    inputs: Positional[
        Annotated[
            tuple[str, ...], arg(metavar="INPUT [INPUT ...]", help_behavior_hint="(required)")
        ]
    ]
    """Texts, each an argument of its own; - takes every line of stdin for a text."""
    files: bool = False
    """Each INPUT is the name of a file, and all that it holds is one text."""
    top: Annotated[int | None, optional("K")] = None
    """The K most probable labels; by default one, and with --json all."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print one JSON object per input: input, label, probability, probabilities."""
    batch_size: int = 32
    """Inputs that go through the model at once; with 1, a line is answered when it is read."""
    place: Place = field(default_factory=Place)


@final
@dataclass(frozen=True)
class Input:
    """What is asked about."""

    name: str
    """What stands beside the answer: the text itself, or its file."""
    text: str


def run(options: Options) -> int:
    """Returns the exit status."""
    _check(options)
    loaded = open_model(options.model, options.place)
    from addnorm.pretrained import kind_of

    kind = kind_of(loaded.model)
    if kind.predict is None:
        raise Refusal(
            f"{options.model} is {kind.noun}, which gives no labels: addnorm generate continues a "
            "text with it, and addnorm eval measures how probable it finds one"
        )
    # on a terminal the answers themselves show how far it is
    total = None if STDIN in options.inputs else len(options.inputs)
    bar = ProgressBar("predicting", total, patience=PATIENCE, hidden=sys.stdout.isatty())
    try:
        with bar:
            for batch in _batches(_inputs(options), options.batch_size):
                answers = kind.predict(loaded, [one.text for one in batch])
                for one, answer in zip(batch, answers, strict=True):
                    print(_line(one, answer, options))
                sys.stdout.flush()
                bar.advance(len(batch))
    except FloatingPointError as error:
        output.say(str(error))
        return 1
    return 0


def _line(one: Input, answer: "Prediction", options: Options) -> str:
    if options.as_json:
        return json_line({"input": one.name, **answer.to_json(options.top)})
    return legible(f"{answer.line(options.top)}  {_in_short(one.name)}")


def _check(options: Options) -> None:
    """What can be refused before a model is loaded."""
    if not options.inputs:
        raise Refusal("no input: give at least one text, or - for the lines of stdin")
    for name, value in (("--top", options.top), ("--batch-size", options.batch_size)):
        if value is not None and value < 1:
            raise Refusal(f"{name} must be at least 1, got {value}")
    if options.inputs.count(STDIN) > 1:
        raise Refusal("stdin can be read once: give - once")
    if STDIN in options.inputs and sys.stdin is None:
        raise Refusal("there is no stdin to read: it is closed")


def _inputs(options: Options) -> Iterator[Input]:
    """One after the other, read when it is their turn."""
    for word in options.inputs:
        if word == STDIN:
            yield from _lines()
        elif options.files:
            yield Input(word, reading.text(reading.place(word)))
        else:
            if _looks_like_a_file(word):
                output.say(f"{word} was taken for a text; --files reads the file of this name")
            yield Input(word, word)


def _lines() -> Iterator[Input]:
    """Those of stdin, the empty ones as well: each line has its answer."""
    decoder = reading.Utf8Decoder("stdin", hint="convert it first")
    with reading.system_errors("stdin"):
        for line in itertools.chain(sys.stdin.buffer, [b""]):
            text = decoder.decode(line, final=not line)
            if line:
                text = text.removesuffix("\n").removesuffix("\r")
                yield Input(text, text)


def _looks_like_a_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # too long for a name
        return False


def _batches(inputs: Iterable[Input], size: int) -> Iterator[list[Input]]:
    rest = iter(inputs)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _in_short(name: str) -> str:
    """An input as it may stand in a line."""
    line = " ".join(name.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."
