"""A recurrent language model's folder: weights, settings, the tokenizer."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from addnorm import reading
from addnorm.files import folders
from addnorm.files.config_json import IDENTITY, SavedTokenizer, check_tokenizer
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError
from addnorm.files.gpt import refuse_labels
from addnorm.files.own import config_of, filled, model_tensors
from addnorm.files.register import Loaded, ModelKind, tokenizer_beside
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
    state = model_tensors(model)

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
        model = filled(partial(RecurrentLM, config), folder, dtype)
        check_tokenizer(folder, config.vocab_size, card.get(IDENTITY))
    model.tokenizer_identity = card.get(IDENTITY)
    return Loaded(model.eval(), tokenizer_beside(folder), None, card)


def _config(card: Mapping[str, Any], file: Path) -> RecurrentConfig:
    """The choices in config.json; a ``WeightsError`` names the file."""
    if card.get(IDENTITY) is not None:
        reading.field(card, IDENTITY, str, file, WeightsError)
    return config_of(RecurrentConfig, card, file, RECURRENT_TYPE, "a recurrent language model")


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
