"""What stands beside the weights: config.json, GPT-2's and ours, both ways, and the tokenizer.

What is not understood is refused by name.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from addnorm import reading, schemes
from addnorm.errors import Mendable, value_in_short
from addnorm.files.folders import CARD, CONFIG, TOKENIZERS, WeightsError, read_json
from addnorm.models.gpt_config import GPTConfig
from addnorm.version import __version__

GPT_TYPE = "addnorm_gpt"
IDENTITY = "addnorm_tokenizer"
"""Where config.json names the tokenizer that the model belongs to."""

# --- GPT-2's configuration ------------------------------------------------------------------------

FIELDS = {
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "dim",
    "n_layer": "n_layers",
    "n_head": "n_heads",
}
"""What every config.json of GPT-2 has -> the field of ``GPTConfig``."""
GPT2_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""What transformers calls an activation -> what we do; of several names for one, the first is the
one that is written."""
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
UNTOLD: dict[str, Any] = {
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    **dict.fromkeys(DROPOUTS, 0.1),
}
"""What holds where a config.json says nothing."""
EXACT = {
    "scale_attn_weights": (True, "attention logits are divided by sqrt(head width)"),
    "scale_attn_by_inverse_layer_idx": (False, "attention is scaled alike in all blocks"),
    "reorder_and_upcast_attn": (False, "attention computes as PyTorch's fused kernel does"),
    "add_cross_attention": (False, "there is no encoder to look at"),
    "is_decoder": (False, "there is no encoder to look at"),
    "is_encoder_decoder": (False, "there is no encoder"),
    "pruned_heads": ({}, "all heads are there"),
    "quantization_config": (None, "weights are floating-point numbers"),
    "chunk_size_feed_forward": (0, "the MLP sees all tokens at once"),
}
"""What we compute in one way only, and which."""
BOOKKEEPING = set(
    """_name_or_path _num_labels addnorm_tokenizer addnorm_version architectures auto_map
    bos_token_id decoder_start_token_id dtype eos_token_id finetuning_task gradient_checkpointing
    id2label initializer_range label2id model_type n_ctx n_special name_or_path num_labels
    output_attentions output_hidden_states output_past pad_token_id predict_special_tokens prefix
    problem_type return_dict sep_token_id summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj task_specific_params tokenizer_class
    torch_dtype torchscript transformers_version use_bfloat16 use_cache
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    use_return_dict""".split()  # noqa: SIM905 (a list would take a line for each)
)
"""What a config.json says besides, which no forward pass of GPT-2 or ours reads."""


def read(folder: Path, dropout: float | None) -> tuple[dict[str, Any], GPTConfig]:
    """(what a folder's config.json says as it stands, the same as ours); a ``WeightsError`` names
    what is not understood. ``dropout`` replaces its own; None: as it says."""
    file = folder / CONFIG
    card = read_json(file)
    kind = card.get("model_type")
    readers = {"gpt2": from_gpt2, GPT_TYPE: from_own}
    if not isinstance(kind, str) or kind not in readers:
        raise WeightsError(
            f"{file}: model_type is {value_in_short(kind)}, expected {' or '.join(readers)}"
        )
    if card.get(IDENTITY) is not None:
        reading.field(card, IDENTITY, str, file, WeightsError)
    try:
        return card, readers[kind](card, dropout)
    except Mendable as error:  # ours, or what GPTConfig says of a value
        raise WeightsError(f"{file}: {error}") from None


