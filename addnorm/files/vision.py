"""A Vision Transformer's folder: the formats of ViT and DeiT, and our own for every other design.

Nothing here needs transformers, whose folders are read as safetensors. How a picture becomes pixels
stands in preprocessor_config.json, as there.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from addnorm import reading, schemes
from addnorm.data.images import ImageFrame, frame_from_preprocessor
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable, value_in_short
from addnorm.files import folders
from addnorm.files.config_json import EXACT, GPT2_ACTIVATIONS, refuse_options
from addnorm.files.folders import CONFIG, PREPROCESSOR, SAFETENSORS, WeightsError
from addnorm.files.own import checked_tensors
from addnorm.files.published import (
    StoredPiece,
    activation_of,
    as_published,
    label_names,
    read_state,
)
from addnorm.files.register import Loaded, ModelKind
from addnorm.files.tensors import state_of
from addnorm.models.fronts import PATCHES
from addnorm.models.vision import ViT
from addnorm.models.vision_config import ViTConfig
from addnorm.temporary import evaluation_mode
from addnorm.uses.image_labels import ImageLabels
from addnorm.version import __version__
from addnorm.words import a_few

VIT, DEIT, OWN = "vit", "deit", "addnorm_vit"
ARCHITECTURES = {
    "ViTModel": (VIT, "none", False),
    "ViTForImageClassification": (VIT, "none", True),
    "DeiTModel": (DEIT, "token", False),
    "DeiTForImageClassification": (DEIT, "token", True),
    "DeiTForImageClassificationWithTeacher": (DEIT, "head", True),
}
"""What config.json says as architectures -> (model_type, ``distillation``, whether it has a
head)."""
FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden",
}
"""What every config.json has -> the field of ``ViTConfig``."""
UNTOLD: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
"""What holds where a config.json says nothing."""
UNREAD = {"encoder_stride", "pooler_output_size", "pooler_act", "_attn_implementation_autoset"}
"""What config.json says of parts that are not read: the pooler, and the decoder of pictures."""
NAMES = "label_names"
"""Where our config.json has the names of the classes."""


# --- config.json ----------------------------------------------------------------------------------


def from_published(card: Mapping[str, Any]) -> tuple[ViTConfig, tuple[str, ...] | None]:
    """What a config.json of ViT or DeiT says: ours, and the names of the classes, None without a
    head. What is not understood is a ``WeightsError``, without the file's name."""
    kind = card["model_type"]
    refuse_options(card, {*UNTOLD, *UNREAD}, f"{kind} as transformers defines it", EXACT)
    _, distillation, has_head = ARCHITECTURES[_architecture(card)]
    card = {**UNTOLD, **card}
    if type(card["qkv_bias"]) is not bool:
        raise WeightsError(f"qkv_bias={value_in_short(card['qkv_bias'])} is not true or false")
    labels = label_names(card) if has_head else None
    height, width = _pair(card, "image_size")
    patch, patch_width = _pair(card, "patch_size")
    config = ViTConfig(
        **{ours: card[theirs] for theirs, ours in FIELDS.items()},
        classes=0 if labels is None else len(labels),
        height=height,
        width=width,
        channels=card["num_channels"],
        patch=patch,
        patch_width=None if patch_width == patch else patch_width,
        distillation=distillation,
        eps=card["layer_norm_eps"],
        activation=activation_of(card, "hidden_act", "gelu"),
        dropout=card["hidden_dropout_prob"],
        attention_dropout=card["attention_probs_dropout_prob"],
    )
    return config, labels


def _architecture(card: Mapping[str, Any]) -> str:
    """The class that a config.json is of; without one, the model without a head."""
    kind = card["model_type"]
    choices = [name for name, row in ARCHITECTURES.items() if row[0] == kind]
    names = card.get("architectures") or [choices[0]]
    if not isinstance(names, list) or len(names) != 1 or names[0] not in choices:
        raise WeightsError(
            f"architectures={value_in_short(names)} is not read, only one of {', '.join(choices)}"
        )
    return str(names[0])


def _pair(card: Mapping[str, Any], key: str) -> tuple[Any, Any]:
    """(height, width), which a config.json has as one number or as two; ``ViTConfig`` checks
    them."""
    value = card[key]
    if isinstance(value, list):
        if len(value) != 2:
            raise WeightsError(f"{key}={value_in_short(value)} must be a number, or two")
        return value[0], value[1]
    return value, value


