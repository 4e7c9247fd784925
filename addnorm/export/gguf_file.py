"""A GGUF file for llama.cpp, of a model that its architecture ``gpt2`` can be.

The tensors are those of nn.Linear, (out, in): what GPT-2's own files store transposed is turned
back. The head is the embedding and written once, as llama.cpp and transformers expect it.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from addnorm import disk
from addnorm.data.tokenizer import Tokenizer
from addnorm.export.check import (
    EXPORT_DTYPES,
    CheckFailed,
    Comparison,
    ExportError,
    LogitsCheck,
    Tell,
    Written,
    apart,
    draw,
    file_path,
    logits,
    measured_copy,
    needs,
    reason,
    shapes,
    silent,
    sizes,
)
from addnorm.files import folders
from addnorm.files.gpt import why_not_gpt2
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig

Dtype = Literal["f32", "f16", "bf16"]

ALLOWED = 1e-5
"""As for a folder: rounding to f16 or bf16 is done on our side too before the comparison."""

# Block i is the sublayers a = 2 i, attention, and m = 2 i + 1, the MLP.
ENDS = {
    "token_embd.weight": ("tokens.weight",),
    "position_embd.weight": ("positions.weight",),
    "output_norm.weight": ("stack.final.norm.weight",),
    "output_norm.bias": ("stack.final.norm.bias",),
}
QKV = ("stack.subs.{a}.branch.q", "stack.subs.{a}.branch.k", "stack.subs.{a}.branch.v")
BLOCK = {
    f"blk.{{i}}.{theirs}.{kind}": tuple(f"{name}.{kind}" for name in ours)
    for theirs, ours in {
        "attn_norm": ("stack.subs.{a}.pre.norm",),
        "attn_qkv": QKV,
        "attn_output": ("stack.subs.{a}.branch.out",),
        "ffn_norm": ("stack.subs.{m}.pre.norm",),
        "ffn_up": ("stack.subs.{m}.branch.up",),
        "ffn_down": ("stack.subs.{m}.branch.down",),
    }.items()
    for kind in ("weight", "bias")
}


def to_gguf(
    model: GPT,
    path: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None,
    dtype: Dtype = "f32",
    tell: Tell = silent,
) -> Written:
    """Write a file, load it with transformers, compare, and only then name it ``path``.

    ``dtype`` is that of the matrices; biases, norms and positions stay f32, as llama.cpp has them.
    ``tokenizer`` None writes a file without one, for programs that deal in ids.
    """
    gguf = needs("gguf", "addnorm export gguf")
    path = file_path(Path(path), ".gguf", begins=b"GGUF")
    reasons = why_not_gguf(model.config)
    if model.front:
        reasons.append("it has a prompt in front of its text")
    if reasons:
        raise ExportError(f"llama.cpp's gpt2 cannot be this model: {'; '.join(reasons)}")
    vocabulary = None if tokenizer is None else _Vocabulary(tokenizer, model.config.vocab_size)
    exact = measured_copy(model)
    rounded = _rounded(exact, EXPORT_DTYPES[dtype])
    with disk.scratch(path) as work:
        new = work / path.name
        tell("writing the tensors")
        writer = gguf.GGUFWriter(new, "gpt2")
        try:
            _write(gguf, writer, rounded, dtype, path.stem, vocabulary)
        finally:
            writer.close()
        check, remarks = _compare(new, rounded, tokenizer, tell)
        disk.publish(new, to=path.parent)
    if dtype != "f32":
        ids = draw(exact, *shapes(exact)[-2])  # a few tokens in three rows
        difference = apart(logits(rounded, ids), logits(exact, ids))
        remarks += (f"rounding the matrices to {dtype} moved the logits by {difference:.1e}",)
    without = "" if tokenizer is not None else ", without a tokenizer"
    what = f"a GGUF file of architecture gpt2 in {dtype}{without}"
    return Written(path, what, sizes(path), check, remarks)


def why_not_gguf(config: GPTConfig) -> list[str]:
    """What llama.cpp's gpt2 cannot do about this model; empty if it can be written."""
    reasons = why_not_gpt2(config)
    if config.activation != "gelu_tanh" and not any(r.startswith("activation") for r in reasons):
        # GPT-2's config.json has a field for it, GGUF none
        reasons.append(f"activation is {config.activation!r}, llama.cpp's 'gelu_tanh'")
    return reasons


# --- tensors --------------------------------------------------------------------------------------


