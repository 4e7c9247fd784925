"""A BERT's config.json, the published one and ours, both ways."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from addnorm import reading, schemes
from addnorm.errors import Mendable, value_in_short
from addnorm.files.config_json import EXACT, GPT2_ACTIVATIONS, IDENTITY, refuse_options
from addnorm.files.folders import CONFIG, WeightsError, read_json
from addnorm.files.published import label_names
from addnorm.models.bert_config import BertConfig
from addnorm.version import __version__
from addnorm.words import a_few

PUBLISHED, OWN = "bert", "addnorm_bert"
ARCHITECTURES = {
    "BertModel": "none",
    "BertForMaskedLM": "masked",
    "BertForPreTraining": "masked",
    "BertForSequenceClassification": "classify",
    "BertForQuestionAnswering": "answer",
    "BertForTokenClassification": "tokens",
}
"""What config.json says as architectures -> the head."""
LABELLED = ("classify", "tokens")
"""The heads whose places have names."""
ONE, SEVERAL = "single_label_classification", "multi_label_classification"
"""What transformers calls it where a text has one label, and where it may have several."""
NAMES = "label_names"
"""Where our config.json has them."""
FIELDS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden",
}
"""What every config.json has -> the field of ``BertConfig``."""
UNTOLD: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "tie_word_embeddings": True,
}
"""What holds where a config.json says nothing."""
EXACTLY = {
    **{name: EXACT[name] for name in EXACT if not name.startswith(("scale", "reorder"))},
    "position_embedding_type": ("absolute", "positions are added to the tokens"),
}
"""What we compute in one way only, and which."""
POOLER_NOTES = ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type")
UNREAD = {"directionality", "_attn_implementation_autoset", *(f"pooler_{n}" for n in POOLER_NOTES)}
"""What the first folders say besides, which no forward pass of BERT reads."""


def read(
    folder: Path, pooler: bool, dropout: float | None
) -> tuple[dict[str, Any], BertConfig, tuple[str, ...] | None]:
    """(what a folder's config.json says as it stands, the same as ours, the names of the labels); a
    ``WeightsError`` says what is not understood.

    ``pooler``: whether there are weights of one, which config.json does not say. ``dropout``
    replaces all of its own.
    """
    file = folder / CONFIG
    card = read_json(file)
    name = card.get("model_type")
    if name not in (PUBLISHED, OWN):
        raise WeightsError(
            f"{file}: model_type is {value_in_short(name)}, expected {PUBLISHED} or {OWN}"
        )
    if card.get(IDENTITY) is not None:
        reading.field(card, IDENTITY, str, file, WeightsError)
    try:
        if name == PUBLISHED:
            config, labels = from_published(card, pooler)
        else:
            config, labels = from_own(card)
    except Mendable as error:  # ours, or what BertConfig says of a value
        raise WeightsError(f"{file}: {error}") from None
    if dropout is not None:
        config = dataclasses.replace(
            config, dropout=dropout, attention_dropout=dropout, head_dropout=dropout
        )
    return card, config, labels


def from_published(
    card: Mapping[str, Any], pooler: bool
) -> tuple[BertConfig, tuple[str, ...] | None]:
    """What a BertConfig of transformers says: ours, and the names of its labels, None where the
    head has none. ``pooler``: whether there are weights of one. What is not understood is a
    ``WeightsError``, without the file's name."""
    refuse_options(card, {*FIELDS, *UNTOLD, *UNREAD}, "BERT as transformers defines it", EXACTLY)
    if absent := [name for name in FIELDS if name not in card]:
        raise WeightsError(f"{', '.join(absent)} missing")
    card = {**UNTOLD, **card}
    head = _head(card.get("architectures"))
    if head == "masked" and card["tie_word_embeddings"] is not True:
        raise WeightsError(
            f"tie_word_embeddings={value_in_short(card['tie_word_embeddings'])} is not "
            "implemented: in addnorm the decoder of a BERT is its embedding"
        )
    activation = card["hidden_act"]
    if not isinstance(activation, str) or activation not in GPT2_ACTIVATIONS:
        raise WeightsError(
            f"hidden_act={value_in_short(activation)} is not implemented, only "
            f"{', '.join(GPT2_ACTIVATIONS)}"
        )
    labels = label_names(card) if head in LABELLED else None
    several = head == "classify" and card.get("problem_type") == SEVERAL
    before_head = card["classifier_dropout"]
    config = BertConfig(
        **{ours: card[theirs] for theirs, ours in FIELDS.items()},
        types=card["type_vocab_size"],
        head=head,
        labels=2 if labels is None else len(labels),
        several=several,
        pooling="none" if head == "none" and not pooler else "first",
        eps=card["layer_norm_eps"],
        activation=GPT2_ACTIVATIONS[activation],
        dropout=card["hidden_dropout_prob"],
        attention_dropout=card["attention_probs_dropout_prob"],
        head_dropout=card["hidden_dropout_prob"] if before_head is None else before_head,
    )
    return config, labels


def _head(architectures: Any) -> str:
    """The head of the model that ``architectures`` names, a list of one. None or an empty list is
    the model without a head; if the weights have one, they are refused later."""
    names = architectures or ["BertModel"]
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        raise WeightsError(
            f"architectures={value_in_short(architectures)} is not read, only one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[names[0]]


def from_own(card: Mapping[str, Any]) -> tuple[BertConfig, tuple[str, ...] | None]:
    """From what ``to_own`` wrote: (the configuration, the names of its labels, None where the head
    has none). A ``Mendable`` for anything else, without the file's name."""
    fields = [f.name for f in dataclasses.fields(BertConfig)]
    refuse_options(card, {*fields, NAMES}, f"addnorm {__version__}")
    if absent := [name for name in fields if name not in card]:
        raise WeightsError(f"{', '.join(absent)} missing")
    config = BertConfig(**{name: card[name] for name in fields})
    labels = card.get(NAMES)
    if config.head not in LABELLED:
        return config, None
    if not isinstance(labels, list) or [type(n) for n in labels] != [str] * config.labels:
        raise WeightsError(f"{NAMES} must be {config.labels} texts, got {value_in_short(labels)}")
    return config, tuple(labels)


def to_published(config: BertConfig, labels: Sequence[str] | None) -> dict[str, Any]:
    """What transformers reads as a BertConfig; for a model of which ``why_not_published`` says
    nothing."""
    # reversed, so that of several names for the same the first in the table is written
    spoken = {ours: theirs for theirs, ours in reversed(GPT2_ACTIVATIONS.items())}
    architecture = {head: name for name, head in reversed(ARCHITECTURES.items())}[config.head]
    card = {
        "model_type": PUBLISHED,
        "architectures": [architecture],
        **{theirs: getattr(config, ours) for theirs, ours in FIELDS.items()},
        "intermediate_size": config.hidden or 4 * config.dim,
        "type_vocab_size": config.types,
        "hidden_act": spoken[config.activation],
        "layer_norm_eps": config.eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.head_dropout,
        "tie_word_embeddings": True,
    }
    if config.head == "classify":
        card["problem_type"] = SEVERAL if config.several else ONE
    if labels is not None:
        card["id2label"] = {str(i): name for i, name in enumerate(labels)}
        card["label2id"] = {name: i for i, name in enumerate(labels)}
    return card


def to_own(config: BertConfig, labels: Sequence[str] | None) -> dict[str, Any]:
    """What our config.json says of a model: every field by its own name."""
    return {
        "model_type": OWN,
        "addnorm_version": __version__,
        **dataclasses.asdict(config),
        NAMES: None if labels is None else list(labels),
    }


def why_not_published(config: BertConfig) -> list[str]:
    """What BERT's format cannot say about this model; empty if it can be written so."""
    c, reasons = config, []
    if schemes.parse(c.scheme) is not schemes.post_norm:
        reasons.append(f"scheme is {c.scheme!r}, BERT's 'post_norm'")
    if c.norm != "layer":
        reasons.append(f"norm is {c.norm!r}, BERT's 'layer'")
    if c.position != "learned":
        reasons.append(f"position is {c.position!r}, BERT's 'learned'")
    if c.pooling == "mean" and c.head in ("classify", "none"):
        reasons.append("pooling is 'mean', BERT's 'first'")
    if c.activation not in GPT2_ACTIVATIONS.values():
        names = a_few(sorted({*GPT2_ACTIVATIONS.values()}))
        reasons.append(f"activation is {c.activation!r}, BERT's one of {names}")
    return reasons
