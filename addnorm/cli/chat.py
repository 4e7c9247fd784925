"""Talk with a model that has learned from conversations: a line is a turn, and what the model says
to it is printed as it comes. A line that begins with / is a command; /help lists them.

Of a pipe each line is a turn as well, and nothing is printed but the answers. Ctrl-C ends an
answer, the end of the input the conversation. What is longer than the model's context is left out:
the text of the system stays, the oldest turns go first.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

from addnorm import disk, reading
from addnorm.cli import output
from addnorm.cli.arguments import Positional, arg, optional
from addnorm.cli.drawing import Drawing
from addnorm.cli.models import Place, as_writer, open_model
from addnorm.cli.output import legible
from addnorm.cli.refusal import Refusal
from addnorm.errors import Mendable
from addnorm.words import did_you_mean, plural

if TYPE_CHECKING:
    from addnorm.data.chat import ChatTokenizer, Prompt
    from addnorm.data.dialogues import Turn
    from addnorm.generation import Writing
    from addnorm.generation.decode import LanguageModel

PROMPT = "> "
COMMANDS = {
    "/reset": "begin anew; the text of the system stays",
    "/save FILE": "write the conversations so far that were saved there, and this one, as a .jsonl",
    "/help": "list the commands",
}
HELP = "\n".join([f"{name:12}{what}" for name, what in COMMANDS.items()])
HELP += "\n//...       a turn that begins with /\nCtrl-C ends an answer, Ctrl-D the conversation"


@final
@dataclass(frozen=True)
class Options:
    """What ``addnorm chat`` is asked."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A run of the recipe chat, or a folder or hub id of a model with a chat template."""
    system: Annotated[str | None, optional("TEXT")] = None
    """What the system says before all turns."""
    seed: Annotated[int | None, optional("N")] = None
    """Seed of the first answer; answer i uses N + i. Without a seed, every call gives others."""
    max_new_tokens: int = 200
    """The most tokens of an answer; up to half of the model's context is kept free for them."""
    drawing: Drawing = field(default_factory=lambda: Drawing(temperature=0.8, top_p=0.95))
    """How the next token is chosen, and which answers there may be; by itself with temperature 0.8
    and top-p 0.95. docs/generation.md has the formulas."""
    place: Place = field(default_factory=Place)


def run(options: Options) -> int:
    """Talk until the input ends; returns the exit status: 1 if the model computes NaN, or if a line
    of a pipe could not be obeyed."""
    if options.max_new_tokens < 1:
        raise Refusal(f"--max-new-tokens must be at least 1, got {options.max_new_tokens}")
    model, tokenizer = as_writer(open_model(options.model, options.place), options.model)
    from addnorm.generation import lay_out_for_decoding
    from addnorm.pretrained import chat_tokenizer

    chat = chat_tokenizer(options.model, tokenizer)
    if chat is None:
        raise Refusal(
            f"{options.model} has no chat template, and so no marks between turns. To teach it "
            f"some: addnorm train --recipe chat --data talks.jsonl init_from={options.model}. "
            f"addnorm generate {options.model} continues a text"
        )
    lay_out_for_decoding(model)
    session = Session(model, chat, options)
    # options that make no sense, or a text of the system that has no room, are refused at once
    session.writing(session.prompt([]))
    at_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    try:
        for line in _typed() if at_terminal else _lines():
            session.obey(line)
    except FloatingPointError as error:
        print()
        output.say(str(error))
        return 1
    return 1 if session.failures and not at_terminal else 0


def _typed() -> Iterator[str]:
    """Lines from a terminal, each asked for; Ctrl-C gives up the line that is being typed."""
    with suppress(ImportError):
        import readline  # noqa: F401 (input() has a history then)
    while True:
        try:
            yield input(PROMPT)
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def _lines() -> Iterator[str]:
    """The lines of stdin, a pipe or a file, each as soon as it is there; a ``Refusal`` where it is
    closed or no text."""
    if sys.stdin is None:
        raise Refusal("there is no stdin to read: it is closed")
    with reading.system_errors("stdin"):
        try:
            for line in sys.stdin:
                yield line.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise Refusal(f"stdin is not text: {error}") from None


