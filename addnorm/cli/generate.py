"""Continue a prompt, with a model from a folder, a run, or the Hugging Face hub.

A single text is printed as it is generated. Several prompts, or --samples, go through the model
together, and each gets what it would have got by itself. Texts go to stdout, remarks to stderr.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from addnorm import reading
from addnorm.cli import output
from addnorm.cli.arguments import Positional, arg, optional
from addnorm.cli.drawing import Drawing
from addnorm.cli.models import Place, as_writer, open_model
from addnorm.cli.output import json_line, legible
from addnorm.cli.refusal import Refusal
from addnorm.progress import ProgressBar
from addnorm.words import plural

if TYPE_CHECKING:
    from addnorm.generation import Generated, Writing

TOLD_FROM = 2.0  # seconds, from which on the speed is worth a line


@final
@dataclass(frozen=True)
class Extent:
    """Where a text ends, and with which seed it is drawn."""

    max_new_tokens: int = 100
    """The most tokens to generate for each text."""
    no_eos: bool = False
    """Do not end a text at the end-of-text token."""
    seed: Annotated[int | None, optional("N")] = None
    """Seed of the first text; text i uses N + i. Without a seed, every call gives other texts."""
    beyond: Literal["slide", "extend", "error"] = "slide"
    """At the end of the model's context: slide a window, extend the context, or refuse at once."""


@final
@dataclass(frozen=True)
class Options:
    """What ``addnorm generate`` is asked."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A folder with a model, a run's folder, or a name such as openai-community/gpt2."""
    prompts: Positional[
        Annotated[tuple[str, ...], arg(metavar="[PROMPT ...]", help_behavior_hint="")]
    ] = ()
    """Texts to continue. Without any, the prompt is read from stdin; at a terminal it is empty."""
    file: Annotated[Path | None, optional("FILE")] = None
    """Read the prompts from a file, one per line."""
    samples: int = 1
    """How many texts to generate for each prompt."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print one JSON object per text: text, ids, log-probabilities, why it ended."""
    top_logprobs: int = 0
    """With --json: how many of the most probable tokens to list at every place."""
    extent: Extent = field(default_factory=Extent)
    drawing: Drawing = field(default_factory=Drawing)
    place: Place = field(default_factory=Place)


def run(options: Options) -> int:
    """Print what the model writes after the prompts; returns the exit status: 1 if it computes
    NaN."""
    prompts = [p for p in _prompts(options) for _ in range(options.samples)]
    model, tokenizer = as_writer(open_model(options.model, options.place), options.model)
    from addnorm.generation import lay_out_for_decoding, stream_text

    lay_out_for_decoding(model)
    writing = stream_text(
        model,
        prompts,
        tokenizer=tokenizer,
        top_logprobs=options.top_logprobs,
        **_keywords(options),
    )
    begun = time.perf_counter()
    shown: list[str] = []
    try:
        if options.as_json or len(prompts) > 1:
            _wait(writing, len(prompts), options.extent.max_new_tokens)
        else:
            _write_as_it_comes(writing, prompts[0], shown)
    except FloatingPointError as error:
        print(file=sys.stderr)
        output.say(str(error))
        return 1
    except KeyboardInterrupt:
        _conclude(options, writing, "".join(shown), time.perf_counter() - begun)
        raise
    _conclude(options, writing, "".join(shown), time.perf_counter() - begun)
    return 0


def _keywords(options: Options) -> dict[str, Any]:
    """How a text is written, as ``addnorm.generate`` takes it."""
    words = {**vars(options.extent), **vars(options.drawing)}
    if words.pop("no_eos"):
        words["eos"] = None
    return words


def _prompts(options: Options) -> list[str]:
    """The prompts, from the file, the command line or stdin; a Refusal of options that do not fit
    together. At a terminal nobody is asked: the prompt is empty."""
    if options.samples < 1:
        raise Refusal(f"--samples must be at least 1, got {options.samples}")
    if options.top_logprobs and not options.as_json:
        raise Refusal("--top-logprobs needs --json")
    if options.file is not None:
        if options.prompts:
            raise Refusal("prompts come either after the model or from --file, not both")
        lines = [line for line in reading.lines(reading.place(options.file)) if line.strip()]
        if not lines:
            raise Refusal(f"{options.file} has no line with text, and so no prompt")
        return lines
    if options.prompts:
        return list(options.prompts)
    if sys.stdin is None or sys.stdin.isatty():
        return [""]
    try:
        with reading.system_errors("stdin"):
            return [sys.stdin.read().removeprefix("\ufeff").removesuffix("\n")]
    except UnicodeDecodeError as error:
        raise Refusal(f"stdin is not text: {error}") from None


# --- telling --------------------------------------------------------------------------------------


def _write_as_it_comes(writing: "Writing", prompt: str, shown: list[str]) -> None:
    """Print the prompt and each piece when it is there. Pieces are added to ``shown``, which says
    what is on the screen when this is interrupted."""
    print(legible(prompt), end="", flush=True)
    for piece in writing:
        print(legible(piece.text), end="", flush=True)
        shown.append(piece.text)


def _wait(writing: "Writing", rows: int, most: int) -> None:
    """Run to the end behind a bar that counts tokens, of ``rows`` texts at ``most`` each; rows that
    end early are counted as done."""
    with ProgressBar(f"writing {plural(rows, 'text')}", rows * most) as bar:
        for _ in writing:
            bar.update(rows * most - writing.remaining)


def _conclude(options: Options, writing: "Writing", shown: str, seconds: float) -> None:
    """Print the rest of the texts, then the remarks about them, also where they were interrupted.
    ``shown`` is what is on the screen of a single text; ``seconds``: how long it took."""
    results = writing.results
    if options.as_json:
        for result in results:
            print(json_line(dataclasses.asdict(result)))
    elif len(results) == 1:
        print(legible(results[0].text.removeprefix(shown)), flush=True)
    else:
        for i, result in enumerate(results):
            print(f"{'' if i == 0 else chr(10)}--- {i + 1} of {len(results)}: {_end(result)}")
            print(legible(result.prompt + result.text))
    sys.stdout.flush()
    for remark in _remarks(results, seconds):
        output.say(remark)


def _end(result: "Generated") -> str:
    """Why a text ended, in words, and how to get it again."""
    words = {
        "stop": "matched" if result.stop is None else f"stopped at {result.stop!r}",
        "eos": "end of text",
        "length": "cut off by --max-new-tokens",
        None: "interrupted",
    }[result.finish]
    return words if result.seed is None else f"{words}, --seed {result.seed}"


def _remarks(results: "list[Generated]", seconds: float) -> list[str]:
    """What is worth saying of the texts together: loops, and the speed if it took long."""
    looped = sum(result.looped for result in results)
    remarks = []
    if looped:
        which = "the text ends" if len(results) == 1 else f"{looped} of {len(results)} texts end"
        remarks.append(
            f"{which} in a loop; try --temperature above 0, --top-p 0.95, or "
            "--repetition-penalty 1.2"
        )
    tokens = sum(len(result.ids) for result in results)
    if seconds > TOLD_FROM:
        remarks.append(f"{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} per second")
    return remarks
