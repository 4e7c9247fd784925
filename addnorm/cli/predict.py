"""Ask a trained model: a classifier for the label of a text or a picture, and so on; a language
model too, for the label whose word it expects after the text.

MODEL is the folder of a run, or another folder with a model. The answers go to stdout in the order
of the inputs, a line for each; remarks go to stderr. An input that cannot be used is told in its
place, the others are answered, and the exit status is 1. The continuation of a text is for addnorm
generate.
"""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, final

from addnorm import disk, reading
from addnorm.cli import output
from addnorm.cli.answering import (
    Draws,
    Hearing,
    Search,
    Spans,
    Verbalizer,
    all_choices,
    as_typed,
    choices,
    say_what_was_cut,
)
from addnorm.cli.arguments import Positional, arg, optional
from addnorm.cli.models import Place, open_model
from addnorm.cli.output import json_line, legible
from addnorm.cli.refusal import Refusal
from addnorm.errors import Mendable
from addnorm.progress import ProgressBar

if TYPE_CHECKING:
    from addnorm.uses.use import Answer, Use

PATIENCE = 2.0  # seconds, from which on it is worth a bar
SHOWN = 60  # characters of an input beside its answer
STDIN = "-"
ANY_NUMBER = ("length_penalty", "threshold", "temperature", "seed")  # these may be below 1
TEXTS, OBJECTS, TABLES = ".txt", ".jsonl", (".csv", ".tsv")
FILES = (TEXTS, OBJECTS, *TABLES)  # the ends of names that are taken for files
UNREAD = (".json", ".xls", ".xlsx", ".ods", ".parquet")  # no text has these either


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
    """A text, or for a model of pictures or sound the name of a file; a .txt file with one in each
    line; a .jsonl file of objects; a .csv or .tsv with the columns that such an object has, as
    text; - takes the lines of stdin."""
    files: bool = False
    """Each INPUT is the name of a file, and all that it holds is one text."""
    top: Annotated[int | None, optional("K")] = None
    """Labels of texts or pictures: add the K most probable ones."""
    n_best: Annotated[int | None, optional("N")] = None
    """Translations: give the N best of each, one after the other; 1 by default."""
    search: Search = field(default_factory=Search)
    spans: Spans = field(default_factory=Spans)
    draws: Draws = field(default_factory=Draws)
    hearing: Hearing = field(default_factory=Hearing)
    verbalizer: Verbalizer = field(default_factory=Verbalizer)
    stride: Annotated[int | None, optional("N")] = None
    """Answers in passages: tokens by which the window moves; by default half of what it holds."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print one JSON object per answer, such as input, label, probability."""
    out: Annotated[Path | None, optional("FILE")] = None
    """Write the answers into a file, whole or not at all."""
    batch_size: int = 32
    """Inputs that go through the model at once; with 1, a line is answered when it is read."""
    place: Place = field(default_factory=Place)

    def choices(self) -> dict[str, Any]:
        """What was chosen of how the model answers."""
        others = {**vars(self.search), **vars(self.spans), **vars(self.draws)}
        return choices(top=self.top, n_best=self.n_best, stride=self.stride, **others)


@final
@dataclass(frozen=True)
class Input:
    """What is asked about, a text or an object; ``wrong``: why it is neither, "" if it is one."""

    name: str
    """What stands beside the answer: the text itself, or its file; "" for an object."""
    item: str | Mapping[str, Any]
    wrong: str = ""