@final
class Session:
    """Conversations with a model: one goes on, those before it are over.

    ``model``: what answers; ``chat``: its tokenizer and template; ``options``: the command's.
    ``failures``: how many lines could not be obeyed.
    """

    def __init__(self, model: "LanguageModel", chat: "ChatTokenizer", options: Options) -> None:
        self.model, self.chat, self.options = model, chat, options
        self.failures = 0
        self._answers = 0
        self._talks: dict[Path, list[Sequence[Turn]]] = {}  # by the files that they are saved in
        self._reset()

    def _reset(self) -> None:
        """Begin another conversation; the text of the system stays, and so does what was saved."""
        from addnorm.data.dialogues import SYSTEM, Turn

        system = self.options.system
        self.turns: list[Turn] = [] if system is None else [Turn(SYSTEM, system)]
        self._places: dict[Path, int] = {}  # of this conversation in the files where it is saved
        self._warned = False

    def prompt(self, more: "Sequence[Turn]") -> "Prompt":
        """What the model reads, with these turns at the end."""
        most = self.options.max_new_tokens
        return self.chat.prompt([*self.turns, *more], self.model.config.context_length, most)

    def writing(self, prompt: "Prompt") -> "Writing":
        """The answer to come, of which nothing is computed yet."""
        from addnorm.generation import stream_text

        seed = self.options.seed
        return stream_text(
            self.model,
            [prompt.ids],
            tokenizer=self.chat,
            max_new_tokens=prompt.answer,
            seed=None if seed is None else seed + self._answers,
            **vars(self.options.drawing),
        )

    def obey(self, line: str) -> None:
        """Answer a turn, or do what a command says; what cannot be done is told, and all is as it
        was."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                self._command(*line.rstrip().partition(" ")[::2])
            elif line.strip():
                self._answer(line.removeprefix("/") if line.startswith("//") else line)
        except Mendable as error:
            self.failures += 1
            output.say(str(error))

    def _command(self, name: str, rest: str) -> None:
        """Do what a command, such as /save, says with the ``rest`` of its line; a ``Refusal`` where
        there is no such one."""
        if name == "/help" and not rest:
            print(HELP, flush=True)
        elif name == "/reset" and not rest:
            self._reset()
        elif name == "/save" and rest.strip():
            self._save(rest.strip())
        else:
            names = [command.partition(" ")[0] for command in COMMANDS]
            hint = "" if name in names else did_you_mean(name, names)
            listed = "; ".join(f"{command}: {what}" for command, what in COMMANDS.items())
            raise Refusal(f"{' '.join((name, rest)).strip()} is no command; {hint or listed}")

    def _save(self, word: str) -> None:
        """Write this conversation into the file that ``word`` names, in place of what was saved of
        it, after those saved there before. A file that is not from this session is a
        ``Refusal``."""
        from addnorm.data.dialogues import USER, to_object

        if USER not in {turn.role for turn in self.turns}:
            raise Refusal("there is nothing to save yet")
        file = reading.place(word)
        if file not in self._talks and file.exists():
            raise Refusal(f"{word} is there already, and not from here: choose another name")
        talks = self._talks.setdefault(file, [])
        place = self._places.setdefault(file, len(talks))
        talks[place : place + 1] = [tuple(self.turns)]
        text = "".join(f"{json.dumps(to_object(t), ensure_ascii=False)}\n" for t in talks)
        with reading.system_errors(file, doing="write"):
            disk.write_text(file, text)
        output.say(f"saved {plural(len(talks), 'conversation')} in {word}")

    def _answer(self, text: str) -> None:
        """Print the answer to a turn as it comes, and add both to ``turns``: what there is of it
        when it is interrupted counts, and neither where there is nothing."""
        from addnorm.data.dialogues import ASSISTANT, USER, Turn

        question = Turn(USER, text)
        prompt = self.prompt([question])
        self._warn(prompt)
        writing = self.writing(prompt)
        self._answers += 1
        pieces: list[str] = []
        try:
            for piece in writing:
                print(legible(piece.text), end="", flush=True)
                pieces.append(piece.text)
        except KeyboardInterrupt:
            pass
        print(flush=True)
        result = writing.results[0]
        answer = "".join(pieces)
        if not answer.strip():
            output.say("the model has no answer to that; the turn does not count")
            return
        self.turns += [question, Turn(ASSISTANT, answer)]
        if result.finish == "length":
            output.say(f"cut off after {plural(len(result.ids), 'token')}")

    def _warn(self, prompt: "Prompt") -> None:
        """Say what of a prompt has no room: each time that a turn is cut, once in a conversation
        that its beginning is left out."""
        if prompt.cut:
            output.say("of that turn only the end has room in the model's context")
        if prompt.left_out and not self._warned:
            self._warned = True
            output.say("the conversation is longer than the model's context: its oldest turns go")
