"""A language model of characters beside a recognizer: what it expects after each beginning."""

import math
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.generation.ctc import LogProbs, Prefix
from addnorm.generation.decode import LanguageModel
from addnorm.temporary import evaluation_mode

UNHEARD = -20.0  # of a character that a language model does not know
END = "\n"
"""What stands before and behind each text for a character model, if it knows it."""


@final
class CharacterModel:
    """A language model of characters as ``NextToken``.

    ``model``, ``tokenizer``: of characters, each an id of its own.
    ``characters``: what each id of the recognizer stands for; "" for one that is no character.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, characters: Sequence[str]
    ) -> None:
        if tokenizer.kind != "characters":
            raise Mendable(
                f"a language model beside a recognizer must be one of characters, and its "
                f"tokenizer is of {tokenizer.kind}: train one with tokenizer=characters"
            )
        ids = {tokenizer.decode([i]): i for i in range(tokenizer.vocab_size)}
        self.model, self.places = model, [ids.get(c) for c in characters]
        self.break_id = ids.get(END)
        self._ends: dict[Prefix, float] = {}

    def after(self, prefixes: Sequence[Prefix]) -> LogProbs:
        """(prefixes, ids): ``UNHEARD`` for a character that the model does not know."""
        room = self.model.config.context_length
        before = [] if self.break_id is None else [self.break_id]
        texts = [
            [*before, *(self.places[i] for i in prefix if self.places[i] is not None)][-room:]
            for prefix in prefixes
        ]
        out = np.full((len(prefixes), len(self.places)), UNHEARD)
        columns = [(i, place) for i, place in enumerate(self.places) if place is not None]
        ours, theirs = ([pair[k] for pair in columns] for k in (0, 1))
        for length in {len(text) for text in texts}:
            rows = [i for i, text in enumerate(texts) if len(text) == length]
            logprobs = self._logprobs([texts[i] for i in rows])
            for row, values in zip(rows, logprobs, strict=True):
                out[row, ours] = values[theirs]
                if self.break_id is not None:
                    self._ends[prefixes[row]] = float(values[self.break_id])
        return out

    def _logprobs(self, texts: Sequence[Sequence[int | None]]) -> LogProbs:
        """Of what follows texts of one length."""
        if not texts[0]:  # nothing stands before it, and the model reads something: all alike
            size = self.model.config.vocab_size
            return np.full((len(texts), size), -math.log(size))
        device = next(self.model.parameters()).device
        with evaluation_mode(self.model.modules()), torch.inference_mode():
            logits: Tensor = self.model(torch.tensor(texts, device=device), last=1)[:, -1]
            return logits.double().log_softmax(-1).cpu().numpy()

    def end(self, prefix: Prefix) -> float:
        """0 where the model has not learned where texts end."""
        if self.break_id is None:
            return 0.0
        if prefix not in self._ends:
            self.after([prefix])
        return self._ends[prefix]
