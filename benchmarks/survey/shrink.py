"""Any configuration of transformers, made small by rule.

    config = AutoConfig.for_model("llama")
    small = shrunk(config)              # three layers of 64 numbers, 97 words, images of 32 pixels

What a number means is told by its name, in the words that the library uses for it: widths, heads,
layers, experts, words, positions, pixels. Equal numbers of one meaning stay equal, a ratio of heads
stays a ratio, lists with one entry for each layer are cut to the same layers, and every kind of
layer that a list names stays. What has no rule stays as it is.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

LAYERS, WIDTH, HEADS, HEAD, WORDS, POSITIONS, SIDE, PATCH = 3, 64, 4, 16, 97, 64, 32, 8
INNER, EXPERTS, CHANNELS, RANK, QUERIES = 128, 4, 16, 16, 9
MOST_LAYERS = 6
"""As many as are kept to have one of each kind."""

Rule = tuple[str, Any]

# The first pattern that fits all of a name decides. Behind it: the most that the number may be, or
# a function of the number.


def _at_most(most: int) -> Any:
    return lambda n: min(n, most)


def _heads(n: int) -> int:
    return min(n, HEADS)


def _partial_heads(n: int) -> int:
    """Of keys and values: half of the queries' heads, but one where there is one."""
    return min(n, HEADS // 2)


SCALARS: tuple[Rule, ...] = (
    (r".*(token|pad|bos|eos|sep|cls|mask|unk|start|end)_(id|index|idx)s?|image_token", None),
    (r".*(_id|_ids|_idx|_index|indices|indexes)", None),
    (r".*(token_type|type_vocab|type_size).*", None),
    # how many layers, of what kind
    (r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index)", _at_most(1)),
    (r"num_kv_shared_layers|num_nextn_predict_layers|num_mtp_layers", _at_most(0)),
    (r"max_window_layers", _at_most(1)),
    (r".*(layers?_interval|_pattern|attention_interval|_frequency|_period|every_n.*|_interval)",
     _at_most(2)),
    (r"(num_)?(hidden_|encoder_|decoder_|resampler_|perceiver_|num_)*(layers?|blocks|depth)"
     r"|n_layers?|(e|d)_layers|.*_num_layers|.*_num_hidden_layers|.*num_(\w+_)?layers|.*_layers"
     r"|.*_depth|depth", _at_most(LAYERS)),
    # heads
    (r".*(num_key_value_heads|num_kv_heads|n_kv_heads|kv_heads|num_key_value_groups|multi_query_.*)"
     , _partial_heads),
    (r"linear_num_key_heads", _at_most(2)),
    (r"linear_num_value_heads", _at_most(4)),
    (r"mamba_n_heads|mamba_num_heads", _at_most(8)),
    (r".*heads", _heads),
    (r"n_head|num_head|n_heads_.*", _heads),
    # experts
    (r".*(experts_per_tok|experts_per_token|moe_topk|moe_k|top_k_experts|num_selected_experts|topk)"
     , _at_most(2)),
    (r"n_group|topk_group", _at_most(1)),
    (r"(n|num|moe)_(\w+_)*(experts|shared_experts)|moe_num_experts|num_experts", _at_most(EXPERTS)),
    # parts of a head
    (r"qk_rope_head_dim|rotary_dim|rope_head_dim|index_rope_head_dim", _at_most(HEAD // 2)),
    (r"qk_nope_head_dim", _at_most(HEAD // 2)),
    (r"qk_head_dim|.*head_dim|d_kv|d_head|.*_d_head|dim_head|attention_key_size|head_size"
     r"|query_pre_attn_scalar|.*head_width", _at_most(HEAD)),
    # words and positions
    (r".*vocab_size(_.*)?|n_vocab|num_words|char_vocab.*|.*vocabulary.*", _at_most(WORDS)),
    (r".*(max_position_embeddings|max_seq_len(gth)?|n_positions|n_ctx|context_length"
     r"|max_target_positions|max_text_len|max_seqlen|seq_len(gth)?|position_embeddings"
     r"|max_2d_position_embeddings|max_length|block_size)", _at_most(POSITIONS)),
    (r"max_source_positions", _at_most(QUERIES * 2)),
    (r".*(sliding_window|attention_window|local_attention|window_attention|chunk_size"
     r"|attention_chunk_size|chunk_length|attention_span)", _at_most(8)),
    (r"max_relative_positions?|max_rel_pos.*|max_distance|.*_max_distance", _at_most(POSITIONS)),
    # pixels and sound
    (r".*patch_size|patch", _at_most(PATCH)),
    (r".*(image_size|img_size|input_size|crop_size|image_height|image_width)", _at_most(SIDE)),
    (r"num_frames|frames", _at_most(4)),
    (r".*num_mel_bins|n_mels|.*feature_size|input_feat_per_channel|num_mels", _at_most(16)),
    (r"num_conv_pos_embeddings", _at_most(16)),
    (r"num_(object_)?quer(ies|y_tokens)|num_latents|num_denoising|num_proposals.*"
     , _at_most(QUERIES)),
    (r"image_seq_length|mm_tokens_per_image|image_seq_len", _at_most(16)),
    (r".*codebook_size|num_embeddings|codevector_.*|num_codevectors.*", _at_most(32)),
    # widths
    (r".*(q_lora_rank|kv_lora_rank|lora_rank|_rank|lora_.*|dt_rank)", _at_most(RANK)),
    (r".*(state_size|d_state|ssm_state.*)", _at_most(CHANNELS)),
    (r".*(intermediate_size|ffn_dim|d_ff|n_inner|mlp_dim|ffn_hidden_size|inner_dim"
     r"|intermediate_dim|feedforward_dim|ff_dim|ffn_size|mlp_hidden_size|expert_dim)"
     , _at_most(INNER)),
    (r".*(hidden_size_per_layer_input|channels|conv_dim|stem_dim|base_dim|num_filters)"
     , _at_most(CHANNELS)),
    (r".*(hidden_size|d_model|n_embd|embed_dim|hidden_dim|projection_dim|embedding_size|emb_dim"
     r"|embedding_dim|proj_dim|_proj_size|output_dim|width|dim|_dim|_size|d_embed|lru_width)"
     , _at_most(WIDTH)),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern), rule) for pattern, rule in SCALARS)
_KEEP = re.compile(
    r".*(kernel|stride|conv_size|window_size|merge_size|group|temporal_patch|dilation|expan|factor"
    r"|scale|rate|ratio|multiplier|chunk_size_feed_forward|d_conv|num_channels|conv_L_cache"
    r"|num_labels|in_channels_audio|pool_size|tubelet).*"
)
"""Names of numbers that are steps or factors, whatever else they contain."""
_WIDTHS = re.compile(
    r".*(hidden_sizes|dims?|channels|conv_dim|embed_dims?|hidden_size|sizes|widths?|out_features_.*)"
)
_HEADS = re.compile(r".*heads?")
_DEPTHS = re.compile(r".*(depths?|num_blocks|layers)")
_COUNT = re.compile(
    r"num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|depth|num_blocks"
)
_TOKEN = re.compile(r".*(token|bos|eos|pad|sep|cls|mask|unk|boi|eoi|boa|eoa)\w*_(id|ids|index|idx)")


def shrunk(config: Any) -> Any:
    """A small copy of a configuration, with all those in it."""
    small = copy.deepcopy(config)
    words = _renumbered_words(list(_tokens(small)))
    _shrink(small, words)
    return small


def size(name: str, value: int) -> int:
    """What a number becomes, by its name; itself where no rule knows the name."""
    if value <= 1 or _KEEP.fullmatch(name):
        return value
    for pattern, rule in _COMPILED:
        if pattern.fullmatch(name):
            return value if rule is None else int(rule(value))
    return value


# --- one configuration ----------------------------------------------------------------------------


def _fields(config: Any) -> dict[str, Any]:
    """What a configuration or a dict in one says, private attributes left out."""
    entries = config if isinstance(config, dict) else vars(config)
    return {
        k: v
        for k, v in entries.items()
        if isinstance(k, str) and (not k.startswith("_") or k in ("_out_indices", "_out_features"))
    }


def _is_config(value: Any) -> bool:
    return hasattr(value, "model_type") and hasattr(value, "to_dict")


def _write(config: Any, name: str, value: Any) -> None:
    if isinstance(config, dict):
        config[name] = value
    else:  # past checks of single fields: several belong together and change one after the other
        object.__setattr__(config, name, value)


def _shrink(config: Any, words: dict[int, int]) -> None:
    fields = _fields(config)
    layers = _layers(fields)
    hierarchical = any(
        _is_list(v) and re.fullmatch("depths|num_heads", k) for k, v in fields.items()
    )
    wide_heads = _wide_head(fields)
    for name, value in fields.items():
        if _is_config(value):
            _shrink(value, words)
        elif isinstance(value, dict):
            _write(config, name, _shrunk_dict(name, value, wide_heads, words))
        elif type(value) is int:
            _write(config, name, _shrunk_number(name, value, words, hierarchical))
        elif _is_list(value):
            _write(config, name, _shrunk_list(name, value, layers, words))
    for name, value in _fields(config).items():  # layers that the lists agreed on
        counts = layers is not None and _COUNT.fullmatch(name) and type(value) is int
        if layers is not None and counts and fields[name] == layers[0]:
            _write(config, name, len(layers[1]))
    rotary = fields.get("qk_rope_head_dim")
    if type(rotary) is int and fields.get("head_dim") == rotary:  # the same number by two names
        _write(config, "head_dim", size("qk_rope_head_dim", rotary))


def _shrunk_number(name: str, value: int, words: dict[int, int], hierarchical: bool) -> int:
    if _TOKEN.fullmatch(name) and value in words:
        return words[value]
    if hierarchical and name in ("embed_dim", "hidden_dim"):
        return min(value, CHANNELS)
    return size(name, value)


def _shrunk_dict(
    name: str, value: dict[str, Any], heads: tuple[int, int] | None, words: dict[int, int]
) -> dict[str, Any]:
    """A dict in a configuration; of rotary settings, the lists that part a head."""
    if not re.search("rope|rotary", name):
        nested = copy.deepcopy(value)
        if _says_sizes(nested):
            _shrink(nested, words)
        return nested
    result: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            result[key] = _shrunk_dict("rope", entry, heads, words)
        elif _is_list(entry) and heads is not None and all(type(n) is int for n in entry):
            result[key] = _parts(entry, heads[1] // 2)
        elif _is_list(entry) and heads is not None:
            result[key] = list(entry)[: heads[1] // 2]
        elif key == "original_max_position_embeddings" and type(entry) is int:
            result[key] = min(entry, POSITIONS // 2)
        else:
            result[key] = entry
    return result


def _says_sizes(value: dict[str, Any]) -> bool:
    """Whether a dict is a configuration rather than a table of something else."""
    return bool({"hidden_size", "num_layers", "model_type", "d_model", "depth"} & value.keys())


def _parts(entry: Sequence[int], total: int) -> list[int]:
    """Numbers in about the same proportions, which add up to ``total``."""
    whole = sum(entry)
    if whole <= total or len(entry) > total:
        return list(entry)
    parts = [max(1, n * total // whole) for n in entry]
    parts[-1] += total - sum(parts)
    return parts


def _wide_head(fields: dict[str, Any]) -> tuple[int, int] | None:
    """(numbers in a head, the same after shrinking), where a configuration says so."""
    for name in ("head_dim", "qk_rope_head_dim"):
        if type(fields.get(name)) is int:
            return fields[name], size(name, fields[name])
    for width, heads in (("hidden_size", "num_attention_heads"), ("embed_dim", "num_heads")):
        if type(fields.get(width)) is int and type(fields.get(heads)) is int and fields[heads]:
            return fields[width] // fields[heads], size(width, fields[width]) // min(
                HEADS, fields[heads]
            )
    return None


# --- lists ----------------------------------------------------------------------------------------


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0


def _layers(fields: dict[str, Any]) -> tuple[int, list[int]] | None:
    """(how many layers, which of them stay) where lists have an entry for each layer: the first of
    every kind, and the first ones; None where no number of layers is stated."""
    count = next(
        (fields[n] for n in fields if _COUNT.fullmatch(n) and type(fields[n]) is int), None
    )
    if count is None or count <= LAYERS:
        return None
    kinds = [v for v in fields.values() if _is_list(v) and len(v) == count]
    stay: list[int] = []
    for entries in kinds:
        if all(isinstance(e, str | int | bool | type(None)) for e in entries):
            few = {e: i for i, e in reversed(list(enumerate(entries)))}
            if len(few) <= MOST_LAYERS:
                stay += few.values()
    selection = sorted(set(stay))[:MOST_LAYERS]
    rest = [i for i in range(count) if i not in selection]
    selection = sorted([*selection, *rest[: max(0, LAYERS - len(selection))]])
    return count, selection


def _shrunk_list(
    name: str, value: Sequence[Any], layers: tuple[int, list[int]] | None, words: dict[int, int]
) -> Any:
    """A list of numbers by its name, of layers cut to those that stay."""
    kind: Callable[[Iterable[Any]], Any] = tuple if isinstance(value, tuple) else list
    if any(_is_config(v) for v in value):
        for entry in value:
            _shrink(entry, words)
        return value
    if _TOKEN.fullmatch(name) and all(type(n) is int for n in value):
        return kind(words.get(n, n) for n in value)
    if layers is not None and len(value) == layers[0]:
        few = [value[i] for i in layers[1]]
        return kind(size(name, n) if type(n) is int else n for n in few)
    if not all(type(n) is int for n in value) or _KEEP.fullmatch(name):
        return value
    if re.fullmatch(r".*(indices|indexes|index|layers_idx)|.*_layers", name):
        return kind(dict.fromkeys(min(n, LAYERS - 1) for n in value)) if layers else value
    if re.fullmatch(r".*mrope_section", name):
        return kind(_parts(value, HEAD // 2))
    if re.fullmatch(r".*(image_size|img_size|input_size|patch_size|shape)", name):
        return kind(size(name, n) for n in value)
    if _HEADS.fullmatch(name):
        return kind(_scaled(value, 1))
    if _DEPTHS.fullmatch(name):
        return kind(min(n, 2) for n in value)
    if _WIDTHS.fullmatch(name):
        return kind(_scaled(value, CHANNELS))
    return value


def _scaled(value: Sequence[int], least: int) -> list[int]:
    """Numbers in the same proportions, the greatest common divisor made ``least``; with none that
    is large, each at most eight times as large."""
    unit = math.gcd(*value)
    if unit <= least:
        return list(value)
    return [n // unit * least for n in value]


# --- words ----------------------------------------------------------------------------------------


def _tokens(config: Any) -> Iterator[int]:
    """All ids of special tokens that it names."""
    for name, value in _fields(config).items():
        if _is_config(value):
            yield from _tokens(value)
        elif _TOKEN.fullmatch(name):
            for n in value if _is_list(value) else [value]:
                if type(n) is int and n >= 0:
                    yield n


def _renumbered_words(ids: Sequence[int]) -> dict[int, int]:
    """Id -> an id within the small vocabulary; different ones stay different."""
    small = {n: n for n in ids if n < WORDS}
    free = iter(n for n in range(WORDS - 1, -1, -1) if n not in small)
    for n in ids:
        if n not in small:
            small[n] = next(free, WORDS - 1)
    return small