def from_gpt2(card: Mapping[str, Any], dropout: float | None) -> GPTConfig:
    """What a GPT2Config says, as ours; a ``Mendable``, without the file's name, where that cannot
    be. ``dropout`` None takes its dropout, which must be the same in all three places."""
    refuse_options(card, {*FIELDS, *UNTOLD}, "GPT-2 as transformers defines it")
    absent = [name for name in FIELDS if name not in card]
    if absent:
        raise WeightsError(f"{', '.join(absent)} missing")
    card = {**UNTOLD, **card}
    activation = card["activation_function"]
    if not isinstance(activation, str) or activation not in GPT2_ACTIVATIONS:
        raise WeightsError(
            f"activation_function={value_in_short(activation)} is not implemented, only "
            f"{', '.join(GPT2_ACTIVATIONS)}"
        )
    drops = {name: card[name] for name in DROPOUTS}
    if dropout is None and any(value != drops["resid_pdrop"] for value in drops.values()):
        each = ", ".join(f"{name}={value_in_short(value)}" for name, value in drops.items())
        raise WeightsError(
            f"{each}: addnorm has one dropout for all three. It matters in training only; choose, "
            f"as in from_pretrained(..., dropout={value_in_short(drops['resid_pdrop'])})"
        )
    return GPTConfig(
        **{ours: card[theirs] for theirs, ours in FIELDS.items()},
        eps=card["layer_norm_epsilon"],
        hidden=card["n_inner"],
        activation=GPT2_ACTIVATIONS[activation],
        tied=card["tie_word_embeddings"],
        dropout=drops["resid_pdrop"] if dropout is None else dropout,
    )


def from_own(card: Mapping[str, Any], dropout: float | None) -> GPTConfig:
    """The configuration that ``to_own`` or ``addnorm.hf`` wrote; a ``Mendable``, without the file's
    name, where it is another. ``dropout`` None takes its own."""
    fields = [f.name for f in dataclasses.fields(GPTConfig)]
    refuse_options(card, fields, f"addnorm {__version__}")
    absent = [name for name in fields if name not in card]
    if absent:
        raise WeightsError(f"{', '.join(absent)} missing")
    config = GPTConfig(**{name: card[name] for name in fields})
    return config if dropout is None else dataclasses.replace(config, dropout=dropout)


def refuse_options(
    card: Mapping[str, Any],
    names: Iterable[str],
    whose: str,
    exact: Mapping[str, tuple[Any, str]] = EXACT,
) -> None:
    """Raise a ``WeightsError`` at the first entry of a config.json that is set and is not read,
    since it might be part of the architecture. ``names`` are those that are read, ``whose`` says in
    the message what they are the options of. ``exact``: entries that may have one value only, each
    with it and with what we do, in a clause for the message."""
    for name, value in card.items():
        if name in exact and value != exact[name][0]:
            raise WeightsError(
                f"{name}={value_in_short(value)} is not implemented: in addnorm {exact[name][1]}"
            )
        if name in names or name in exact or name in BOOKKEEPING:
            continue
        if value not in (None, False, 0, "", [], {}):  # these turn nothing on
            raise WeightsError(
                f"{name}={value_in_short(value)} is not an option of {whose}. If the model does "
                "not depend on it, remove the line; otherwise this is another model"
            )


def to_gpt2(config: GPTConfig, eos: int | None) -> dict[str, Any]:
    """What transformers reads as a GPT2Config, of a model of which ``why_not_gpt2`` says nothing.
    ``eos`` is the id that ends a text, if one does."""
    # Of several names for one activation the first is taken.
    spoken = {ours: theirs for theirs, ours in reversed(GPT2_ACTIVATIONS.items())}
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{theirs: getattr(config, ours) for theirs, ours in FIELDS.items()},
        "n_inner": config.hidden,
        "activation_function": spoken[config.activation],
        "layer_norm_epsilon": config.eps,
        **dict.fromkeys(DROPOUTS, config.dropout),
        "tie_word_embeddings": True,
        "bos_token_id": eos,
        "eos_token_id": eos,
    }


def to_own(config: GPTConfig, eos: int | None) -> dict[str, Any]:
    """What our config.json says of a model: every field by its own name. ``eos`` is the id that
    ends a text, if one does."""
    return {
        "model_type": GPT_TYPE,
        "architectures": ["AddnormForCausalLM"],
        "addnorm_version": __version__,
        **dataclasses.asdict(config),
        "bos_token_id": eos,
        "eos_token_id": eos,
    }


