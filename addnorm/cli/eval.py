"""Measure how good a model is on data: of a language model perplexity and bits per byte, by sliding
windows, or of the answers in conversations, if it has learned from such, or of labels that it gives
by --pattern; of any other what its answers are worth.

Compare language models with different tokenizers per byte or per word, and always with the same
values of --context and --stride; docs/generation.md has the rule.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

from addnorm import reading
from addnorm.cli import output
from addnorm.cli.answering import (
    Acting,
    Draws,
    Hearing,
    Search,
    Spans,
    Verbalizer,
    all_choices,
    choices,
    say_what_was_cut,
)
from addnorm.cli.arguments import Positional, arg, optional
from addnorm.cli.models import Place, as_writer, kind_of_model, open_model
from addnorm.cli.output import json_line
from addnorm.cli.refusal import Refusal
from addnorm.errors import Mendable
from addnorm.progress import ProgressBar
from addnorm.words import figure, plural

if TYPE_CHECKING:
    from addnorm.data.chat import ChatTokenizer
    from addnorm.pretrained import Loaded
    from addnorm.uses.cloze import Cloze

WINDOWS, ANSWERS = 4, 32  # that go through a model at once


@final
@dataclass(frozen=True)
class Options:
    """What ``addnorm eval`` is asked."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A folder with a model, a run's folder, or a name such as openai-community/gpt2."""
    data: Positional[
        Annotated[tuple[str, ...], arg(metavar="[DATA ...]", help_behavior_hint="")]
    ] = ()
    """Files of UTF-8 text, each scored as a document of its own; - is stdin. For other models, what
    they learn from, and with --pattern texts with labels: a folder, a .csv, .tsv or .jsonl file,
    SQuAD's .json, recordings with their texts; for a model with a chat template conversations too,
    a .jsonl, a .yml or a folder of such."""
    choices: Annotated[Path | None, optional("FILE")] = None
    """Instead of DATA, a .jsonl file of questions to a language model: context, choices, gold, the
    place of the right one from 0. How often it finds that the most probable."""
    context: Annotated[int | None, optional("N")] = None
    """Tokens in a window; by default the model's context."""
    stride: Annotated[int | None, optional("N")] = None
    """Tokens by which the window moves; by default half of what it holds. Of language models 1 is
    slowest and fairest."""
    search: Search = field(default_factory=Search)
    spans: Spans = field(default_factory=Spans)
    acting: Acting = field(default_factory=Acting)
    draws: Draws = field(default_factory=Draws)
    hearing: Hearing = field(default_factory=Hearing)
    verbalizer: Verbalizer = field(default_factory=Verbalizer)
    batch_size: Annotated[int | None, optional("N")] = None
    """Windows that go through the model at once, 4 by default; of answers and conversations 32."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print all figures as one JSON object."""
    place: Place = field(default_factory=Place)

    def answering(self) -> dict[str, Any]:
        """What was chosen of how the model answers."""
        words = choices(**vars(self.search), **vars(self.spans), **vars(self.draws))
        return {**words, **self.acting.choices()}


def run(options: Options) -> int:
    """Measure what there is of the model, by its kind, and print it; returns the exit status: 1 if
    the model computes NaN."""
    if not options.data and options.choices is None and options.acting.env is None:
        raise Refusal("no data: give at least one file, or - for stdin")
    if options.data and options.choices is not None:
        raise Refusal("--choices stands instead of DATA: leave out one of them")
    if options.batch_size is not None and options.batch_size < 1:
        raise Refusal(f"--batch-size must be at least 1, got {options.batch_size}")
    loaded = open_model(options.model, options.place)
    cloze = options.verbalizer.cloze(loaded, options.model, options.batch_size or ANSWERS)
    try:
        if cloze is not None:
            return _labels(cloze, options)
        if options.choices is not None:
            return _choices(loaded, options)
        if kind_of_model(loaded).use is not None:
            return _answers(loaded, options)
        if chat := _chat_tokenizer(loaded, options):
            return _conversations(loaded, chat, options)
        return _texts(loaded, options)
    except FloatingPointError as error:
        output.say(str(error))
        return 1


def _labels(cloze: "Cloze", options: Options) -> int:
    """Print how often a language model expects the word of the right label; returns the exit
    status."""
    if options.choices is not None:
        raise Refusal("--pattern and --choices both say what is asked: leave out one of them")
    _refuse_windows(options, "with --pattern each text is read whole")
    status = _answers(cloze, options)
    say_what_was_cut(cloze)
    return status


def _answers(model: "Loaded | Cloze", options: Options) -> int:
    """Print what the answers of a model, which has a ``use``, are worth on the DATA; returns the
    exit status. A ``Refusal`` of options that have no effect on it."""
    try:
        use = model.use()
        windows = {"context": options.context, "stride": options.stride}
        for name in ({*windows} - {*use.options}) & {*choices(**windows)}:
            raise Refusal(f"--{name} has no effect: {options.model} is not a language model")
    except Mendable as error:
        raise Refusal(f"{options.model}: {error}") from None
    wishes = {**options.answering(), **choices(stride=options.stride)}
    wishes |= options.hearing.choices(options.place)
    how = all_choices(use, wishes, options.model)
    with ProgressBar("evaluating") as bar:
        size = options.batch_size or ANSWERS
        figures = use.evaluate(options.data, how, batch_size=size, bar=bar)
    _print_figures(figures, options)
    return 0


