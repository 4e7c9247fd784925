"""Which labels a text has, by a BERT with a head: a pretrained one, or one from scratch.

A text is [CLS], its tokens, [SEP] (Devlin et al. 2019, arXiv 1810.04805, section 4.1). One that is
longer than the context is learned in parts of it, another one each time, and judged by the mean
over windows of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from addnorm.adapt import Adapt
from addnorm.data.sources import Texts
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files import bert
from addnorm.models.bert import Bert
from addnorm.models.bert_config import BertConfig
from addnorm.settings import (
    AT_RESUME,
    HIDDEN,
    NEEDS,
    AtResume,
    SettingsError,
    check_effect,
    setting,
)
from addnorm.tasks.beginnings import FROM_NOTHING
from addnorm.tasks.bodies import Body, Pretrained
from addnorm.tasks.classify import (
    ClassifyTask,
    RowSettings,
    check_anchor,
    check_rows,
    texts_of,
)
from addnorm.tasks.texts import check, chosen, expanded
from addnorm.training.config import NOTHING, register
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.memory import counted


@final
@register
@dataclass(frozen=True, kw_only=True)
class FinetuneBertSettings(RowSettings):
    """The settings of a BERT's training as a classifier, apart from the loop's."""

    name = "finetune_bert"
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of a BERT to start from; its model settings and tokenizer are taken."""
    tokenizer: str = setting("wordpiece:8192", AtResume.IF_SAME, FROM_NOTHING)
    """wordpiece:SIZE, without case, or wordpiece-cased:SIZE (learned from the training texts), or a
    folder or hub id with a WordPiece."""
    dropout: float = setting(0.1, AtResume.WITH_NOTICE)
    """In embeddings, attention and branches, and before the head."""
    token_dropout: float = setting(0.0, AtResume.WITH_NOTICE)
    label_smoothing: float = setting(0.0, AtResume.WITH_NOTICE)
    model: BertConfig = field(
        default_factory=lambda: BertConfig(
            vocab_size=1, context_length=128, dim=256, n_layers=4, n_heads=4, head="classify"
        ),
        metadata={
            HIDDEN: (
                *("vocab_size", "head", "labels", "several"),
                *("dropout", "attention_dropout", "head_dropout"),
            ),
            AT_RESUME: AtResume.ANEW,
            NEEDS: (FROM_NOTHING,),
        },
    )

    def __post_init__(self) -> None:
        check_effect(self)
        check(self.tokenizer, self.val_fraction, self.dropout)
        check_rows(self)
        if self.model.pooling == "none":
            raise SettingsError("model.pooling=none has nothing for the head: first or mean")

    def beside(self, loop: LoopSettings) -> "FinetuneBertSettings":
        """The same, if it goes with the loop's settings."""
        check_anchor(self.earlier, loop)
        return self

    def build(self, choices: Mapping[str, Any] = NOTHING) -> ClassifyTask:
        """Read and tokenize the texts, and make the task of them; all ``choices`` count."""
        texts = texts_of(self)
        if self.init_from is not None:
            classes = len(texts.classes)
            names = texts.classes if texts.earlier else None
            body = Pretrained(self.init_from, classes, texts.several, self.dropout, Adapt(), names)
            if not isinstance(body.config, BertConfig):
                raise SettingsError(
                    f"init_from={self.init_from} is no BERT; with the recipe classify_gpt2 a "
                    "classifier begins as any model"
                )
            return ClassifyTask(self, body, body.tokenizer, texts)
        tokenizer = chosen(
            self.tokenizer,
            texts=texts.content,
            decides=lambda: [Texts(texts.content()).identity()],
            cache=expanded("cache", self.cache),
        )
        config = replace(
            self.model,
            vocab_size=tokenizer.vocab_size,
            head="classify",
            labels=len(texts.classes),
            several=texts.several,
            dropout=self.dropout,
            attention_dropout=self.dropout,
            head_dropout=self.dropout,
        )
        try:
            own = OwnBert(config, tokenizer)
        except Mendable as error:
            raise SettingsError(f"tokenizer={self.tokenizer}: {error}") from None
        return ClassifyTask(self, own, tokenizer, texts)


@final
class OwnBert(Body):
    """A BERT from scratch.

    ``config``: its choices. ``tokenizer``: what makes ids of the texts.
    """

    def __init__(self, config: BertConfig, tokenizer: Tokenizer) -> None:
        self.config, self.frame = config, bert.frame_of(config, tokenizer)

    def model(self) -> Bert:
        """A new one."""
        return Bert(self.config)

    def counts(self) -> tuple[int, int]:
        """All are trained."""
        return counted(self._empty, self.config.n_layers)

    def _empty(self, layers: int) -> Bert:
        """The model with ``layers`` layers, on the meta device."""
        with torch.device("meta"):
            return Bert(replace(self.config, n_layers=layers))

    def save(
        self, model: nn.Module, folder: Path, tokenizer: Tokenizer, labels: Sequence[str]
    ) -> None:
        """As BERT's folder, or ours."""
        assert isinstance(model, Bert)
        bert.save(model, folder, tokenizer=tokenizer, labels=labels)

    def facts(self) -> dict[str, Any]:
        """What the model is."""
        own = asdict(self.config).items()
        return {"model": {k: v for k, v in own if not k.endswith("dropout")}}