def to_published(config: ViTConfig, labels: Sequence[str] | None) -> dict[str, Any]:
    """What transformers reads; for a model of which ``why_not_published`` says nothing."""
    c = config
    spoken = {ours: theirs for theirs, ours in reversed(GPT2_ACTIVATIONS.items())}
    kind = VIT if c.distillation == "none" else DEIT
    shape = kind, c.distillation, bool(c.classes)
    card = {
        "model_type": kind,
        "architectures": [name for name, row in ARCHITECTURES.items() if row == shape],
        **{theirs: getattr(c, ours) for theirs, ours in FIELDS.items()},
        "intermediate_size": c.hidden or 4 * c.dim,
        "hidden_act": spoken[c.activation],
        "layer_norm_eps": c.eps,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "image_size": c.height if c.height == c.width else list(c.size),
        "patch_size": c.patch if c.patches[1] == c.patch else list(c.patches),
        "num_channels": c.channels,
        "qkv_bias": True,
    }
    if labels is not None:
        card["id2label"] = {str(i): name for i, name in enumerate(labels)}
        card["label2id"] = {name: i for i, name in enumerate(labels)}
        card["problem_type"] = "single_label_classification"
    return card


def why_not_published(config: ViTConfig) -> list[str]:
    """What the formats of ViT and DeiT cannot say about this model; empty if it can be written
    so."""
    c, reasons = config, []
    if schemes.parse(c.scheme) is not schemes.pre_norm:
        reasons.append(f"scheme is {c.scheme!r}, theirs 'pre_norm'")
    for name, theirs in (("norm", "layer"), ("embedding", PATCHES), ("pooling", "class")):
        if getattr(c, name) != theirs:
            reasons.append(f"{name} is {getattr(c, name)!r}, theirs {theirs!r}")
    if c.activation not in GPT2_ACTIVATIONS.values():
        names = a_few(sorted({*GPT2_ACTIVATIONS.values()}))
        reasons.append(f"activation is {c.activation!r}, theirs one of {names}")
    return reasons


# --- tensors --------------------------------------------------------------------------------------

SUBLAYERS = {
    "attention.attention.query": "stack.subs.{a}.branch.q",
    "attention.attention.key": "stack.subs.{a}.branch.k",
    "attention.attention.value": "stack.subs.{a}.branch.v",
    "attention.output.dense": "stack.subs.{a}.branch.out",
    "layernorm_before": "stack.subs.{a}.pre.norm",
    "intermediate.dense": "stack.subs.{m}.branch.up",
    "output.dense": "stack.subs.{m}.branch.down",
    "layernorm_after": "stack.subs.{m}.pre.norm",
}
"""A module of transformers' in a block -> ours: sublayer a = 2 i is the attention of block i, and
m = 2 i + 1 its MLP. Parameters have the same names in both."""
QKV = ("query", "key", "value")


def table(
    config: ViTConfig, shapes: Mapping[str, tuple[int, ...]], qkv_bias: bool = True
) -> dict[str, list[StoredPiece]]:
    """Where our parameters, whose ``shapes`` these are, stand in the published format.
    ``qkv_bias``: whether queries, keys and values have biases there; ours do, which are 0 then."""
    c = config
    modules = {
        "embeddings.patch_embeddings.projection": "front.embed",
        "layernorm": "stack.final.norm",
        "cls_classifier" if c.distillation == "head" else "classifier": "head",
        "distillation_classifier": "distilled_head",
    }
    for i in range(c.n_layers):
        modules |= {
            f"encoder.layer.{i}.{theirs}": ours.format(a=2 * i, m=2 * i + 1)
            for theirs, ours in SUBLAYERS.items()
        }
    by_ours = {ours: theirs for theirs, ours in modules.items()}
    rows = {}
    for name, shape in shapes.items():
        module, _, parameter = name.rpartition(".")
        if name == "front.tokens":
            tokens = ["cls_token", "distillation_token"][: c.tokens]
            rows[name] = [StoredPiece(f"embeddings.{token}", (1, 1, c.dim)) for token in tokens]
        elif name == "front.positions":
            rows[name] = [StoredPiece("embeddings.position_embeddings", (1, *shape))]
        elif parameter == "bias" and by_ours[module].endswith(QKV) and not qkv_bias:
            rows[name] = []
        else:
            rows[name] = [StoredPiece(f"{by_ours[module]}.{parameter}", shape)]
    return rows


def _bare(name: str) -> str:
    """A stored name without the wrapper of a model with a head."""
    return name.removeprefix("vit.").removeprefix("deit.")


def _unread(name: str) -> bool:
    """What a model without a head has besides: a pooler, which no class is read off, and the token
    that stands for what is masked."""
    return name.startswith("pooler.") or name == "embeddings.mask_token"


