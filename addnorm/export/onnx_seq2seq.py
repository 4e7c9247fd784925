"""A sequence-to-sequence model for ONNX runtimes: a folder with a graph of the encoder and one of
the decoder, named and called as optimum has them.

    encoder_model.onnx   input_ids, attention_mask -> last_hidden_state
    decoder_model.onnx   input_ids, encoder_hidden_states, encoder_attention_mask -> logits

The decoder has no cache: it reads what is written so far anew for every token.
"""

from pathlib import Path
from typing import final

import torch
from torch import Tensor

from addnorm import disk
from addnorm.data.tokenizer import Tokenizer
from addnorm.data.tokenizer.pair import TokenizerPair
from addnorm.export.check import Comparison, ExportError, Tell, Written, leave_alone, sizes
from addnorm.export.onnx_check import ALLOWED, needs_runtime, padding, runtime
from addnorm.export.onnx_function import (
    BATCH,
    Sizes,
    TensorFunction,
    plain_copy,
    properties,
    write_function,
)
from addnorm.files import folders, seq2seq
from addnorm.files.folders import WeightsError
from addnorm.models.seq2seq import Seq2Seq

SOURCE, TARGET = (BATCH, "source"), (BATCH, "target")
ENCODER, DECODER = "encoder", "decoder"


@final
class EncoderFunction(TensorFunction):
    """What a model has read of its sources. ``model``: the model."""

    def __init__(self, model: Seq2Seq) -> None:
        axes = {"input_ids": SOURCE, "attention_mask": SOURCE}
        super().__init__(model, axes, "last_hidden_state", model.context_length)
        self.vocab_size = model.config.vocab_size

    def forward(self, *tensors: Tensor) -> Tensor:
        """(B, S) ids and mask -> (B, S, D)."""
        source, mask = tensors
        memory: Tensor = self.model(source, None, mask != 0)
        return memory

    def draw(self, sizes: Sizes, rng: torch.Generator) -> dict[str, Tensor]:
        """Ids from the whole vocabulary, of which some are padding."""
        shape = (sizes.batch, *sizes.lengths)
        ids = torch.randint(self.vocab_size, shape, generator=rng)
        return {"input_ids": ids, "attention_mask": padding(*shape).long()}


@final
class DecoderFunction(TensorFunction):
    """Logits of what follows each token of a target. ``model``: the model."""

    def __init__(self, model: Seq2Seq) -> None:
        axes: dict[str, tuple[str, ...]] = {
            "input_ids": TARGET,
            "encoder_hidden_states": (*SOURCE, ""),
            "encoder_attention_mask": SOURCE,
        }
        super().__init__(model, axes, "logits", model.context_length)
        self.vocab_size, self.dim = model.config.targets, model.config.dim

    def forward(self, *tensors: Tensor) -> Tensor:
        """(B, T) ids, (B, S, D), (B, S) mask -> (B, T, target ids)."""
        target, memory, mask = tensors
        logits: Tensor = self.model(None, target, mask != 0, memory=memory)
        return logits

    def draw(self, sizes: Sizes, rng: torch.Generator) -> dict[str, Tensor]:
        """Ids from the whole vocabulary beside any memory, of which some is padding."""
        batch, (targets, sources) = sizes.batch, sizes.lengths
        return {
            "input_ids": torch.randint(self.vocab_size, (batch, targets), generator=rng),
            "encoder_hidden_states": torch.randn(batch, sources, self.dim, generator=rng),
            "encoder_attention_mask": padding(batch, sources).long(),
        }


def seq2seq_to_onnx(
    model: Seq2Seq, path: Path, *, tokenizer: Tokenizer | TokenizerPair | None, tell: Tell
) -> Written:
    """Write both graphs in float32 into a folder, run them with ONNX Runtime, compare, and only
    then name it ``path``. Beside them stands what a folder of the model has but for its weights:
    its configuration, how it is searched, its tokenizers."""
    needs_runtime()
    path = path.expanduser()
    if path.exists() and not path.is_dir():
        raise ExportError(
            f"{path} is a file, and {path.name} would be a folder of two graphs: give another name"
        )
    plain = plain_copy(model)
    assert isinstance(plain, Seq2Seq)
    comparison = Comparison(runtime(), ALLOWED)
    about = properties(plain.config)
    with disk.scratch(path) as work:
        new = work / "folder"
        try:
            seq2seq.save(model, new, tokenizer=tokenizer)
            for name in (folders.SAFETENSORS, folders.CHECKSUMS):
                (new / name).unlink()
            for part, function in (
                (ENCODER, EncoderFunction(plain)),
                (DECODER, DecoderFunction(plain)),
            ):
                file = new / f"{part}_model.onnx"
                write_function(function, file, about, comparison, tell, part)
            files = sorted(new.iterdir())
            leave_alone(path, [*files, new / folders.CHECKSUMS])
            folders.write(path, lambda empty: _move(files, empty))
        except WeightsError as error:
            raise ExportError(str(error)) from None
    what = "a folder with the ONNX graphs of encoder and decoder"
    return Written(path, what, sizes(*(path / f.name for f in files)), comparison.result())


def _move(files: list[Path], to: Path) -> None:
    """Move files into a folder, under their names."""
    for file in files:
        file.replace(to / file.name)
