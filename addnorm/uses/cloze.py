"""Labels from a language model as it is: a pattern around the text, and words for each label.

Pattern-exploiting training (Schick & Schütze 2021, arXiv 2001.07676) makes a cloze of a text by a
pattern, and a word, its verbalizer, of each label; the label whose word the model finds most
probable is the answer. Here the model is one that reads from left to right, so that what is
scored stands at the end, and a word may have several tokens: its score is the log-probability of
its tokens after the pattern (``generation.choices``). With one token a word, the probabilities are
those of the paper, a softmax over the scores. Several words of a label count by the mean of their
probabilities, so that no label gains by their number.

Some words are probable after any text. Contextual calibration (Zhao et al. 2021, arXiv 2102.09690)
divides each label's probability by the one it has where the text says nothing, here: is empty. The
paper then takes the softmax of these ratios; here they are divided by their sum, so that they stay
probabilities, and an empty text gets all labels alike. The most probable label is the same.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable, value_in_short
from addnorm.generation.choices import Question, score_choices
from addnorm.generation.decode import LanguageModel
from addnorm.uses.labels import Labels
from addnorm.uses.use import Unusable

TEXT, WORD = "{text}", "{word}"
EXAMPLE = '{"good": "great", "bad": ["terrible", "awful"]}'
SHOWN = 40  # characters of a text in a message


@final
class Cloze:
    """What a language model says of the label of a text: ``probabilities``, and ``use`` of them.

    ``model``, ``tokenizer``: the language model, and its own tokenizer. ``pattern``: a text with
    ``{text}`` in it, and after that ``{word}``, which without it stands at the end. ``words``: to
    each label a word, or several. ``calibrated``: whether a label is compared with what it gets for
    an empty text. ``batch_size``: pairs of a text and a word that go through the model at once.

    A ``Mendable`` says what is wrong with the pattern or the words, and where the two without any
    text do not fit the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        pattern: str,
        words: Mapping[str, str | Sequence[str]],
        *,
        calibrated: bool = False,
        batch_size: int = 32,
    ) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.words = checked_words(words, "words")
        self._head, self._middle, self._gap, self._end = parts(pattern)
        self.cut = 0
        """How many texts have lost their beginning, because they did not fit."""
        self._room = model.config.context_length + 1  # the last token is not read, only scored
        if (least := self._size(self._question(""))) > self._room:
            raise Mendable(
                f"the pattern has {least} tokens with its longest word, and the model reads "
                f"{self._room - 1}: shorten it"
            )
        self._calibrated = calibrated

    def use(self) -> Labels:
        """What a classifier answers and measures, by this."""
        return Labels(self.probabilities, tuple(self.words), self._check)

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """(texts, labels), in the order of ``words``. A text that is too long for the model loses
        its beginning, never the pattern its own."""
        scores = self._scores(texts)
        return (scores - self._prior if self._calibrated else scores).softmax(-1)

    @cached_property
    def _prior(self) -> Tensor:
        """(1, labels) the scores of an empty text."""
        return self._scores([""])

    def _check(self, text: str) -> None:
        """Raise ``Unusable`` for a text that the tokenizer cannot read between these words."""
        try:
            question, _ = self._fitted(text)
            before = len(self.tokenizer.encode(question.context))
            for choice in question.choices:
                if len(self.tokenizer.encode(question.context + choice)) <= before:
                    raise Unusable(f"the word {choice!r} adds no token to what stands before it")
            if not before and self.tokenizer.eos_id is None:
                raise Unusable("the model needs at least one token before the word")
        except Mendable as error:
            raise Unusable(str(error)) from None

    def _scores(self, texts: Sequence[str]) -> Tensor:
        """(texts, labels) the logarithm of the mean of the probabilities of a label's words."""
        questions = []
        for text in texts:
            question, whole = self._fitted(text)
            questions.append(question)
            self.cut += not whole
        scores = score_choices(
            self.model, questions, tokenizer=self.tokenizer, batch_size=self.batch_size
        )
        of_words = torch.tensor(scores.loglikelihoods, dtype=torch.double)  # (texts, words)
        of_labels = of_words.split([len(several) for several in self.words.values()], -1)
        return torch.stack([v.logsumexp(-1) - math.log(v.shape[-1]) for v in of_labels], -1)

    def _fitted(self, text: str) -> tuple[Question, bool]:
        """The pattern around a text, or around as much of its end as fits, and whether it is the
        whole text."""
        whole = text
        while (excess := self._size(question := self._question(text)) - self._room) > 0 and text:
            surplus = self.tokenizer.decode_bytes(self.tokenizer.encode(text)[:excess])
            text = text.encode()[max(len(surplus), 1) :].decode(errors="ignore")
        return question, text == whole

    def _size(self, question: Question) -> int:
        """The tokens of a pattern with its longest word."""
        return max(len(self.tokenizer.encode(question.context + c)) for c in question.choices)

    def _question(self, text: str) -> Question:
        """What is before the words, and each of them with what is beside it."""
        name = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        choices = [self._gap + word + self._end for label in self.words.values() for word in label]
        return Question(self._head + text + self._middle, tuple(choices), 0, f"the text {name!r}")


def parts(pattern: str) -> tuple[str, str, str, str]:
    """What of a pattern is before the text, between text and word, of that the space before the
    word, which tokenizers take for a part of it, and what is after the word; a ``Mendable`` says
    what a pattern lacks."""
    if WORD not in pattern:
        pattern += WORD if pattern[-1:].isspace() else f" {WORD}"
    head, _, rest = pattern.partition(TEXT)
    middle, _, end = rest.partition(WORD)
    counts = [pattern.count(TEXT), pattern.count(WORD)]
    if counts != [1, 1] or WORD in head:
        raise Mendable(
            f"a pattern has {TEXT} once, and after it {WORD} at most once, as in "
            f"'{TEXT} It was {WORD}.', got {value_in_short(pattern.removesuffix(f' {WORD}'))}"
        )
    bare = middle.rstrip()
    return head, bare, middle[len(bare) :], end


def read_words(file: Path) -> dict[str, tuple[str, ...]]:
    """The words of each label, from a file of JSON; a ``Mendable`` says what is wrong with it."""
    return checked_words(reading.json_file(file), str(file))


def checked_words(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Label -> its words without space around them; a ``Mendable`` that begins with ``where`` if
    they cannot be that."""
    if not isinstance(value, Mapping) or len(value) < 2:
        raise Mendable(
            f"{where}: expected an object with at least two labels, such as {EXAMPLE}, got "
            f"{value_in_short(value)}"
        )
    words: dict[str, tuple[str, ...]] = {}
    labels: dict[str, str] = {}  # of the words so far
    for label, entry in value.items():
        several = [entry] if isinstance(entry, str) else entry
        texts = isinstance(several, Sequence) and all(isinstance(w, str) for w in several)
        if not texts or not several or not all(word.strip() for word in several):
            raise Mendable(
                f"{where}: {label} must have a word or a list of words, none of them empty, got "
                f"{value_in_short(entry)}"
            )
        words[str(label)] = tuple(word.strip() for word in several)
        for word in words[str(label)]:
            if word in labels:
                raise Mendable(f"{where}: {word!r} stands for {labels[word]} and for {label}")
            labels[word] = str(label)
    return words