# --- reading and writing --------------------------------------------------------------------------


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model, in evaluation mode, with the names of its classes; a ``WeightsError`` says what is
    wrong. ``dtype`` None keeps what is stored."""
    file = folder / CONFIG
    with reading.system_errors(folder, WeightsError):
        card = folders.read_json(file)
        own = card.get("model_type") == OWN
        try:
            config, labels = (_from_own if own else from_published)(card)
        except Mendable as error:  # ours, or what ViTConfig says of a value
            raise WeightsError(f"{file}: {error}") from None
        with torch.device("meta"):
            model = ViT(config)
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        if own:
            state = state_of(folder, shapes, dtype)
        else:
            rows = table(config, shapes, card.get("qkv_bias", True))
            state = read_state(folder, rows, shapes, dtype, bare=_bare, unread=_unread).values
        model.load_state_dict(state, strict=True, assign=True)
        model.labels, model.frame = labels, _frame(folder, config)
    return Loaded(model.eval(), None, labels, card)


def _from_own(card: Mapping[str, Any]) -> tuple[ViTConfig, tuple[str, ...] | None]:
    """From what ``write`` wrote in our format."""
    fields = [f.name for f in dataclasses.fields(ViTConfig)]
    refuse_options(card, {*fields, NAMES}, f"addnorm {__version__}")
    if absent := [name for name in fields if name not in card]:
        raise WeightsError(f"{', '.join(absent)} missing")
    config = ViTConfig(**{name: card[name] for name in fields})
    labels = card.get(NAMES)
    if not config.classes:
        return config, None
    if not isinstance(labels, list) or [type(n) for n in labels] != [str] * config.classes:
        raise WeightsError(f"{NAMES} must be {config.classes} texts, got {value_in_short(labels)}")
    return config, tuple(labels)


def _frame(folder: Path, config: ViTConfig) -> ImageFrame | None:
    """How a picture becomes pixels, from preprocessor_config.json; None: there is none, or none of
    ours, as the model has another number of channels than pictures."""
    file = folder / PREPROCESSOR
    if not file.exists() or config.channels not in (1, 3):
        return None
    card = folders.read_json(file)
    try:
        return frame_from_preprocessor(card, *config.size, config.channels, file)
    except Mendable as error:
        raise WeightsError(str(error)) from None


def write(
    model: ViT, folder: Path, tokenizer: Tokenizer | None, labels: Sequence[str] | None
) -> None:
    """Write the folder that ``read`` takes: in the format of ViT or DeiT where that can say what
    the model is, else in ours. ``labels``: the names of the classes; None: the model's own, else
    LABEL_0, LABEL_1, ... A ``tokenizer`` is a ``WeightsError``."""
    if tokenizer is not None:
        raise WeightsError("a Vision Transformer reads no text: leave out the tokenizer")
    config = model.config
    names = _names(model, labels)
    tensors = checked_tensors(model, partial(ViT, config))
    if why_not_published(config):
        card = {
            "model_type": OWN,
            "addnorm_version": __version__,
            **dataclasses.asdict(config),
            NAMES: None if names is None else list(names),
        }
    else:
        card = to_published(config, names)
        rows = table(config, {name: tuple(t.shape) for name, t in tensors.items()})
        wrapper = f"{card['model_type']}." if config.classes else ""
        tensors = {
            name if "classifier" in name else wrapper + name: t
            for name, t in as_published(rows, tensors).items()
        }
    card["dtype"] = str(model.front.positions.dtype).removeprefix("torch.")

    def fill(work: Path) -> None:
        """All files of the folder, which is empty."""
        folders.write_json(work / CONFIG, card)
        save_file(tensors, work / SAFETENSORS, metadata={"format": "pt"})
        if config.channels in (1, 3):
            folders.write_json(work / PREPROCESSOR, model.image_frame().to_preprocessor())

    folders.write(folder, fill)
    model.labels = names


def _names(model: ViT, labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of the classes to be written; a ``WeightsError`` where ``labels`` are not as many
    as there are, all different."""
    count = model.config.classes
    if not count:
        if labels is not None:
            raise WeightsError("a Vision Transformer without a head has no labels: leave them out")
        return None
    names = (model.labels if labels is None else tuple(labels)) or tuple(
        f"LABEL_{i}" for i in range(count)
    )
    if len(names) != count or len(set(names)) != count:
        raise WeightsError(
            f"the model chooses from {count} classes: give as many names, all different, got "
            f"{a_few(names, 5)}"
        )
    return names


def use(loaded: Loaded) -> ImageLabels:
    """What one asks of such a model: the label of a picture. A ``Mendable`` where it has no
    classes, or reads something else than pictures."""
    model, labels = loaded.model, loaded.labels
    assert isinstance(model, ViT)
    if labels is None:
        raise Mendable(
            "it is a Vision Transformer without a head, of which nothing is asked: train it for a "
            "use first, such as addnorm train --recipe classify_images init_from=FOLDER"
        )
    if len(labels) < 2:
        raise Mendable(f"it has one label, {labels[0]}: call the model itself")
    return ImageLabels(partial(image_shares, model), labels, model.image_frame())


def image_shares(model: ViT, pixels: Tensor) -> Tensor:
    """(pictures, classes) in float32 on the CPU: how probable each class of each picture is."""
    device = next(model.parameters()).device
    with evaluation_mode(model.modules()), torch.inference_mode():
        return model(pixels.to(device)).float().softmax(-1).cpu()


KIND = ModelKind((VIT, DEIT, OWN), ViT, "a Vision Transformer", read, write, use)