def run(options: Options) -> int:
    """Print the answers as they come, or write them to --out; returns the exit status: 1 if one of
    the inputs could not be used, or the model computes NaN."""
    _check(options)
    loaded = open_model(options.model, options.place)
    cloze = options.verbalizer.cloze(loaded, options.model, options.batch_size)
    try:
        use = cloze.use() if cloze else loaded.use()
        if use.file_keys and options.files:
            raise Mendable("--files has no effect: its inputs are names of files anyway")
    except Mendable as error:
        raise Refusal(f"{options.model}: {error}") from None
    wishes = {**options.choices(), **options.hearing.choices(options.place)}
    how = all_choices(use, wishes, options.model)
    # on a terminal the answers themselves show how far it is
    shown = options.out is None and sys.stdout.isatty()
    total = None if options.files is False and _count_is_unknown(options) else len(options.inputs)
    failures = 0
    try:
        with ExitStack() as stack:
            stream = _answer_stream(options.out, stack)
            bar = stack.enter_context(
                ProgressBar("predicting", total, patience=PATIENCE, hidden=shown)
            )
            for batch in _batches(_inputs(options, use), options.batch_size):
                for one, answers in zip(batch, _answers(use, batch, how), strict=True):
                    failures += any("error" in answer for answer in answers)
                    for answer in answers:
                        print(_line(use, one, answer, options), file=stream)
                stream.flush()
                bar.advance(len(batch))
        say_what_was_cut(cloze)
    except FloatingPointError as error:
        output.say(str(error))
        return 1
    except Refusal:
        raise
    except Mendable as error:
        raise Refusal(as_typed(str(error), how)) from None
    return 1 if failures else 0


def _answer_stream(out: Path | None, stack: ExitStack) -> TextIO:
    """Where answers go: a file that is there once ``stack`` closes without an error, or stdout."""
    if out is None:
        return sys.stdout
    stack.enter_context(reading.system_errors(out, doing="write"))
    work = stack.enter_context(disk.whole_file(out))
    return stack.enter_context(work.open("w", encoding="utf-8"))


def _count_is_unknown(options: Options) -> bool:
    """Whether how many inputs there are is known at their end only."""
    return any(word == STDIN or _names_a_file(word) for word in options.inputs)


def _answers(use: "Use", batch: list[Input], how: Mapping[str, Any]) -> "Iterator[list[Answer]]":
    """The answers of each input, in order; ``how`` as ``Use.with_defaults`` gives it. One that is
    wrong has an answer with an "error"; an "input" in an answer is what the user knows it by."""
    usable = iter(use.batch([one.item for one in batch if not one.wrong], how))
    for one in batch:
        if one.wrong:
            yield [{"input": one.name, "error": one.wrong}]
            continue
        answers = next(usable)
        yield [
            {**answer, "input": one.name} if "input" in answer and one.name else answer
            for answer in answers
        ]


def _line(use: "Use", one: Input, answer: "Answer", options: Options) -> str:
    """An answer as it is printed: JSON, or the answer, or why there is none, with the beginning of
    its input."""
    if options.as_json:
        return json_line(answer)
    if "error" in answer:
        return legible(f"error: {answer['error']}  {_in_short(one.name)}")
    return legible(f"{use.line(answer)}  {_in_short(one.name)}")


