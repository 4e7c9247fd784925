"""addnorm: the residual stream you can choose, measure and trust."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from addnorm.models import storage as _storage
from addnorm.version import __version__ as __version__

if TYPE_CHECKING:
    from addnorm import branches, compat, joins, norms, ops, positions, recurrent, schemes, stream
    from addnorm.context import Context, Memory
    from addnorm.data.tokenizer import Tokenizer
    from addnorm.generation import generate, perplexity, stream_text
    from addnorm.linting import lint
    from addnorm.models.bert import Bert
    from addnorm.models.bert_config import BertConfig
    from addnorm.models.gpt import GPT
    from addnorm.models.gpt_config import GPTConfig
    from addnorm.models.seq2seq import Seq2Seq
    from addnorm.models.seq2seq_config import Seq2SeqConfig
    from addnorm.models.transformer import EncoderDecoder, decoder, encoder
    from addnorm.norms import (
        BatchNorm,
        ChannelsFirstLayerNorm,
        DyT,
        GroupNorm,
        L2Norm,
        LayerNorm,
        RMSNorm,
        ScaleNorm,
        UnbiasedLayerNorm,
    )
    from addnorm.pretrained import load, save
    from addnorm.recurrent import LayerNormGRU, LayerNormLSTM
    from addnorm.stream import AddNorm, Stack
    from addnorm.tasks import train

# Public name -> the module that defines it; a module that is public itself maps to itself. Resolved
# on first use, so that `import addnorm` costs nothing.
_PUBLIC = {
    **{
        name: f"addnorm.{name}"
        for name in (
            "branches",
            "compat",
            "joins",
            "norms",
            "ops",
            "positions",
            "recurrent",
            "schemes",
            "stream",
        )
    },
    **dict.fromkeys(
        (
            "BatchNorm",
            "ChannelsFirstLayerNorm",
            "DyT",
            "GroupNorm",
            "L2Norm",
            "LayerNorm",
            "RMSNorm",
            "ScaleNorm",
            "UnbiasedLayerNorm",
        ),
        "addnorm.norms",
    ),
    "init_table": "addnorm.init",
    **dict.fromkeys(("Context", "Memory"), "addnorm.context"),
    **dict.fromkeys(("AddNorm", "Stack"), "addnorm.stream"),
    **dict.fromkeys(("LayerNormGRU", "LayerNormLSTM"), "addnorm.recurrent"),
    "Bert": "addnorm.models.bert",
    "BertConfig": "addnorm.models.bert_config",
    "GPT": "addnorm.models.gpt",
    "GPTConfig": "addnorm.models.gpt_config",
    "Seq2Seq": "addnorm.models.seq2seq",
    "Seq2SeqConfig": "addnorm.models.seq2seq_config",
    "Tokenizer": "addnorm.data.tokenizer",
    **dict.fromkeys(("generate", "perplexity", "stream_text"), "addnorm.generation"),
    "lint": "addnorm.linting",
    **dict.fromkeys(("EncoderDecoder", "decoder", "encoder"), "addnorm.models.transformer"),
    **dict.fromkeys(("load", "save"), "addnorm.pretrained"),
    "train": "addnorm.tasks",
}

__all__ = [
    "GPT",
    "AddNorm",
    "BatchNorm",
    "Bert",
    "BertConfig",
    "ChannelsFirstLayerNorm",
    "Context",
    "DyT",
    "EncoderDecoder",
    "GPTConfig",
    "GroupNorm",
    "L2Norm",
    "LayerNorm",
    "LayerNormGRU",
    "LayerNormLSTM",
    "Memory",
    "RMSNorm",
    "ScaleNorm",
    "Seq2Seq",
    "Seq2SeqConfig",
    "Stack",
    "Tokenizer",
    "UnbiasedLayerNorm",
    "branches",
    "compat",
    "decoder",
    "encoder",
    "generate",
    "init_table",
    "joins",
    "lint",
    "load",
    "norms",
    "ops",
    "perplexity",
    "positions",
    "recurrent",
    "save",
    "schemes",
    "stream",
    "stream_text",
    "train",
]


def _storage_of_gpt() -> Any:
    return import_module("addnorm.files.gpt")


def _storage_of_bert() -> Any:
    return import_module("addnorm.files.bert")


def _storage_of_seq2seq() -> Any:
    return import_module("addnorm.files.seq2seq")


_storage.place("GPT", _storage_of_gpt)
_storage.place("Bert", _storage_of_bert)
_storage.place("Seq2Seq", _storage_of_seq2seq)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'addnorm' has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    return module if _PUBLIC[name] == f"addnorm.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