def _tensors(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """(name in the file, values) of every tensor, matrices as (out, in); an ``ExportError``, after
    the last, where the model has others."""
    ours = {name: t.detach() for name, t in model.state_dict().items()}
    rows: dict[str, tuple[str, ...]] = {**ENDS}
    for i in range(model.config.n_layers):
        place = {"i": i, "a": 2 * i, "m": 2 * i + 1}
        for theirs, names in BLOCK.items():
            rows[theirs.format(**place)] = tuple(name.format(**place) for name in names)
    for theirs, names in rows.items():
        yield theirs, torch.cat([ours.pop(name) for name in names])
    if ours:
        raise ExportError(
            f"{next(iter(ours))} of the model is not what its config says: merge adapters and undo "
            "other changes before exporting (peft: merge_and_unload)"
        )


def _is_narrow(name: str, t: Tensor) -> bool:
    """Whether a tensor is stored in the file's dtype, and not in f32: llama.cpp's own rule.
    ``name`` is the file's; ``_rounded`` has the same rule by our names."""
    return t.dim() == 2 and name != "position_embd.weight"


def _rounded(model: GPT, dtype: torch.dtype) -> GPT:
    """A model in float32 whose matrices have the values that the file will hold in this dtype: a
    copy, or the model itself where that is float32 too. An ``ExportError`` where a value becomes
    infinite. ``_is_narrow`` has the same rule by the file's names."""
    if dtype == torch.float32:
        return model
    plain = measured_copy(model)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if p.dim() == 2 and name != "positions.weight":
                p.copy_(p.to(dtype))
            if not torch.isfinite(p).all():
                raise ExportError(f"{name} has values that {dtype} cannot hold: use bf16 or f32")
    return plain


def _write(
    gguf: Any, writer: Any, model: GPT, dtype: Dtype, name: str, vocabulary: "_Vocabulary | None"
) -> None:
    """Write the whole file: what it says of the model, the vocabulary, the tensors. ``gguf`` is the
    package, ``writer`` its GGUFWriter, ``name`` what the file calls the model."""
    c, kinds = model.config, gguf.LlamaFileType
    files = {"f32": kinds.ALL_F32, "f16": kinds.MOSTLY_F16, "bf16": kinds.MOSTLY_BF16}
    writer.add_name(name)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.dim)
    writer.add_feed_forward_length(c.hidden or 4 * c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_head_count(c.n_heads)
    writer.add_layer_norm_eps(c.eps)
    writer.add_vocab_size(c.vocab_size)
    writer.add_file_type(files[dtype])
    if vocabulary is None:
        writer.add_tokenizer_model("none")
    else:
        vocabulary.write(writer)
    for theirs, t in _tensors(model):
        if _is_narrow(theirs, t) and dtype == "bf16":  # which NumPy has not: as bytes
            raw = t.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(theirs, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            narrow = EXPORT_DTYPES[dtype] if _is_narrow(theirs, t) else torch.float32
            writer.add_tensor(theirs, t.to(narrow).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()


# --- the tokenizer --------------------------------------------------------------------------------


@final
class _Vocabulary:
    """A tokenizer as GGUF stores it, refused where llama.cpp would split a text otherwise. ``size``
    is the model's vocabulary, up to which the table is filled."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        if tokenizer.kind != "bpe":
            raise ExportError(
                f"llama.cpp has no tokenizer of kind {tokenizer.kind!r}: export without it ("
                "--no-tokenizer) and pass ids"
            )
        if tokenizer.vocab_size > size:
            raise ExportError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, and the model's vocabulary is "
                f"{size}: it is another model's"
            )
        if tokenizer.eos_id is None:
            raise ExportError(
                "the tokenizer names no token that ends a text, and llama.cpp would take id 11 for "
                "one: name eos_token in tokenizer_config.json, or export with --no-tokenizer"
            )
        self.eos = tokenizer.eos_id
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            content = folders.read_json(Path(folder) / "tokenizer.json")
        bpe, added = content["model"], content["added_tokens"]
        self._refuse_other_words(content)
        by_id = {i: (token, 1) for token, i in bpe["vocab"].items()}  # 1: normal
        # 3: control, never made of a text; 4: one's own, always taken whole
        by_id |= {one["id"]: (one["content"], 3 if one["special"] else 4) for one in added}
        # 5: unused, to fill the table up
        pairs = [by_id.get(i, (f"[PAD{i}]", 5)) for i in range(size)]
        self.tokens, self.types = [t for t, _ in pairs], [kind for _, kind in pairs]
        self.merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]
        if not self.merges:
            raise ExportError("the tokenizer has no merges, and GGUF has no empty lists")

    @staticmethod
    def _refuse_other_words(content: dict[str, Any]) -> None:
        """Raise an ``ExportError`` if a tokenizer.json, of which ``content`` is what it says,
        splits a text into other words than GPT-2's does."""
        words = dict(content["pre_tokenizer"])
        split = {k: words.get(k) for k in ("type", "add_prefix_space", "use_regex")}
        usual = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        oddities = [] if split == usual else [f"pre-tokenizer {words}"]
        oddities += ["a normalizer"] if content.get("normalizer") else []
        oddities += ["ignore_merges"] if content["model"].get("ignore_merges") else []
        if oddities:
            raise ExportError(
                f"the tokenizer splits texts in its own way ({', '.join(oddities)}), and of "
                "llama.cpp's ways addnorm writes GPT-2's only: export without it (--no-tokenizer)"
            )

    def write(self, writer: Any) -> None:
        """Write the vocabulary, as the fields ``tokenizer.ggml.*``."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.eos)
        writer.add_eos_token_id(self.eos)
        writer.add_add_bos_token(False)


# --- checking -------------------------------------------------------------------------------------


def _compare(
    new: Path, ours: GPT, tokenizer: Tokenizer | None, tell: Tell
) -> tuple[LogitsCheck | None, tuple[str, ...]]:
    """(check, remarks) of the file ``new`` as transformers reads it; no check where that is not
    installed, since nothing of ours reads GGUF."""
    try:
        from addnorm import hf

        size = ours.config.vocab_size if tokenizer is None else None
        theirs = hf.reader(new.parent, gguf_file=new.name, vocab_size=size)
    except ImportError as error:
        return None, (
            "NOT CHECKED: only transformers could tell whether it is the model, and it needs "
            f"accelerate: pip install 'addnorm[export,hf]' ({error})",
        )
    except Exception as error:  # transformers raises whatever the failing part raises
        raise CheckFailed(f"transformers cannot load the file: {reason(error)}") from error
    comparison = Comparison(hf.VERSION, ALLOWED)
    comparison.add_all(ours, theirs, tell)
    if tokenizer is not None:
        comparison.add_texts(tokenizer, hf.encoder(new.parent, gguf_file=new.name))
    return comparison.result(), ()
