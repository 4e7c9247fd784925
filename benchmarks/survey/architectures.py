"""What the survey builds: name, family and a function that makes the model.

Of transformers every model class that its automatic classes list; of those that differ in the head
alone, the first that makes the strongest claim, unless all are asked for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks.survey.families import third
from benchmarks.survey.shrink import shrunk


@dataclass(frozen=True)
class Architecture:
    """One model of the survey; ``make`` builds it."""

    name: str
    family: str
    make: Callable[[], nn.Module]
    causal: bool | None = None
    """What its user would say; None: nothing, lint goes by the model."""

    @property
    def third(self) -> int:
        """1, 2 or 3, by the family."""
        return third(self.family)


def all_architectures(*, every_class: bool = False) -> list[Architecture]:
    """Those of every library that is installed."""
    return [
        *_transformers(every_class=every_class),
        *_x_transformers(),
        *_torch(),
    ]


# --- transformers ---------------------------------------------------------------------------------

# One class of each row: they make different claims of what may be seen. The last row takes any.
HEADS: tuple[tuple[str, ...], ...] = (
    ("CAUSAL_LM",),
    ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"),
    ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"),
    ("MASKED_LM", "MASKED_IMAGE_MODELING"),
)


def _transformers(*, every_class: bool) -> Iterator[Architecture]:
    if not find_spec("transformers"):
        return
    auto = import_module("transformers.models.auto.modeling_auto")
    kinds = import_module("transformers.models.auto.configuration_auto")
    tables: dict[str, dict[str, Any]] = {
        name.removeprefix("MODEL_").removeprefix("FOR_").removesuffix("_MAPPING_NAMES"): dict(table)
        for name, table in vars(auto).items()
        if name.startswith("MODEL_") and name.endswith("MAPPING_NAMES")
    }
    bare = tables.pop("MAPPING_NAMES", None) or dict(auto.MODEL_MAPPING_NAMES)
    tables["MODEL"] = bare
    pairs: set[tuple[str, str]] = set()
    for model_type in kinds.CONFIG_MAPPING_NAMES:
        family = f"transformers {kinds.model_type_to_module_name(model_type)}"
        for name in _classes(tables, model_type, every_class=every_class):
            if (name, kinds.CONFIG_MAPPING_NAMES[model_type]) not in pairs:
                pairs.add((name, kinds.CONFIG_MAPPING_NAMES[model_type]))
                label = f"transformers {name} ({model_type})"
                yield Architecture(label, family, partial(_of_transformers, name, model_type))


def _classes(
    tables: dict[str, dict[str, Any]], model_type: str, *, every_class: bool
) -> Iterator[str]:
    """Names of the classes to build from one kind of configuration."""
    every = [_first(table[model_type]) for table in tables.values() if model_type in table]
    if every_class:
        yield from dict.fromkeys(every)
        return
    names = [
        next((_first(tables[t][model_type]) for t in row if model_type in tables.get(t, {})), None)
        for row in HEADS
    ]
    heads = [name for name in names if name]
    yield from dict.fromkeys(heads or sorted(every, key=lambda n: n.endswith("Model"))[:1])


def _first(entry: Any) -> str:
    return str(entry if isinstance(entry, str) else entry[0])


def _of_transformers(name: str, model_type: str) -> nn.Module:
    kinds = import_module("transformers.models.auto.configuration_auto")
    config = shrunk(kinds.CONFIG_MAPPING[model_type]())
    module = kinds.model_type_to_module_name(model_type)
    kind = None
    for place in (f"transformers.models.{module}", "transformers"):
        kind = getattr(import_module(place), name, None)
        if kind is not None:
            break
    if kind is None:
        raise LookupError(f"transformers has no {name}")
    model: nn.Module = kind(config)
    return model


# --- x-transformers -------------------------------------------------------------------------------

WIDTH, HEADS_OF_X, WORDS, LENGTH = 48, 3, 97, 32
ROTARY = {"rotary_pos_emb": True, "rotary_emb_dim": 16}

# Group -> option -> what it needs beside itself. A group is a family: options that share code.
X_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "residuals": {
        "gate_residual": {},
        "scale_residual": {},
        "depth_scale_residual": {"scale_residual": True},
        "orthog_residual": {},
        "mv_split_residual": {},
        "gated_multi_residual": {},
    },
    "streams": {
        "num_residual_streams": {"num_residual_streams": 3},
        "qkv_receive_diff_residuals": {"num_residual_streams": 3},
        "integrate_layers": {},
        "attn_aggregated_residuals": {},
    },
    "skips": {"unet_skips": {}, "reinject_input": {}, "learned_reinject_input_gate": {
        "reinject_input": True}},
    "value residuals": {
        "add_value_residual": {},
        "residual_attn": {},
        "attn_orthog_projected_values": {},
        "attn_orthog_projected_values_per_head": {"attn_orthog_projected_values": True},
    },
    "norms": {
        "use_scalenorm": {},
        "use_rmsnorm": {},
        "use_simple_rmsnorm": {},
        "use_dynamic_tanh": {},
        "use_derf": {},
    },
    "norm places": {
        "sandwich_norm": {},
        "pre_and_post_norm": {},
        "pre_norm=False": {"pre_norm": False},
        "pre_norm_has_final_norm=False": {"pre_norm_has_final_norm": False},
        "softclamp_output": {},
        "use_layerscale": {},
    },
    "orders": {
        "macaron": {},
        "weight_tie_layers": {},
        "sandwich_coef": {"sandwich_coef": 1},
        "par_ratio": {"par_ratio": 2},
        "only_attn": {},
        "shift_tokens": {"shift_tokens": 1},
    },
    "positions": {
        "rotary_pos_emb": ROTARY,
        "rotary_xpos": {**ROTARY, "rotary_xpos": True},
        "alibi_pos_bias": {},
        "rel_pos_bias": {},
        "dynamic_pos_bias": {},
        "polar_pos_emb": {},
        "attn_use_cope": {},
        "attn_data_dependent_alibi": {},
        "attn_use_rel_proj_pos_bias": {},
    },
    "query and key norms": {
        "attn_qk_norm": {},
        "attn_qk_norm_dim_scale": {"attn_qk_norm": True},
        "attn_qk_rmsnorm": {},
        "attn_k_rmsnorm": {},
        "attn_value_rmsnorm": {},
        "attn_l2_distance": {},
    },
    "scores": {
        "attn_pre_talking_heads": {},
        "attn_post_talking_heads": {},
        "attn_softclamp_logits": {},
        "attn_sigmoid": {},
        "attn_sparse_topk": {"attn_sparse_topk": 3},
        "attn_selective": {},
        "attn_cog_signed": {},
        "attn_hard": {},
        "attn_max_attend_past": {"attn_max_attend_past": 4},
    },
    "memories": {
        "attn_num_mem_kv": {"attn_num_mem_kv": 2},
        "attn_add_zero_kv": {},
        "attn_head_learned_sink": {},
        "num_memory_tokens": {"num_memory_tokens": 3},
    },
    "heads": {
        "attn_kv_heads": {"attn_kv_heads": 1},
        "attn_one_kv_head": {},
        "attn_head_scale": {},
        "attn_gate_values": {},
        "attn_swiglu_values": {},
        "attn_gate_value_heads": {},
        "attn_output_gate": {},
        "attn_on_attn": {},
        "attn_value_dim_head": {"attn_value_dim_head": 8},
        "attn_laser": {},
    },
    "latents": {
        "attn_use_latent_q": {"attn_use_latent_q": True, "attn_dim_latent_q": 24},
        "attn_use_latent_kv": {"attn_use_latent_kv": True, "attn_dim_latent_kv": 24},
    },
    "feedforwards": {
        "ff_glu": {},
        "ff_glu_mult_bias": {"ff_glu": True},
        "ff_swish": {},
        "ff_relu_squared": {},
        "ff_solu": {},
        "ff_post_act_ln": {},
        "ff_no_bias": {},
        "ff_mult": {"ff_mult": 2},
    },
    "embeddings": {
        "emb_dim": {"emb_dim": 24},
        "post_emb_norm": {},
        "tie_embedding": {},
        "use_abs_pos_emb=False": {"use_abs_pos_emb": False},
        "scaled_sinu_pos_emb": {},
        "l2norm_embed": {},
        "mixture_of_softmax": {},
        "sigsoftmax_logits": {"mixture_of_softmax": True},
        "ff_deep_embed": {},
        "recycling": {},
    },
}  # fmt: skip
OF_WRAPPER = {"num_memory_tokens", *X_OPTIONS["embeddings"], "use_abs_pos_emb"}
PAIRS = 60
"""Pairs by chance, of two groups each; a pair belongs to a family of both names."""


def _x_transformers() -> Iterator[Architecture]:
    if not find_spec("x_transformers"):
        return
    for kind in ("Decoder", "Encoder"):
        yield _of_x(kind, ())
    options = [(g, o) for g, some in X_OPTIONS.items() for o in some]
    for option in options:
        yield _of_x("Decoder", (option,))
    chance = random.Random(7)
    pairs = [p for p in itertools.combinations(options, 2) if p[0][0] != p[1][0]]
    for number, pair in enumerate(chance.sample(pairs, PAIRS)):
        yield _of_x("Encoder" if number % 4 == 0 else "Decoder", pair)


def _of_x(kind: str, options: tuple[tuple[str, str], ...]) -> Architecture:
    groups = " + ".join(dict.fromkeys(g for g, _ in options)) or "plain"
    settings: dict[str, Any] = {}
    for group, option in options:
        needs = X_OPTIONS[group][option]
        own = {} if option in needs or "=" in option else {option: True}
        settings |= {**own, **needs}
    label = " ".join(["x-transformers", kind, *(o for _, o in options)])
    make = partial(_x_model, kind, settings)
    return Architecture(label, f"x-transformers {groups}", make, causal=kind == "Decoder")


def _x_model(kind: str, settings: dict[str, Any]) -> nn.Module:
    library = import_module("x_transformers")
    outer = {k: v for k, v in settings.items() if k in OF_WRAPPER}
    inner = {k: v for k, v in settings.items() if k not in OF_WRAPPER}
    layers = getattr(library, kind)(
        dim=WIDTH, depth=3, heads=HEADS_OF_X, **{"attn_dim_head": 16} | inner
    )
    model: nn.Module = library.TransformerWrapper(
        num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=layers, **outer
    )
    return model


# --- torch.nn -------------------------------------------------------------------------------------


def _torch() -> Iterator[Architecture]:
    """Every class of torch.nn that has attention, in its settings."""
    sizes = {"d_model": WIDTH, "nhead": 4, "dim_feedforward": 96, "batch_first": True}
    for first, activation in itertools.product((False, True), ("relu", "gelu")):
        settings: dict[str, Any] = {**sizes, "norm_first": first, "activation": activation}
        name = f"{'pre' if first else 'post'}-norm {activation}"
        makes: dict[str, Callable[[], nn.Module]] = {
            "TransformerEncoderLayer": partial(nn.TransformerEncoderLayer, **settings),
            "TransformerDecoderLayer": partial(nn.TransformerDecoderLayer, **settings),
            "TransformerEncoder": partial(_stack, nn.TransformerEncoder, settings),
            "TransformerDecoder": partial(_stack, nn.TransformerDecoder, settings),
            "Transformer": partial(
                nn.Transformer, **settings, num_encoder_layers=2, num_decoder_layers=2
            ),
        }
        for kind, make in makes.items():
            yield Architecture(f"torch.nn {kind} {name}", f"torch.nn {kind}", make)
    for batch_first, dims in itertools.product((False, True), (None, 24)):
        label = f"torch.nn MultiheadAttention batch_first={batch_first} kdim={dims}"
        make_attention = partial(
            nn.MultiheadAttention, WIDTH, 4, batch_first=batch_first, kdim=dims, vdim=dims
        )
        yield Architecture(label, "torch.nn MultiheadAttention", make_attention)


def _stack(kind: type[nn.Module], settings: dict[str, Any]) -> nn.Module:
    layer = kind is nn.TransformerEncoder
    one = (nn.TransformerEncoderLayer if layer else nn.TransformerDecoderLayer)(**settings)
    norm = nn.LayerNorm(WIDTH) if settings["norm_first"] else None
    stack: nn.Module = kind(one, 3, norm=norm)
    return stack


def seeded(architecture: Architecture) -> nn.Module:
    """The model, from the seed of its name."""
    torch.manual_seed(sum(architecture.name.encode()))
    return architecture.make()
