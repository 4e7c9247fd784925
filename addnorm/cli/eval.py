"""Measure how probable a model finds a text: perplexity and bits per byte, by sliding windows.

Compare models with different tokenizers per byte or per word, and always with the same values of
--context and --stride; docs/generation.md has the rule.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Annotated, final

from addnorm import reading
from addnorm.cli import output
from addnorm.cli.arguments import Positional, arg, optional
from addnorm.cli.models import Place, with_tokenizer
from addnorm.cli.refusal import Refusal
from addnorm.progress import ProgressBar


@final
@dataclass(frozen=True)
class Options:
    """What ``addnorm eval`` is asked."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A folder with a model, a run's folder, or a name such as openai-community/gpt2."""
    texts: Positional[
        Annotated[tuple[str, ...], arg(metavar="TEXT [TEXT ...]", help_behavior_hint="(required)")]
    ]
    """Files of UTF-8 text, each scored as a document of its own; - is stdin."""
    context: Annotated[int | None, optional("N")] = None
    """Tokens in a window; by default the model's context."""
    stride: Annotated[int | None, optional("N")] = None
    """Tokens by which the window moves; by default half the context. 1 is slowest and fairest."""
    batch_size: int = 4
    """Windows that go through the model at once."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print all figures as one JSON object."""
    place: Place = field(default_factory=Place)


def run(options: Options) -> int:
    """Returns the exit status."""
    if not options.texts:
        raise Refusal("no text: give at least one file, or - for stdin")
    texts = [_read(name) for name in options.texts]
    model, tokenizer = with_tokenizer(options.model, options.place)
    from addnorm.generation import perplexity

    with ProgressBar("scoring") as bar:
        try:
            found = perplexity(
                model,
                texts,
                tokenizer=tokenizer,
                context=options.context,
                stride=options.stride,
                batch_size=options.batch_size,
                progress=bar.update,
            )
        except FloatingPointError as error:
            output.say(str(error))
            return 1
    print(json.dumps(found.to_json()) if options.as_json else str(found))
    return 0


def _read(name: str) -> str:
    if name != "-":
        return reading.text(reading.place(name))
    if sys.stdin is None:
        raise Refusal("there is no stdin to read: it is closed")
    with reading.system_errors("stdin"):
        content = sys.stdin.buffer.read()
    return reading.Utf8Decoder("stdin").decode(content, final=True)
