"""Whisper's folders: what their config.json, generation_config.json and tensors mean.

The format is that of ``WhisperForConditionalGeneration`` in transformers. Of generation_config.json
is obeyed: start, end, padding, what is not written, there or at the beginning, the ids that stand
before a text, the greatest length. A model of one language writes without times; of several, the
language and the task are those of ``forced_decoder_ids``, or English and transcription.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from addnorm import reading
from addnorm.errors import Mendable, value_in_short
from addnorm.files.folders import CONFIG, GENERATION, WeightsError, read_json
from addnorm.files.marian import ACTIVATIONS, check_sides
from addnorm.generation.search import SearchRules
from addnorm.models.speech import SpeechConfig

MODEL_TYPE = "whisper"
HEAD = "proj_out.weight"
"""The copy of the decoder's tokens that older folders store."""
LANGUAGE, TASK = "<|en|>", "transcribe"
"""Of a model of several languages whose folder says nothing."""


class SpeechCard(NamedTuple):
    """What the JSON files say."""

    config: SpeechConfig
    rules: SearchRules
    prefix: tuple[int, ...]
    """Ids between the start and the text."""


def names(config: SpeechConfig) -> dict[str, str]:
    """Ours -> theirs, of all tensors that they have; keys of theirs have no bias."""
    pairs = {
        "tokens.weight": "model.decoder.embed_tokens.weight",
        "target_positions.weight": "model.decoder.embed_positions.weight",
        "encoder.positions.weight": "model.encoder.embed_positions.weight",
    }
    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            pairs[f"encoder.front.{name}.{part}"] = f"model.encoder.{name}.{part}"
    own, cross = ("self_attn", "encoder_attn")
    kinds = {"encoder": (own, None), "decoder": (own, cross, None)}
    stacks = {"encoder": "encoder.stack", "decoder": "decoder"}
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for part in ("weight", "bias"):
            pairs[f"{stacks[side]}.final.norm.{part}"] = f"model.{side}.layer_norm.{part}"
        for i in range(layers):
            for j, kind in enumerate(kinds[side]):
                ours = f"{stacks[side]}.subs.{i * len(kinds[side]) + j}"
                theirs = f"model.{side}.layers.{i}"
                pairs |= _sublayer(ours, theirs, kind)
    return pairs


def _sublayer(ours: str, theirs: str, attention: str | None) -> dict[str, str]:
    """The tensors of one sublayer, by names that begin with ``ours`` and ``theirs``; ``attention``
    is which, None: the MLP."""
    if attention is None:
        norm, parts = "final_layer_norm", {"up": "fc1", "down": "fc2"}
    else:
        norm = f"{attention}_layer_norm"
        parts = {name: f"{attention}.{name}_proj" for name in "qkv"}
        parts["out"] = f"{attention}.out_proj"
    modules = {"pre.norm": norm} | {
        f"branch.{name}": name_there for name, name_there in parts.items()
    }
    return {
        f"{ours}.{module}.{part}": f"{theirs}.{there}.{part}"
        for module, there in modules.items()
        for part in ("weight", "bias")
        if not (module == "branch.k" and part == "bias")
    }


def read_card(folder: Path) -> SpeechCard:
    """What config.json and generation_config.json say, or a ``WeightsError``."""
    file = folder / CONFIG
    card = read_json(file)

    def number(name: str) -> int:
        return reading.field(card, name, int, file, WeightsError)

    check_sides(card, file)
    activation = card.get("activation_function", "gelu")
    if card.get("tie_word_embeddings", True) is not True:
        raise WeightsError(f"{file}: tie_word_embeddings must be true, as it is in all Whispers")
    how = read_json(folder / GENERATION) if (folder / GENERATION).exists() else card
    rules, prefix = _rules(folder, card, how)
    try:
        config = SpeechConfig(
            vocab_size=number("vocab_size"),
            n_mels=number("num_mel_bins"),
            frames=2 * number("max_source_positions"),
            strides=2,
            dim=number("d_model"),
            encoder_layers=number("encoder_layers"),
            decoder_layers=number("decoder_layers"),
            n_heads=number("encoder_attention_heads"),
            hidden=number("encoder_ffn_dim"),
            context_length=number("max_target_positions"),
            kernel=0,
            position="learned",
            activation=ACTIVATIONS[activation],
            ctc=False,
            start_id=rules.start,
            end_id=rules.end,
            pad_id=rules.pad,
            dropout=0.0,
        )
    except Mendable as error:
        raise WeightsError(f"{file}: {error}") from None
    return SpeechCard(config, rules, prefix)


def _rules(
    folder: Path, card: Mapping[str, Any], how: Mapping[str, Any]
) -> tuple[SearchRules, tuple[int, ...]]:
    """The rules of a search, and the prefix. ``how``: what is said of generation."""
    file = folder / (CONFIG if how is card else GENERATION)

    def id_of(name: str) -> int:
        value = how.get(name, card.get(name))
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if type(value) is not int:
            raise WeightsError(f"{file}: {name} is {value_in_short(value)}, expected one id")
        return value

    def ids_of(name: str) -> list[int]:
        value = how.get(name) or []
        if not isinstance(value, list) or not all(type(id) is int for id in value):
            raise WeightsError(f"{file}: {name} is {value_in_short(value)}, expected ids")
        return value

    start, end = id_of("decoder_start_token_id"), id_of("eos_token_id")
    prefix = _prefix(how, file)
    last = prefix[-1] if prefix else start
    banned: list[tuple[int, ...]] = [(id,) for id in ids_of("suppress_tokens")]
    banned += [(last, id) for id in ids_of("begin_suppress_tokens")]
    context = reading.field(card, "max_target_positions", int, folder / CONFIG, WeightsError)
    most = how.get("max_length", context)
    if type(most) is not int or most < 2:
        raise WeightsError(f"{file}: max_length is {value_in_short(most)}, expected at least 2")
    rules = SearchRules(
        start=start,
        end=end,
        pad=id_of("pad_token_id"),
        banned=tuple(banned),
        most=max(min(most, context - 1 - len(prefix)), 1),
    )
    return rules, prefix


def _prefix(how: Mapping[str, Any], file: Path) -> tuple[int, ...]:
    """The ids between the start and a text: language, task, and that no times are written."""
    no_times = how.get("no_timestamps_token_id")
    after = () if no_times is None else (no_times,)
    if not how.get("is_multilingual"):
        return after
    pairs = [pair for pair in how.get("forced_decoder_ids") or [] if pair[1] is not None]
    ids = [id for _, id in sorted(pairs)]
    languages, tasks = how.get("lang_to_id") or {}, how.get("task_to_id") or {}
    if len(ids) < 2 and (LANGUAGE not in languages or TASK not in tasks):
        raise WeightsError(
            f"{file}: the model is of several languages, and neither forced_decoder_ids nor "
            "lang_to_id and task_to_id say how a text of one begins"
        )
    both = tuple(ids[:2]) if len(ids) >= 2 else (languages[LANGUAGE], tasks[TASK])
    return (*both, *after)