def _chat_tokenizer(loaded: "Loaded", options: Options) -> "ChatTokenizer | None":
    """What makes ids of the data, if the model has a chat template and the data is conversations;
    None: both or one of them is not so. A ``Refusal`` where part of the data is something else."""
    from addnorm.data.dialogues import FORMATS, may_hold_dialogues
    from addnorm.pretrained import chat_tokenizer

    places = {name: reading.place(name) for name in options.data if name != "-"}
    talks = [name for name, p in places.items() if p.is_dir() or may_hold_dialogues(p)]
    _, tokenizer = as_writer(loaded, options.model)
    chat = chat_tokenizer(options.model, tokenizer) if talks else None
    if chat is not None:
        for other in options.data:
            if other not in talks:
                raise Refusal(f"{talks[0]} holds conversations, and {other} is none of: {FORMATS}")
    return chat


def _conversations(loaded: "Loaded", chat: "ChatTokenizer", options: Options) -> int:
    """Print how probable a model finds the answers of conversations; returns the exit status."""
    _refuse_windows(options, "of a conversation the model reads what it reads in a training")
    _refuse_search(options)
    model, _ = as_writer(loaded, options.model)
    from addnorm.data.chat import ChatError
    from addnorm.data.dialogues import read_dialogues
    from addnorm.generation.text import check_tokenizer
    from addnorm.uses.dialogue_scores import score_rows

    check_tokenizer(model, chat)
    rows, count = [], 0
    for name in options.data:
        for dialogue in read_dialogues(name):
            try:
                rows += chat.rows(dialogue, model.config.context_length)
            except ChatError as error:
                raise Refusal(f"{name}: {error}") from None
            count += 1
    with ProgressBar("scoring") as bar:
        size = options.batch_size or ANSWERS
        score = score_rows(loaded.model, chat, rows, batch_size=size, progress=bar.update)
    _print_figures({**score.to_json(), "conversations": count}, options)
    return 0


def _choices(loaded: "Loaded", options: Options) -> int:
    """Print how often a language model finds the right choice the most probable; returns the exit
    status."""
    assert options.choices is not None
    _refuse_windows(options, "with --choices each context is read whole")
    _refuse_search(options)
    model, tokenizer = as_writer(loaded, options.model)
    from addnorm.generation.choices import read_questions, score_choices

    questions = read_questions(reading.place(options.choices))
    with ProgressBar("scoring") as bar:
        size = options.batch_size or WINDOWS
        scores = score_choices(
            model, questions, tokenizer=tokenizer, batch_size=size, progress=bar.update
        )
    if scores.cut:
        output.say(
            f"{plural(scores.cut, 'choice')} {'does' if scores.cut == 1 else 'do'} not fit the "
            f"model's context of {model.config.context_length} tokens: cut on the left"
        )
    _print_figures(scores.to_json(), options)
    return 0


def _refuse_windows(options: Options, why: str) -> None:
    """Refuse the options of a sliding window; ``why`` says in a clause why they have no effect."""
    for name, value in (("--context", options.context), ("--stride", options.stride)):
        if value is not None:
            raise Refusal(f"{name} has no effect: {why}")


def _refuse_search(options: Options) -> None:
    """Refuse the options of how answers are found, which a language model does not give."""
    if words := {**options.answering(), **choices(**vars(options.hearing))}:
        name = next(iter(words)).replace("_", "-")
        raise Refusal(f"--{name} has no effect: {options.model} is a language model")


def _print_figures(figures: Mapping[str, Any], options: Options) -> None:
    """Print all of them as JSON, or a line for each that is a number, a word or a list of numbers;
    tables are in the JSON only."""
    if options.as_json:
        print(json_line(figures))
        return
    for name, value in figures.items():
        if isinstance(value, int | float | str):
            print(f"{name} {figure(value) if isinstance(value, float) else value}")
        elif isinstance(value, list) and all(isinstance(v, int | float) for v in value):
            print(name, *map(figure, value))


def _texts(loaded: "Loaded", options: Options) -> int:
    """Print how probable a language model finds the texts of DATA; returns the exit status. All are
    read before the first is scored. A ``Refusal`` of options that have no effect on it."""
    _refuse_search(options)
    texts = [_content(name) for name in options.data]
    model, tokenizer = as_writer(loaded, options.model)
    from addnorm.generation import perplexity

    with ProgressBar("scoring") as bar:
        likelihood = perplexity(
            model,
            texts,
            tokenizer=tokenizer,
            context=options.context,
            stride=options.stride,
            batch_size=options.batch_size or WINDOWS,
            progress=bar.update,
        )
    print(json.dumps(likelihood.to_json()) if options.as_json else str(likelihood))
    return 0


def _content(name: str) -> str:
    """The text in the file ``name``, "-" for stdin; a ``Mendable`` where it cannot be read."""
    if name != "-":
        return reading.text(reading.place(name))
    if sys.stdin is None:
        raise Refusal("there is no stdin to read: it is closed")
    with reading.system_errors("stdin"):
        content = sys.stdin.buffer.read()
    return reading.Utf8Decoder("stdin").decode(content, final=True)
