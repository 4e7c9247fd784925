"""Models for other programs: transformers, ONNX runtimes, llama.cpp.

    to_hf(model, "folder")          a folder that transformers loads
    to_onnx(model, "gpt.onnx")      graphs for ONNX Runtime and its kin, of most models
    to_gguf(model, "gpt.gguf")      a file for llama.cpp, where its gpt2 can be this model

Nothing is believed: what was written is loaded by a program that is not ours and computes logits,
and only if they are the model's own does it get the name that was asked for. docs/export.md.
"""

from addnorm.export.check import (
    EXPORT_DTYPES,
    CheckFailed,
    ExportError,
    LogitsCheck,
    Written,
    human,
)
from addnorm.export.folder import to_hf
from addnorm.export.gguf_file import to_gguf
from addnorm.export.onnx_kinds import ONNX_MODELS, to_onnx

__all__ = [
    "EXPORT_DTYPES",
    "ONNX_MODELS",
    "CheckFailed",
    "ExportError",
    "LogitsCheck",
    "Written",
    "human",
    "to_gguf",
    "to_hf",
    "to_onnx",
]
