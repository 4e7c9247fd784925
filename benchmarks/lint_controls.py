"""Correct models that lint has to leave in peace: others', ours, and the hosts of the faults.

Every one is tiny and with the random weights of its own initialization. What its call needs and
nobody could guess (pixels, audio, two sequences) comes with it; else lint makes up the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lint_hosts import (
    CONTEXT,
    HEADS,
    HOSTS,
    LAYERS,
    VOCAB,
    WIDTH,
    Case,
    Make,
    available,
    importable,
)


@dataclass(frozen=True)
class Control:
    """A correct model, and the real defects that it has nevertheless: rule -> why it is one."""

    name: str
    make: Make
    known: Mapping[str, str] = field(default_factory=dict)


CONTROLS: list[Control] = []


def control(name: str, make: Make, known: Mapping[str, str] | None = None) -> None:
    """One more control."""
    CONTROLS.append(Control(name, make, known or {}))


def ids(time: int = 11) -> Tensor:
    """Token ids, none of them a special one."""
    return torch.randint(5, VOCAB, (3, time))


# --- transformers ---------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
    "max_position_embeddings": CONTEXT,
}
# The published special ids lie beyond this vocabulary.
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PIXELS: dict[str, Any] = {"image_size": 24, "patch_size": 6}


def hf(
    model: str,
    config: str,
    causal: bool | None,
    inputs: Callable[[], dict[str, Tensor]] | None = None,
    **settings: Any,
) -> None:
    """One model of transformers, by the names of its class and of its configuration."""
    if not importable("transformers"):
        return

    def make() -> Case:
        transformers = import_module("transformers")
        built = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return Case(built, None if inputs is None else inputs(), causal)

    control(f"transformers {model}", make)


def both_sides() -> dict[str, Tensor]:
    """What an encoder-decoder reads."""
    return {"input_ids": ids(), "decoder_input_ids": ids(7)}


def image(size: int) -> dict[str, Tensor]:
    """Three random images."""
    return {"pixel_values": torch.randn(3, 3, size, size)}


SIDES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 4 * WIDTH,
    "decoder_ffn_dim": 4 * WIDTH,
}

hf(
    "GPT2LMHeadModel",
    "GPT2Config",
    True,
    vocab_size=VOCAB,
    n_positions=CONTEXT,
    n_embd=WIDTH,
    n_layer=LAYERS,
    n_head=3,
    **SPECIAL,
)
hf("BertForMaskedLM", "BertConfig", False, **SIZES)
hf("RobertaForMaskedLM", "RobertaConfig", False, **SIZES | {"max_position_embeddings": CONTEXT + 2})
hf(
    "DistilBertForMaskedLM",
    "DistilBertConfig",
    False,
    vocab_size=VOCAB,
    dim=WIDTH,
    n_layers=LAYERS,
    n_heads=HEADS,
    hidden_dim=4 * WIDTH,
    max_position_embeddings=CONTEXT,
)
hf("AlbertForMaskedLM", "AlbertConfig", False, **SIZES, embedding_size=20, **SPECIAL)
hf(
    "T5ForConditionalGeneration",
    "T5Config",
    True,
    both_sides,
    vocab_size=VOCAB,
    d_model=WIDTH,
    d_kv=16,
    d_ff=4 * WIDTH,
    num_layers=LAYERS,
    num_heads=3,
    decoder_start_token_id=0,
)
hf(
    "BartForConditionalGeneration",
    "BartConfig",
    True,
    both_sides,
    **SIDES,
    max_position_embeddings=CONTEXT,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=2,
    forced_eos_token_id=2,
)
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2}
hf("LlamaForCausalLM", "LlamaConfig", True, **GROUPED, **SPECIAL)
hf("Qwen2ForCausalLM", "Qwen2Config", True, **GROUPED, **SPECIAL)
hf("Qwen3ForCausalLM", "Qwen3Config", True, **GROUPED, **SPECIAL, head_dim=16)
hf("GemmaForCausalLM", "GemmaConfig", True, **GROUPED, **SPECIAL, head_dim=16)
hf("Gemma2ForCausalLM", "Gemma2Config", True, **GROUPED, **SPECIAL, head_dim=16)
hf("MistralForCausalLM", "MistralConfig", True, **GROUPED, **SPECIAL)
hf(
    "MixtralForCausalLM",
    "MixtralConfig",
    True,
    **GROUPED,
    **SPECIAL,
    num_local_experts=4,
    num_experts_per_tok=2,
)
hf(
    "OPTForCausalLM",
    "OPTConfig",
    True,
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    word_embed_proj_dim=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    ffn_dim=4 * WIDTH,
    max_position_embeddings=CONTEXT,
    pad_token_id=1,
    bos_token_id=2,
    eos_token_id=2,
)
hf("GPTNeoXForCausalLM", "GPTNeoXConfig", True, **SIZES, **SPECIAL)
hf(
    "GPTJForCausalLM",
    "GPTJConfig",
    True,
    vocab_size=VOCAB,
    n_positions=CONTEXT,
    n_embd=WIDTH,
    n_layer=LAYERS,
    n_head=3,
    rotary_dim=8,
    **SPECIAL,
)
hf(
    "FalconForCausalLM",
    "FalconConfig",
    True,
    **{k: v for k, v in SIZES.items() if k != "max_position_embeddings"},
    **SPECIAL,
)
hf(
    "ViTForImageClassification",
    "ViTConfig",
    False,
    partial(image, 24),
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=3,
    intermediate_size=4 * WIDTH,
    num_labels=7,
    **PIXELS,
)
hf(
    "DeiTForImageClassification",
    "DeiTConfig",
    False,
    partial(image, 24),
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=3,
    intermediate_size=4 * WIDTH,
    num_labels=7,
    **PIXELS,
)


def detr() -> Case:
    """DETR on transformers' own ResNet, so that neither timm nor torchvision is needed."""
    transformers = import_module("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=12,
        hidden_sizes=[12, 16, 20],
        depths=[1, 1, 1],
        layer_type="basic",
        out_features=["stage3"],
    )
    sizes = {k: v for k, v in SIDES.items() if k != "vocab_size"}
    config = transformers.DetrConfig(
        **sizes,
        num_queries=9,
        num_labels=5,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
    )
    return Case(transformers.DetrForObjectDetection(config), image(96), causal=False)


