"""Write a model for other programs: transformers (hf), ONNX runtimes (onnx), llama.cpp (gguf).

Another program loads what was written, and its logits are compared with the model's. If they
differ, the files are thrown away and the exit status is 1. docs/export.md says what each format
holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, final

from addnorm import reading
from addnorm.cli import output
from addnorm.cli.arguments import Positional, arg, optional
from addnorm.cli.models import as_gpt, open_model
from addnorm.cli.refusal import Refusal
from addnorm.progress import ProgressBar

if TYPE_CHECKING:
    from addnorm.export import Written
    from addnorm.pretrained import Loaded


@final
@dataclass(frozen=True)
class Hf:
    """Write a folder that transformers loads, including the tokenizer."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A folder with a model, a run's folder, or a name such as openai-community/gpt2."""
    out: Path
    """The folder to write."""
    format: Annotated[Literal["gpt2", "addnorm"] | None, optional("{gpt2,addnorm}")] = None
    """gpt2 loads without addnorm, addnorm holds any design; by default gpt2 where possible."""
    dtype: Literal["f32", "f16", "bf16"] = "f32"
    """Data type of the weights."""

    def write(self, loaded: "Loaded", tell: Callable[[str], None]) -> "Written":
        """See ``addnorm.export.to_hf``."""
        from addnorm.export import EXPORT_DTYPES, to_hf

        model, tokenizer = as_gpt(loaded, self.model)
        dtype = None if self.dtype == "f32" else EXPORT_DTYPES[self.dtype]
        return to_hf(
            model, self.out, format=self.format, tokenizer=tokenizer, dtype=dtype, tell=tell
        )


@final
@dataclass(frozen=True)
class Onnx:
    """Write a graph for ONNX runtimes, for any batch size and length; of a translator two graphs,
    into a folder."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A folder with a model, a run's folder, or a name such as openai-community/gpt2."""
    out: Path
    """The file to write, such as model.onnx; large weights go to model.onnx.data beside it."""
    with_cache: bool = False
    """Make keys and values of earlier tokens inputs and outputs, for generation with a GPT."""
    with_valid: bool = False
    """Add an input that says which tokens are real, for batches with padding."""

    def write(self, loaded: "Loaded", tell: Callable[[str], None]) -> "Written":
        """See ``addnorm.export.to_onnx``."""
        from addnorm.export import ONNX_MODELS, to_onnx

        if not isinstance(loaded.model, ONNX_MODELS):
            as_gpt(loaded, self.model)  # which says what it is
        return to_onnx(
            loaded.model,
            self.out,
            tokenizer=loaded.tokenizer,
            labels=loaded.labels,
            with_cache=self.with_cache,
            with_valid=self.with_valid,
            tell=tell,
        )


@final
@dataclass(frozen=True)
class Gguf:
    """Write a file for llama.cpp; the model must be a GPT-2."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A folder with a model, a run's folder, or a name such as openai-community/gpt2."""
    out: Path
    """The file to write, such as model.gguf."""
    dtype: Literal["f32", "f16", "bf16"] = "f32"
    """Data type of the matrices; norms, biases and positions stay f32."""
    no_tokenizer: bool = False
    """Leave the tokenizer out, for programs that work with ids."""

    def write(self, loaded: "Loaded", tell: Callable[[str], None]) -> "Written":
        """See ``addnorm.export.to_gguf``; without a tokenizer that has to be asked for."""
        from addnorm.export import to_gguf

        model, tokenizer = as_gpt(loaded, self.model)
        if tokenizer is None and not self.no_tokenizer:
            raise Refusal(
                f"{self.model} has no tokenizer, and llama.cpp needs the one in the file to read "
                "text: put its tokenizer.json there, or GPT-2's vocab.json and merges.txt, or use "
                "--no-tokenizer"
            )
        tokenizer = None if self.no_tokenizer else tokenizer
        return to_gguf(model, self.out, tokenizer=tokenizer, dtype=self.dtype, tell=tell)


Options = Hf | Onnx | Gguf
"""What ``addnorm export`` is asked: a format and its options."""


def run(options: Options) -> int:
    """Write the file or folder that was asked for; returns the exit status: 1 if what another
    program reads from it is not the model."""
    from addnorm.export import CheckFailed, ExportError

    loaded = open_model(options.model)
    with ProgressBar() as bar:
        try:
            with reading.system_errors(options.out, ExportError, "write"):
                written = options.write(loaded, bar.begin)
        except CheckFailed as error:
            output.say(f"the check failed, and nothing was written: {error}")
            return 1
    _print(written)
    return 0


def _print(written: "Written") -> None:
    """Print the files with their sizes, what checked them, and remarks."""
    from addnorm.export import human

    print(f"{written.path}: {written.what}")
    width = max(map(len, written.files))
    for name, size in written.files.items():
        print(f"  {name:{width}}  {human(size):>9}")
    if written.check is not None:
        print(f"checked by {written.check}")
    for remark in written.remarks:
        print(remark)