def _check(options: Options) -> None:
    """Raise a ``Refusal`` for what can be seen to be wrong before a model is loaded."""
    if not options.inputs:
        raise Refusal("no input: give at least one text, or - for the lines of stdin")
    numbers = {**options.choices(), "batch_size": options.batch_size}
    for name, value in numbers.items():
        if name not in ANY_NUMBER and value < 1:
            raise Refusal(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if options.inputs.count(STDIN) > 1:
        raise Refusal("stdin can be read once: give - once")
    if STDIN in options.inputs and sys.stdin is None:
        raise Refusal("there is no stdin to read: it is closed")
    for word in options.inputs:
        unread = word.lower().endswith(UNREAD) and len(word.split()) == 1
        is_name = _names_a_file(word) or unread or options.files
        if is_name and word != STDIN and not reading.place(word).is_file():
            raise Refusal(
                f"there is no file {word}: a name that ends in {', '.join(FILES[:-1])} or "
                f"{FILES[-1]} is that of a file"
            )


def _names_a_file(word: str) -> bool:
    """Whether an INPUT is taken for the name of a file, be there one or not."""
    return word.lower().endswith(FILES) and "\n" not in word


def _inputs(options: Options, use: "Use") -> Iterator[Input]:
    """What the INPUTs name, one after the other, each file read when it is its turn."""
    for word in options.inputs:
        if word == STDIN:
            yield from _stdin_inputs()
        elif options.files:
            yield Input(word, reading.text(reading.place(word)))
        elif _names_a_file(word):
            place = reading.place(word)
            table = place.suffix.lower() in TABLES
            for one in _table_inputs(place, use) if table else _file_inputs(place):
                yield _from_there(one, place.parent, use.file_keys) if use.file_keys else one
        else:
            if not use.file_keys and _looks_like_a_file(word):
                output.say(f"{word} was taken for a text; --files reads the file of this name")
            yield Input(word, word)


def _file_inputs(file: Path) -> Iterator[Input]:
    """The lines of a .txt file, empty ones too; the objects of a .jsonl file, one for a line."""
    for number, line in enumerate(reading.lines(file), 1):
        if file.suffix.lower() == TEXTS:
            yield Input(line, line)
        elif line.strip():
            yield _object(line, f"{file}:{number}")


def _table_inputs(file: Path, use: "Use") -> Iterator[Input]:
    """The rows of a .csv or .tsv as objects, whose keys are its columns; a ``Refusal`` where these
    are not what the model is asked with."""
    from addnorm.data.labelled import read_columns
    from addnorm.uses.use import Unusable

    keys = list(json.loads(use.example))
    for number, row in enumerate(read_columns(file)):
        if number == 0 and not {*keys} <= row.keys():
            try:
                use.question(row)  # which may know the columns by other names too
            except Unusable:
                missing = ", ".join(key for key in keys if key not in row)
                raise Refusal(
                    f"{file} has no column {missing}: its first line names {', '.join(row)}"
                ) from None
        yield Input(row.get(keys[0], ""), row)


def _from_there(one: Input, folder: Path, keys: Sequence[str]) -> Input:
    """An input that names a file, which may be meant from the folder of the list it stands in, as
    it is if there is one from here. ``keys``: under what an object names it."""
    key = next((key for key in keys if key in one.item), None)
    name = one.item if isinstance(one.item, str) else one.item.get(key or "")
    if not isinstance(name, str) or not name or _looks_like_a_file(name):
        return one
    there = str(folder / name)
    if isinstance(one.item, str) or key is None:
        return replace(one, item=there)
    return replace(one, item={**one.item, key: there})


def _object(line: str, where: str) -> Input:
    """A line of JSON as an input, which is wrong if it is neither an object nor a string; ``where``
    is its file and number."""
    try:
        value = reading.json_value(line, where)
    except Mendable as error:
        return Input(line, "", str(error))
    if not isinstance(value, dict | str):
        return Input(line, "", f"{where}: expected an object, got {reading.in_words(value)}")
    return Input(value if isinstance(value, str) else "", value)


def _stdin_inputs() -> Iterator[Input]:
    """The lines of stdin as inputs, the empty ones as well: each has its answer. Each is given as
    soon as it is there."""
    decoder = reading.Utf8Decoder("stdin", hint="convert it first")
    with reading.system_errors("stdin"):
        for line in itertools.chain(sys.stdin.buffer, [b""]):
            text = decoder.decode(line, final=not line)
            if line:
                text = text.removesuffix("\n").removesuffix("\r")
                yield Input(text, text)


def _looks_like_a_file(word: str) -> bool:
    """Whether there is a file of this name."""
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # too long for a name
        return False


def _batches(inputs: Iterable[Input], size: int) -> Iterator[list[Input]]:
    """As many at a time, the last ones fewer; no input is read before it is needed."""
    rest = iter(inputs)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _in_short(name: str) -> str:
    """The beginning of an input, on one line."""
    line = " ".join(name.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."