if importable("transformers"):
    control(
        "transformers DetrForObjectDetection",
        detr,
        {"double-norm": "the decoder's last layer ends with a norm, and the decoder with another"},
    )
hf(
    "WhisperForConditionalGeneration",
    "WhisperConfig",
    True,
    lambda: {"input_features": torch.randn(3, 12, 40), "decoder_input_ids": ids(7)},
    **SIDES,
    num_mel_bins=12,
    max_source_positions=20,
    max_target_positions=CONTEXT,
    decoder_start_token_id=3,
    begin_suppress_tokens=None,
    **SPECIAL,
)
hf(
    "Wav2Vec2ForCTC",
    "Wav2Vec2Config",
    False,
    lambda: {"input_values": torch.randn(3, 640)},
    **{k: v for k, v in SIZES.items() if k != "max_position_embeddings"},
    **SPECIAL,
    conv_dim=(20, 24, 24),
    conv_kernel=(10, 3, 3),
    conv_stride=(5, 4, 2),
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
    mask_time_prob=0.0,
    apply_spec_augment=False,
)


# --- torch.nn -------------------------------------------------------------------------------------

COPIED = {
    "identical-layers": "torch deep-copies one layer, so that all start equal (pytorch#86274)",
}
TWICE = {"double-norm": "post-norm layers, then a final norm (pytorch#74092)"}


class Tokens(nn.Module):
    """Embeddings in front of torch's layers, a head behind."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.layers = layers
        self.head = nn.Linear(WIDTH, VOCAB)

    def embedded(self, ids: Tensor) -> Tensor:
        """Tokens and their positions."""
        return self.embed(ids) + self.positions(torch.arange(ids.size(1), device=ids.device))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every token."""
        return self.head(self.layers(self.embedded(ids)))


class Pairs(Tokens):
    """The same in front of nn.Transformer, causal on the target's side."""

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:  # type: ignore[override]
        """Logits of every target token."""
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(1))
        hidden = self.layers(
            self.embedded(src), self.embedded(tgt), tgt_mask=mask, tgt_is_causal=True
        )
        return self.head(hidden)


def torch_layers(norm_first: bool) -> Case:
    """nn.TransformerEncoder; with a final norm where the layers are pre-norm."""
    layer = nn.TransformerEncoderLayer(WIDTH, 3, 4 * WIDTH, batch_first=True, norm_first=norm_first)
    norm = nn.LayerNorm(WIDTH) if norm_first else None
    stack = nn.TransformerEncoder(layer, LAYERS, norm=norm, enable_nested_tensor=False)
    return Case(Tokens(stack), causal=False)


def torch_both(norm_first: bool) -> Case:
    """nn.Transformer as it comes."""
    layers = nn.Transformer(
        WIDTH,
        HEADS,
        LAYERS,
        LAYERS,
        4 * WIDTH,
        batch_first=True,
        norm_first=norm_first,
    )
    if norm_first:
        layers.encoder.enable_nested_tensor = False
    return Case(Pairs(layers), {"src": ids(), "tgt": ids(7)}, causal=True)


