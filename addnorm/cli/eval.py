"""Measure how good a model is on data: of a language model perplexity and bits per byte, by sliding
windows; of any other what its answers are worth.

Compare language models with different tokenizers per byte or per word, and always with the same
values of --context and --stride; docs/generation.md has the rule.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, final

from addnorm import reading
from addnorm.cli import output
from addnorm.cli.answering import Search, choices
from addnorm.cli.arguments import Positional, arg, optional
from addnorm.cli.models import Place, as_writer, kind_of_model, open_model
from addnorm.cli.output import json_line
from addnorm.cli.refusal import Refusal
from addnorm.errors import Mendable
from addnorm.progress import ProgressBar

if TYPE_CHECKING:
    from addnorm.pretrained import Loaded

WINDOWS, ANSWERS = 4, 32  # that go through a model at once


@final
@dataclass(frozen=True)
class Options:
    """What ``addnorm eval`` is asked."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A folder with a model, a run's folder, or a name such as openai-community/gpt2."""
    data: Positional[
        Annotated[tuple[str, ...], arg(metavar="DATA [DATA ...]", help_behavior_hint="(required)")]
    ]
    """Files of UTF-8 text, each scored as a document of its own; - is stdin. For other models, what
    they learn from: a folder, a .csv, .tsv or .jsonl file."""
    context: Annotated[int | None, optional("N")] = None
    """Tokens in a window; by default the model's context."""
    stride: Annotated[int | None, optional("N")] = None
    """Tokens by which the window moves; by default half the context. 1 is slowest and fairest."""
    search: Search = field(default_factory=Search)
    batch_size: Annotated[int | None, optional("N")] = None
    """Windows that go through the model at once, 4 by default; of answers 32."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print all figures as one JSON object."""
    place: Place = field(default_factory=Place)


def run(options: Options) -> int:
    """Returns the exit status."""
    if not options.data:
        raise Refusal("no data: give at least one file, or - for stdin")
    if options.batch_size is not None and options.batch_size < 1:
        raise Refusal(f"--batch-size must be at least 1, got {options.batch_size}")
    loaded = open_model(options.model, options.place)
    try:
        if kind_of_model(loaded).use is not None:
            return _answers(loaded, options)
        return _texts(loaded, options)
    except FloatingPointError as error:
        output.say(str(error))
        return 1


def _answers(loaded: "Loaded", options: Options) -> int:
    """What the answers of a model are worth."""
    windows = {"--context": options.context, "--stride": options.stride}
    for name, value in windows.items():
        if value is not None:
            raise Refusal(f"{name} has no effect: {options.model} is no language model")
    try:
        use = loaded.use()
        how = use.with_defaults(choices(**vars(options.search)))
    except Mendable as error:
        raise Refusal(f"{options.model}: {error}") from None
    with ProgressBar("evaluating") as bar:
        size = options.batch_size or ANSWERS
        figures = use.evaluate(options.data, how, batch_size=size, bar=bar)
    if options.as_json:
        print(json_line(figures))
        return 0
    for name, value in figures.items():
        if isinstance(value, int | float | str):
            print(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}")
    return 0


def _texts(loaded: "Loaded", options: Options) -> int:
    """How probable a language model finds texts."""
    if words := choices(**vars(options.search)):
        name = next(iter(words)).replace("_", "-")
        raise Refusal(f"--{name} has no effect: {options.model} is a language model")
    texts = [_read(name) for name in options.data]
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


def _read(name: str) -> str:
    if name != "-":
        return reading.text(reading.place(name))
    if sys.stdin is None:
        raise Refusal("there is no stdin to read: it is closed")
    with reading.system_errors("stdin"):
        content = sys.stdin.buffer.read()
    return reading.Utf8Decoder("stdin").decode(content, final=True)
