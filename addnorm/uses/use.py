"""``Use``: how a model is asked, whatever it answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, final

from addnorm import reading
from addnorm.errors import Mendable, unknown_name
from addnorm.progress import ProgressBar

Answer = dict[str, Any]
"""What JSON can hold. The keys are the use's, but for ``error``: why an input could not be used."""


@final
class Unusable(Mendable):
    """An input that a model cannot be asked about, and why."""


class Use(ABC):
    """A trained model, ready to be asked. A subclass is a use: labels of texts, translations."""

    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """What may be chosen of how it answers -> what it is by itself."""
    example: ClassVar[str]
    """An input as an object, in JSON, for messages."""
    file_keys: ClassVar[tuple[str, ...]] = ()
    """Under what an object names a file, the first that is there counting: an input that is a text
    is then the name of one too. Empty: an input is no file."""

    @abstractmethod
    def question(self, item: str | Mapping[str, Any]) -> Any:
        """An input, a text or an object, as ``answers`` takes it; ``Unusable`` says why it cannot
        be used."""

    def questions(self, items: Sequence[str | Mapping[str, Any]]) -> Iterator[Any]:
        """Of each input the question, or the ``Unusable`` that says why there is none, in their
        order."""
        for item in items:
            try:
                yield self.question(item)
            except Unusable as error:
                yield error

    @abstractmethod
    def answers(self, questions: Sequence[Any], options: Mapping[str, Any]) -> list[list[Answer]]:
        """To each question its answers, the best first; they go through the model together. There
        is one question at least. ``options`` are all there are, as ``with_defaults`` gives them."""

    @abstractmethod
    def line(self, answer: Answer) -> str:
        """An answer for a person, in one line."""

    @abstractmethod
    def evaluate(
        self, data: Sequence[str], options: Mapping[str, Any], *, batch_size: int, bar: ProgressBar
    ) -> dict[str, Any]:
        """How good the answers are on files of inputs with what is right: metric -> value, and what
        else a reader has to know, all as JSON has it. ``data``: the names of the files, read one
        after the other. ``options``: all there are. ``batch_size``: inputs at a time. ``bar`` is
        told how many are done. A ``Mendable`` where a file or what is right cannot be used."""

    def with_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options, where some were chosen; a ``Mendable`` names one that has no effect here."""
        for name in options:
            if name not in self.options:
                raise Mendable(unknown_name("option", name, self.options))
        return {**self.options, **options}

    def batch(
        self, items: Sequence[str | Mapping[str, Any]], options: Mapping[str, Any]
    ) -> list[list[Answer]]:
        """To each input its answers, in the order of the inputs; to one that cannot be used a
        single answer with its ``error``. ``options`` are all there are, as ``with_defaults`` gives
        them."""
        questions: list[Any] = []
        results: list[list[Answer] | None] = []
        for item, question in zip(items, self.questions(items), strict=True):
            if isinstance(question, Unusable):
                results.append([{"input": item, "error": str(question)}])
            else:
                questions.append(question)
                results.append(None)
        answers = iter(self.answers(questions, options) if questions else [])
        return [next(answers) if result is None else result for result in results]

    def predict(
        self,
        inputs: Sequence[str | Mapping[str, Any]],
        *,
        batch_size: int = 32,
        **options: Any,
    ) -> list[Answer]:
        """The answers, one after the other in the order of the inputs, of which ``batch_size`` go
        through the model at a time; an input that cannot be used has an object with its ``error``.
        ``options`` are those of the class; a ``Mendable`` names one that has no effect or makes no
        sense."""
        if batch_size < 1:
            raise Mendable(f"batch_size must be at least 1, got {batch_size}")
        every = self.with_defaults(options)
        return [
            answer
            for first in range(0, len(inputs), batch_size)
            for of_one in self.batch(inputs[first : first + batch_size], every)
            for answer in of_one
        ]


def object_of(item: str | Mapping[str, Any], example: str, reason: str) -> Mapping[str, Any]:
    """An input as an object: itself, or what a text is in JSON; ``Unusable`` where it is neither.
    ``example``: what an object looks like; ``reason``: why a text will not do; for the message."""
    if not isinstance(item, str):
        return item
    if item.lstrip().startswith("{"):
        try:
            value = reading.json_value(item, "the input")
        except Mendable as error:
            raise Unusable(str(error)) from None
        if isinstance(value, dict):
            return value
    raise Unusable(f"{reason}: give objects such as {example}")


def text_of(item: str | Mapping[str, Any], names: Sequence[str], example: str) -> str:
    """The text of an input: itself, or what an object has under the first of ``names`` that is in
    it; ``Unusable`` where none is. ``example``: what an object looks like, for the message."""
    if isinstance(item, str):
        return item
    for name in names:
        if name in item:
            if not isinstance(item[name], str):
                raise Unusable(f"{name} is not a text; an object looks like {example}")
            return str(item[name])
    keys = ", ".join(map(str, item)) or "nothing"
    raise Unusable(f"the object has {keys}, and no {names[0]}; one looks like {example}")
