"""MarianMT's folders: what their config.json, generation_config.json and tensors mean.

The format is that of ``MarianMTModel`` in transformers, and of the models Helsinki-NLP/opus-mt-*.
Of generation_config.json is obeyed: start, end, padding, forced end, banned ids, renormalized
probabilities, early stopping, the greatest length. How many beams there are, and the length
penalty, is for the caller to say. What would change a text in another way is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from addnorm import reading
from addnorm.errors import Mendable, value_in_short
from addnorm.files.folders import CONFIG, GENERATION, WeightsError, read_json
from addnorm.generation.search import SearchRules
from addnorm.models.seq2seq_config import Seq2SeqConfig
from addnorm.words import a_few

MODEL_TYPE = "marian"
ACTIVATIONS = {
    "swish": "silu",
    "silu": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Theirs -> ours."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), (None, 0)
    ),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), (None, 1, 1.0)),
    **dict.fromkeys(("num_beam_groups", "num_return_sequences"), (None, 1)),
    **dict.fromkeys(("diversity_penalty", "guidance_scale"), (None, 0, 0.0, 1, 1.0)),
    **dict.fromkeys(
        (
            *("min_new_tokens", "forced_bos_token_id", "force_words_ids", "constraints"),
            *("sequence_bias", "suppress_tokens", "begin_suppress_tokens", "stop_strings"),
            *("exponential_decay_length_penalty", "max_time", "penalty_alpha"),
        ),
        (None, []),
    ),
    "do_sample": (None, False),
}
"""Settings of generation that are not obeyed here -> what says that they ask for nothing."""


class MarianTensor(NamedTuple):
    """A tensor of ours, and what it is called there."""

    ours: str
    theirs: tuple[str, ...]
    """The name under which it is written, and others under which copies may stand."""


def tensors(config: Seq2SeqConfig) -> list[MarianTensor]:
    """All of a model, each once; a table that stands in several places has several names."""
    encoder, decoder = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
    head = ("lm_head.weight",)
    if config.target_vocab_size is None:
        copies = ("model.shared.weight", encoder, decoder, *(head if config.tied else ()))
        rows = [MarianTensor("tokens.weight", copies)]
    else:
        rows = [
            MarianTensor("tokens.weight", (encoder,)),
            MarianTensor("target_tokens.weight", (decoder, *(head if config.tied else ()))),
        ]
    if not config.tied:
        rows.append(MarianTensor("head.weight", head))
    rows.append(MarianTensor("logits_bias", ("final_logits_bias",)))
    mlp = {"fc1": "up", "fc2": "down"}
    attention = {f"{x}_proj": x for x in ("q", "k", "v")} | {"out_proj": "out"}
    # Side -> its sublayers in their order: what their names begin with there, their norm, and the
    # modules of the branch, theirs -> ours.
    kinds: dict[str, list[tuple[str, str, dict[str, str]]]] = {
        "encoder": [
            ("self_attn.", "self_attn_layer_norm", attention),
            ("", "final_layer_norm", mlp),
        ],
        "decoder": [
            ("self_attn.", "self_attn_layer_norm", attention),
            ("encoder_attn.", "encoder_attn_layer_norm", attention),
            ("", "final_layer_norm", mlp),
        ],
    }
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for i in range(layers):
            for j, (before, norm, names) in enumerate(kinds[side]):
                theirs = f"model.{side}.layers.{i}."
                ours = f"body.{side}.subs.{i * len(kinds[side]) + j}."
                pairs = {f"{before}{t}": f"branch.{o}" for t, o in names.items()}
                pairs[norm] = "post.norm"
                rows += [
                    MarianTensor(f"{ours}{o}.{part}", (f"{theirs}{t}.{part}",))
                    for t, o in pairs.items()
                    for part in ("weight", "bias")
                ]
    return rows


def why_not_marian(config: Seq2SeqConfig) -> list[str]:
    """What a model has that the format cannot say; nothing: it can say all of it."""
    marians = {"scheme": "post_norm", "norm": "layer", "eps": 1e-5, "position": "halves"}
    reasons = [
        f"{name} is {getattr(config, name)}, not {value}"
        for name, value in marians.items()
        if getattr(config, name) != value
    ]
    if config.activation not in ACTIVATIONS.values():
        reasons.append(f"activation is {config.activation}")
    return reasons


# --- reading --------------------------------------------------------------------------------------


def check_sides(card: Mapping[str, Any], file: Path) -> None:
    """Raise a ``WeightsError`` unless encoder and decoder are alike where ours are, with an
    activation that we have. For Whisper's folders as well, which have the same keys."""
    for name in ("attention_heads", "ffn_dim"):
        one, other = (
            reading.field(card, f"{side}_{name}", int, file, WeightsError)
            for side in ("encoder", "decoder")
        )
        if one != other:
            raise WeightsError(
                f"{file}: encoder_{name} is {one} and decoder_{name} is {other}; addnorm has "
                "models in which both are the same"
            )
    activation = card.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise WeightsError(
            f"{file}: activation_function is {value_in_short(activation)}, expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )


def read_config(folder: Path, dropout: float | None) -> tuple[Seq2SeqConfig, SearchRules]:
    """What the two JSON files say, or a ``WeightsError``. ``dropout`` None takes their own."""
    file = folder / CONFIG
    card = read_json(file)

    def number(name: str, default: int | None = None) -> int:
        if default is not None and card.get(name) is None:
            return default
        return reading.field(card, name, int, file, WeightsError)

    check_sides(card, file)
    activation = card.get("activation_function", "gelu")
    shared = card.get("share_encoder_decoder_embeddings", True)
    vocab_size = number("vocab_size")
    rates: dict[str, Any] = {  # what is not said is as in transformers' MarianConfig
        name: card.get(theirs, default) if dropout is None else dropout
        for name, theirs, default in (
            ("dropout", "dropout", 0.1),
            ("attention_dropout", "attention_dropout", 0.0),
            ("hidden_dropout", "activation_dropout", 0.0),
        )
    }
    rules = _rules(folder, card)
    try:
        config = Seq2SeqConfig(
            vocab_size=vocab_size,
            target_vocab_size=None if shared else number("decoder_vocab_size", vocab_size),
            start_id=rules.start,
            end_id=rules.end,
            pad_id=rules.pad,
            context_length=number("max_position_embeddings", 1024),
            dim=number("d_model"),
            encoder_layers=number("encoder_layers"),
            decoder_layers=number("decoder_layers"),
            n_heads=number("encoder_attention_heads"),
            hidden=number("encoder_ffn_dim"),
            scheme="post_norm",
            position="halves",
            scale_embedding=card.get("scale_embedding", False),
            activation=ACTIVATIONS[activation],
            tied=card.get("tie_word_embeddings", True),
            logits_bias=True,
            **rates,
        )
    except Mendable as error:
        raise WeightsError(f"{file}: {error}") from None
    return config, replace(
        rules, most=min(rules.most or config.context_length, config.context_length)
    )


def _rules(folder: Path, card: Mapping[str, Any]) -> SearchRules:
    """The rules of a search, from generation_config.json; older folders have the same keys in
    config.json, whose content is ``card``. A ``WeightsError`` where they ask for something else."""
    file = folder / GENERATION
    own = file.exists()
    how = read_json(file) if own else card
    file = file if own else folder / CONFIG
    for name, neutral in NEUTRAL.items():
        if how.get(name) not in neutral:
            raise WeightsError(
                f"{file}: {name} is {value_in_short(how[name])}, which addnorm does not do: "
                "without that line the model is read"
            )

    def id_of(*names: str) -> int | None:
        """The id under the first of these names that says one, in either file; None: none does."""
        for name in names:
            value = how.get(name, card.get(name))
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            if value is None:
                continue
            if type(value) is not int:
                raise WeightsError(f"{file}: {name} is {value_in_short(value)}, expected one id")
            return value
        return None

    end = id_of("eos_token_id")
    pad = id_of("pad_token_id")
    start = id_of("decoder_start_token_id", "pad_token_id")
    if end is None or start is None:
        name = "eos_token_id" if end is None else "decoder_start_token_id"
        raise WeightsError(f"{file} does not say what {name} is")
    # MarianConfig of transformers has 0 where nothing is said; a generation_config.json has nothing
    last_id = how.get("forced_eos_token_id", None if own else card.get("forced_eos_token_id", 0))
    last_id = last_id[0] if isinstance(last_id, list) and len(last_id) == 1 else last_id
    most = how.get("max_length")
    if most is not None and (type(most) is not int or most < 2):
        raise WeightsError(f"{file}: max_length is {value_in_short(most)}, expected at least 2")
    if last_id is not None and type(last_id) is not int:
        raise WeightsError(f"{file}: forced_eos_token_id is {value_in_short(last_id)}")
    return SearchRules(
        start=start,
        end=end,
        pad=end if pad is None else pad,
        banned=_banned(how.get("bad_words_ids") or [], file),
        forced_end=last_id,
        renormalize=bool(how.get("renormalize_logits")),
        early_stopping=how.get("early_stopping") or False,
        most=None if most is None else most - 1,  # their max_length counts the start
    )


def _banned(words: Any, file: Path) -> tuple[tuple[int, ...], ...]:
    """What ``bad_words_ids`` says, for ``SearchRules.banned``; ``file`` is named where it is
    something else than lists of ids."""
    good = isinstance(words, list) and all(
        isinstance(word, list) and word and all(type(id) is int and id >= 0 for id in word)
        for word in words
    )
    if not good:
        raise WeightsError(
            f"{file}: bad_words_ids is {value_in_short(words)}, expected lists of ids"
        )
    return tuple(map(tuple, words))


# --- writing --------------------------------------------------------------------------------------


def to_cards(
    config: Seq2SeqConfig, rules: SearchRules, dtype: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config.json, generation_config.json) of a model, or a ``WeightsError`` where the format
    cannot say what it is. ``dtype``: that of the weights, as transformers calls it."""
    if reasons := why_not_marian(config):
        raise WeightsError(f"Marian's format cannot say what this model is: {a_few(reasons)}")
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    sides: dict[str, Any] = {}
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        sides |= {
            f"{side}_layers": layers,
            f"{side}_attention_heads": config.n_heads,
            f"{side}_ffn_dim": config.hidden or 4 * config.dim,
            f"{side}_layerdrop": 0.0,
        }
    ids = {
        "decoder_start_token_id": rules.start,
        "eos_token_id": rules.end,
        "forced_eos_token_id": rules.forced_end,
        "pad_token_id": rules.pad,
    }
    card = {
        "model_type": MODEL_TYPE,
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "decoder_vocab_size": config.targets,
        "share_encoder_decoder_embeddings": config.target_vocab_size is None,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.context_length,
        "d_model": config.dim,
        **sides,
        "activation_function": names[config.activation],
        "scale_embedding": config.scale_embedding,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.hidden_dropout,
        "dtype": dtype,
        **ids,
    }
    how: dict[str, Any] = {**ids, "max_length": (rules.most or config.context_length) + 1}
    if rules.banned:
        how["bad_words_ids"] = [list(word) for word in rules.banned]
    if rules.renormalize:
        how["renormalize_logits"] = True
    if rules.early_stopping:
        how["early_stopping"] = rules.early_stopping
    return card, how