def why_not_gpt2(config: GPTConfig) -> list[str]:
    """What GPT-2's format cannot say about this model; empty if it can be written so."""
    c = config
    gpt2 = {
        "norm": "layer",
        "position": "learned",
        "qk_norm": None,
        "window": None,
        "attention_softcap": None,
        "mlp": "plain",
        "bias": True,
        "tied": True,
        "softcap": None,
    }
    reasons = [
        f"{name} is {getattr(c, name)!r}, GPT-2's {value!r}"
        for name, value in gpt2.items()
        if getattr(c, name) != value
    ]
    if schemes.parse(c.scheme) is not schemes.pre_norm:
        reasons.insert(0, f"scheme is {c.scheme!r}, GPT-2's 'pre_norm'")
    if c.n_kv_heads not in (None, c.n_heads):
        reasons.append(f"n_kv_heads is {c.n_kv_heads}, GPT-2's as many as n_heads, {c.n_heads}")
    if c.activation not in GPT2_ACTIVATIONS.values():
        reasons.append(f"activation is {c.activation!r}, GPT-2's one of {sorted(GPT2_ACTIVATIONS)}")
    return reasons


# --- the tokenizer ------------------------------------------------------------------------------


class SavedTokenizer(Protocol):
    """What is needed of one to save it with a model."""

    @property
    def identity(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int | None: ...

    def save(self, folder: Path) -> None: ...


def check_tokenizer(folder: Path, vocab_size: int, identity: str | None) -> None:
    """Raise a ``WeightsError`` if the tokenizer in the folder is another model's: it makes ids from
    ``vocab_size`` on, or has another identity than the one that config.json names (None: it names
    none). A folder without a tokenizer is as it should be."""
    for name in TOKENIZERS:
        file = folder / name
        if not os.path.lexists(file):
            continue
        size = max(_ids(file), default=-1) + 1
        if size > vocab_size:
            raise WeightsError(
                f"{file} is the tokenizer of another model: it has {size} tokens, and the model's "
                f"vocabulary is {vocab_size}"
            )
    card = folder / CARD
    if identity is not None and card.exists():
        other = reading.field(read_json(card), "identity", str, card, WeightsError)
        if other != identity:
            raise WeightsError(
                f"{card} is the tokenizer of another model: its identity is {other}, and the model "
                f"was saved with {identity}"
            )


def _ids(file: Path) -> Iterable[int]:
    """The ids in one of a tokenizer's files, by its name one of TOKENIZERS; none in a card that
    leaves them to another file. A ``WeightsError`` where it is damaged."""
    if file.name == "vocab.txt":
        return range(len(reading.lines(file, WeightsError)))
    content = read_json(file)
    more = content.get("special", [])
    special = len(more) if isinstance(more, list) else 0
    if file.name == CARD:  # what is not said elsewhere: 256 bytes and the end of a text
        return range(257 + special if content.get("kind") == "bytes" else 0)
    if file.name == "characters.json":
        return range(len(reading.field(content, "characters", str, file, WeightsError)) + special)
    if file.name != "tokenizer.json":  # vocab.json, added_tokens.json: token -> id
        return [reading.field(content, token, int, file, WeightsError) for token in content]
    model = reading.field(content, "model", dict, file, WeightsError)
    vocab, added = model.get("vocab") or {}, content.get("added_tokens") or []
    if not isinstance(vocab, dict | list) or not isinstance(added, list):
        raise WeightsError(f"{file} has no vocabulary, or no list of added tokens: it is damaged")
    ids = [*(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))]
    ids += [one.get("id") if isinstance(one, dict) else one for one in added]
    wrong = [id for id in ids if type(id) is not int]
    if wrong:
        raise WeightsError(f"{file} has {reading.in_words(wrong[0])} as the id of a token")
    return ids
