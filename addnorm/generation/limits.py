"""When a text ends, and which texts there may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from addnorm.errors import Mendable
from addnorm.generation.beyond_context import Beyond
from addnorm.generation.constraint import Constraint, TokenBytes, constraint
from addnorm.generation.decode import LanguageModel, check_max_new_tokens
from addnorm.generation.stopping import StopStrings

Stop = str | Sequence[str] | Sequence[Sequence[str]]


@final
@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a text ends, and which texts there may be.

    ``max_new_tokens``: the most tokens of a text.
    ``stop``: strings that end a text, for all rows or one list for each; they are not in it.
    ``eos``: the token that ends a text: the tokenizer's, or an id; None: there is none.
    ``banned_words``: strings that do not occur in a text, wherever tokens begin and end.
    ``regex``: what the whole text must match; the syntax is in ``addnorm.generation.automaton``.
    If ``max_new_tokens`` suffice for the shortest match in single bytes (in characters, where the
    tokenizer has those), the text is a match.
    ``beyond`` the context: the window slides ("slide"), the row grows on ("extend", for a model
    that can), or it is an error before anything is computed ("error").
    """

    max_new_tokens: int = 100
    stop: Stop = ()
    eos: int | Literal["tokenizer"] | None = "tokenizer"
    banned_words: Sequence[str] = ()
    regex: str | None = None
    beyond: Beyond = "slide"

    def __post_init__(self) -> None:
        check_max_new_tokens(self.max_new_tokens)
        if isinstance(self.banned_words, str):
            raise TypeError("banned_words are several: put a single one in a list")
        for word in (*self.banned_words, *([] if self.regex is None else [self.regex])):
            if not isinstance(word, str):
                raise TypeError(f"a banned word or regex must be a str, got {word!r}")

    def eos_id(self, model: LanguageModel, tokenizer: TokenBytes) -> int | None:
        """The id that ends a text, None: there is none; a ``Mendable`` if the model lacks it."""
        id = tokenizer.eos_id if self.eos == "tokenizer" else self.eos
        if id is not None and id not in range(model.config.vocab_size):
            raise Mendable(
                f"eos must be one of the {model.config.vocab_size} ids or None, got {id!r}"
            )
        return id

    def stop_strings(self, rows: int) -> list[StopStrings]:
        """The stop strings of each of so many rows: for all the same, or each its own. A
        ``Mendable`` or ``TypeError`` where ``stop`` does not say that."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence):
            raise TypeError(f"stop must be a str or a list, () for none, got {stop!r}")
        if all(isinstance(s, str) for s in stop):
            strings = [StopStrings(stop)] * rows  # type: ignore[arg-type]
        elif len(stop) != rows:
            raise Mendable(f"{len(stop)} lists of stop strings for {rows} prompts")
        else:
            strings = [StopStrings([s] if isinstance(s, str) else s) for s in stop]
        if self.regex is not None and any(len(s.words) > 1 for s in strings):
            raise Mendable("a regex says where the text ends: give either regex or stop")
        return strings

    def constraint(self, tokenizer: TokenBytes) -> Constraint | None:
        """What ``regex`` and ``banned_words`` say together; None if nothing."""
        return constraint(tokenizer, self.regex, tuple(self.banned_words))
