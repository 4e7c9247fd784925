"""A recurrent language model's folder: weights, settings, the tokenizer."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from addnorm import reading
from addnorm.errors import Mendable, value_in_short
from addnorm.files import folders
from addnorm.files.config_json import IDENTITY, SavedTokenizer, check_tokenizer, refuse_options
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError
from addnorm.files.gpt import refuse_labels
from addnorm.files.register import Loaded, ModelKind, tokenizer_beside
from addnorm.files.tensors import state_of
from addnorm.models.recurrent import RecurrentConfig, RecurrentLM
from addnorm.version import __version__

RECURRENT_TYPE = "addnorm_recurrent"


def write(
    model: RecurrentLM,
    folder: Path,
    tokenizer: SavedTokenizer | None,
    labels: Sequence[str] | None,
) -> None:
    """Write the folder that ``read`` takes: weights, settings, and the tokenizer if one is given,
    to which the model belongs from then on. ``labels`` must be None."""
    refuse_labels(labels)
    config = model.config
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the model's vocabulary is "
            f"{config.vocab_size}"
        )
    identity = model.tokenizer_identity if tokenizer is None else tokenizer.identity
    card = {
        "model_type": RECURRENT_TYPE,
        "addnorm_version": __version__,
        **dataclasses.asdict(config),
        "eos_token_id": None if tokenizer is None else tokenizer.eos_id,
        "dtype": str(model.tokens.weight.dtype).removeprefix("torch."),
        **({} if identity is None else {IDENTITY: identity}),
    }
    state = {
        name: folders.finite("the model", name, t.detach()).cpu().contiguous()
        for name, t in model.state_dict().items()
    }

    def fill(work: Path) -> None:
        folders.write_json(work / CONFIG, card)
        save_file(state, work / SAFETENSORS)
        if tokenizer is not None:
            tokenizer.save(work)

    folders.write(folder, fill)
    model.tokenizer_identity = identity


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model and its tokenizer, if there is one; a ``WeightsError`` where they are damaged or do
    not belong together. ``dtype`` None keeps what is stored."""
    with reading.system_errors(folder, WeightsError):
        card = folders.read_json(folder / CONFIG)
        config = _config(card, folder / CONFIG)
        with torch.device("meta"):
            model = RecurrentLM(config)
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        model.load_state_dict(state_of(folder, shapes, dtype), strict=True, assign=True)
        check_tokenizer(folder, config.vocab_size, card.get(IDENTITY))
    model.tokenizer_identity = card.get(IDENTITY)
    return Loaded(model.eval(), tokenizer_beside(folder), None, card)


def _config(card: Mapping[str, Any], file: Path) -> RecurrentConfig:
    """The choices in config.json, all of which must be there; a ``WeightsError`` names the file."""
    if card.get("model_type") != RECURRENT_TYPE:
        raise WeightsError(
            f"{file.parent} is not a recurrent language model: model_type is "
            f"{value_in_short(card.get('model_type'))}"
        )
    if card.get(IDENTITY) is not None:
        reading.field(card, IDENTITY, str, file, WeightsError)
    names = [f.name for f in dataclasses.fields(RecurrentConfig)]
    if absent := [name for name in names if name not in card]:
        raise WeightsError(f"{file}: {', '.join(absent)} missing")
    try:
        refuse_options(card, names, f"addnorm {__version__}", {})
        return RecurrentConfig(**{name: card[name] for name in names})
    except Mendable as error:  # ours, or what RecurrentConfig says of a value
        raise WeightsError(f"{file}: {error}") from None


KIND = ModelKind(
    (RECURRENT_TYPE,),
    RecurrentLM,
    "a recurrent language model",
    read,
    write,
    instead="addnorm generate continues a text with it, addnorm eval measures how probable it "
    "finds one, and addnorm predict with --pattern and --words labels one",
    writes=True,
)
