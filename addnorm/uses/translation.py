"""What a text is in another language, or as another sequence: translations, searched by beams."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import torch
from torch import Tensor

from addnorm.data.pairs import read_pairs, with_sides
from addnorm.data.rows import padded
from addnorm.data.tokenizer.pair import TokenizerPair
from addnorm.errors import Mendable
from addnorm.generation.search import SearchRules, SourceModel, search
from addnorm.progress import ProgressBar
from addnorm.temporary import evaluation_mode
from addnorm.uses.translation_scores import translation_scores
from addnorm.uses.use import Answer, Unusable, Use, text_of


class Reader(Protocol):
    """A model that reads sources, such as ``models.seq2seq.Seq2Seq``."""

    rules: SearchRules
    """The ids that begin, end and fill up its targets, and what it may not write."""

    @property
    def context_length(self) -> int: ...

    def bind(self, source: Tensor, valid: Tensor | None = None) -> SourceModel: ...

    def parameters(self) -> Any: ...

    def modules(self) -> Any: ...


class SourceText(NamedTuple):
    """A source, and its ids."""

    text: str
    ids: Sequence[int]


@final
class Translation(Use):
    """A sequence-to-sequence model, asked for the targets of sources.

    ``score`` is the sum of the natural logarithms of the probabilities of the output's tokens and
    of its end, over (their number) ** length_penalty. A source that is longer than the model reads
    is not answered, and told.

    ``model``: reads and writes ids.
    ``pair``: the tokenizers of both sides.
    """

    options = MappingProxyType({"beams": 4, "n_best": 1, "length_penalty": 1.0})
    example = '{"source": "..."}'

    def __init__(self, model: Reader, pair: TokenizerPair) -> None:
        self.model, self.pair = model, pair

    def question(self, item: str | Mapping[str, Any]) -> SourceText:
        """The source, which must fit into the model: a longer one is ``Unusable``."""
        text = text_of(item, ("source", "text", "input"), self.example)
        try:
            ids = self.pair.encode(text)
        except Mendable as error:
            raise Unusable(str(error)) from None
        most = self.model.context_length
        if len(ids) > most:
            raise Unusable(
                f"the source has {len(ids):,} tokens with its end, and the model reads {most:,}: "
                "divide it, into sentences say"
            )
        return SourceText(text, ids)

    def answers(
        self, questions: Sequence[SourceText], options: Mapping[str, Any]
    ) -> list[list[Answer]]:
        """input, output, score; of each source ``n_best`` of them, the best first."""
        batch = padded([np.array(question.ids, np.int64) for question in questions])
        device, rules = next(self.model.parameters()).device, self.model.rules
        ids, valid = batch["ids"].to(device), batch["valid"].to(device)
        with evaluation_mode(self.model.modules()), torch.inference_mode():
            sources = self.model.bind(ids, None if bool(valid.all()) else valid)
        results = search(
            sources,
            len(questions),
            rules,
            max_new_tokens=rules.most or self.model.context_length,
            **options,
        )
        return [
            [
                {"input": question.text, "output": self._text(ids), "score": score}
                for ids, score in of_one
            ]
            for question, of_one in zip(questions, results, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        """The text of a target's ids, without its end."""
        end = self.model.rules.end
        return self.pair.target.decode([id for id in ids if id != end])

    def line(self, answer: Answer) -> str:
        """The output, and its score in brackets."""
        return f"{answer['output']}  ({answer['score']:.3f})"

    def evaluate(
        self, data: Sequence[str], options: Mapping[str, Any], *, batch_size: int, bar: ProgressBar
    ) -> dict[str, Any]:
        """``bleu``, ``chrf`` and ``exact_match`` of all pairs; a source that cannot be read counts
        as one with an empty translation, and ``unusable`` is how many there are. Two files of
        lines are also the two sides of pairs."""
        rows = [row for name in with_sides(data) for row in read_pairs(name).rows]
        outputs, unusable = self.outputs([row.source for row in rows], options, batch_size, bar)
        scores = translation_scores(outputs, [row.target for row in rows])
        return {**scores, "pairs": len(rows), "unusable": unusable}

    def outputs(
        self,
        sources: Sequence[str],
        options: Mapping[str, Any],
        batch_size: int,
        bar: ProgressBar,
    ) -> tuple[list[str], int]:
        """The best translation of each source, in their order, "" for one that cannot be read, and
        how many these are. Sources of like length go through the model together. ``options``: all
        there are, of which ``n_best`` is not obeyed."""
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        outputs, unusable = [""] * len(sources), 0
        how = {**options, "n_best": 1}
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            answers = self.batch([sources[i] for i in places], how)
            for i, (best, *_) in zip(places, answers, strict=True):
                outputs[i] = best.get("output", "")
                unusable += "error" in best
            bar.update(first + len(places), len(order))
        return outputs, unusable
