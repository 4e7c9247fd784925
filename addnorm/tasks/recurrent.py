"""Language modelling with a ``RecurrentLM``: the data, the loss and the evaluations of a GPT's.

Each window of the text is read from a state of zeros, in training as in evaluations: nothing is
carried from one to the next, so that a window knows as much of its past as a Transformer's does,
and what a step learns from depends on its number alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from addnorm.models.recurrent import RecurrentConfig
from addnorm.settings import AT_RESUME, HIDDEN, AtResume, setting
from addnorm.tasks.language import LanguageTask
from addnorm.tasks.language_settings import LanguageModelSettings
from addnorm.tasks.texts import opened, refuse_muon
from addnorm.tasks.writers import RecurrentWriter
from addnorm.training.config import NOTHING, register
from addnorm.training.loop_settings import LoopSettings


@final
@register
@dataclass(frozen=True, kw_only=True)
class RecurrentSettings(LanguageModelSettings):
    """The settings of a recurrent language model's training, apart from the loop's."""

    name = "recurrent_language"
    dropout: float = setting(0.0, AtResume.WITH_NOTICE)
    """On tokens, between layers and before the head; never from step to step."""
    model: RecurrentConfig = field(
        default_factory=lambda: RecurrentConfig(vocab_size=1),
        metadata={HIDDEN: ("vocab_size", "dropout"), AT_RESUME: AtResume.ANEW},
    )

    def beside(self, loop: LoopSettings) -> "RecurrentSettings":
        """As it is; a ``SettingsError`` for Muon, which is for the matrices of a Transformer's
        stack, of which there are none."""
        refuse_muon(loop)
        return self

    def build(self, choices: Mapping[str, Any] = NOTHING) -> LanguageTask:
        """Read and tokenize the data, and make the task of it; all ``choices`` count."""
        source = opened(self.data)
        tokenizer = self.own_tokenizer(source)
        config = replace(self.model, vocab_size=tokenizer.vocab_size, dropout=self.dropout)
        data = self.prepared(source, tokenizer)
        return LanguageTask(self, RecurrentWriter(config), tokenizer, data)