def torch_bare() -> Case:
    """nn.TransformerEncoder itself, on vectors."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True)
    return Case(nn.TransformerEncoder(layer, LAYERS), torch.randn(3, 11, WIDTH), causal=False)


control("torch TransformerEncoder post-norm", partial(torch_layers, False), COPIED)
control("torch TransformerEncoder pre-norm", partial(torch_layers, True), COPIED)
control(
    "torch TransformerEncoder on vectors",
    torch_bare,
    COPIED | {"position-blind": "it has no positions of its own"},
)
control("torch Transformer post-norm", partial(torch_both, False), TWICE)
control("torch Transformer pre-norm", partial(torch_both, True))


# --- x-transformers -------------------------------------------------------------------------------


def x_wrapper(kind: str, causal: bool, **settings: Any) -> Case:
    """A TransformerWrapper around layers with options that are in use."""
    x_transformers = import_module("x_transformers")

    layers = getattr(x_transformers, kind)(
        dim=WIDTH, depth=LAYERS, heads=3, **{"attn_dim_head": 16} | settings
    )
    wrapper = x_transformers.TransformerWrapper(
        num_tokens=VOCAB, max_seq_len=CONTEXT, attn_layers=layers
    )
    return Case(wrapper, ids(), causal)


class Targets(nn.Module):
    """XTransformer returns a loss; this is the model in it, with logits."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.encoder = inner.encoder
        self.decoder = inner.decoder.net

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """Logits of every target token."""
        return self.decoder(tgt, context=self.encoder(src, return_embeddings=True))


def x_both() -> Case:
    """XTransformer: an encoder and a decoder that reads it."""
    x_transformers = import_module("x_transformers")

    inner = x_transformers.XTransformer(
        dim=WIDTH,
        enc_num_tokens=VOCAB,
        enc_depth=LAYERS,
        enc_heads=HEADS,
        enc_attn_dim_head=12,
        enc_max_seq_len=CONTEXT,
        dec_num_tokens=VOCAB,
        dec_depth=LAYERS,
        dec_heads=HEADS,
        dec_attn_dim_head=12,
        dec_max_seq_len=CONTEXT,
    )
    return Case(Targets(inner), (ids(), ids(7)), causal=True)


if importable("x_transformers"):
    control("x-transformers Decoder", partial(x_wrapper, "Decoder", True))
    control("x-transformers Encoder", partial(x_wrapper, "Encoder", False))
    control(
        "x-transformers Decoder rotary, RMSNorm, GLU",
        partial(
            x_wrapper,
            "Decoder",
            True,
            attn_dim_head=32,
            rotary_emb_dim=32,
            rotary_pos_emb=True,
            use_rmsnorm=True,
            ff_glu=True,
        ),
    )
    control(
        "x-transformers Encoder post-norm", partial(x_wrapper, "Encoder", False, pre_norm=False)
    )
    control(
        "x-transformers Decoder sandwich, flash",
        partial(x_wrapper, "Decoder", True, sandwich_norm=True, attn_flash=True),
    )
    control("x-transformers XTransformer", x_both)


# --- ours, on every scheme ------------------------------------------------------------------------

OURS_KNOWN: dict[str, dict[str, str]] = {
    "no_residual": {"no-residual": "an ablation: the branches alone"},
    "no_norm": {"missing-final-norm": "an ablation: the residual connections alone"},
    "fan_in(pre_norm)": {
        "init-unstable": "an embedding's fan-in is 1; as the tied head, its rows of length"
        " sqrt(dim) make logits of that deviation"
    },
}
COMBINED = (
    "drop_path(mix_ln(0.5), p=0.1)",
    "with_layer_scale(post_norm)",
    "parallel(pre_norm)",
    "fan_in(pre_norm)",
)


def ours(scheme: str, **settings: Any) -> Case:
    """addnorm.GPT on a scheme."""
    from addnorm import GPT, GPTConfig

    config = GPTConfig(
        vocab_size=VOCAB,
        context_length=CONTEXT,
        dim=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        scheme=scheme,
        **settings,
    )
    return Case(GPT(config), causal=True)


def _our_controls() -> None:
    from addnorm import schemes

    for name in (*schemes.names(), *COMBINED):
        control(f"addnorm {name}", partial(ours, name), OURS_KNOWN.get(name))
    modern: dict[str, Any] = {
        "norm": "rms",
        "position": "rope",
        "n_kv_heads": 2,
        "qk_norm": "rms",
        "mlp": "gated",
        "activation": "silu",
        "bias": False,
        "tied": False,
    }
    control("addnorm pre_norm, as of today", partial(ours, "pre_norm", **modern))
    control("addnorm pre_norm, DyT, ALiBi", partial(ours, "pre_norm", norm="dyt", position="alibi"))


_our_controls()


# --- the hosts of the faults ----------------------------------------------------------------------

for _name, _make in HOSTS.items():
    if available(_name):
        control(f"host {_name}", _make)
