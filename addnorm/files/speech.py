"""A recognizer's folder: our own format, and Whisper's, which is read."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files import folders, whisper
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError
from addnorm.files.own import filled, model_tensors
from addnorm.files.published import StoredPiece, read_state
from addnorm.files.register import Loaded, ModelKind, tokenizer_beside
from addnorm.files.tensors import entries
from addnorm.files.whisper import SpeechCard
from addnorm.generation.search import SearchRules
from addnorm.models.speech import Speech, SpeechConfig
from addnorm.uses.transcription import Transcription

MODEL_TYPE = "addnorm_speech"
RULES, PREFIX = "rules", "prefix"
"""The keys of our config.json that hold what a model may write, and what it begins with."""


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model and its tokenizer; a ``WeightsError`` where they do not belong together. ``dtype``
    None keeps what is stored."""
    with reading.system_errors(folder, WeightsError):
        card = folders.read_json(folder / CONFIG)
        if card.get("model_type") == whisper.MODEL_TYPE:
            config, rules, prefix = whisper.read_card(folder)
        else:
            config, rules, prefix = _own(folder, card)
        empty = partial(Speech, config)
        if card.get("model_type") == whisper.MODEL_TYPE:
            with torch.device("meta"):
                model = empty()
            shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
            state = _state_of_whisper(folder, shapes, config, dtype)
            model.load_state_dict(state, strict=True, assign=True)
        else:
            model = filled(empty, folder, dtype)
        model.rules, model.prefix = rules, prefix
    tokenizer = tokenizer_beside(folder)
    _check_tokenizer(tokenizer, config)
    return Loaded(model.eval(), tokenizer, None, card)


def _own(folder: Path, card: Mapping[str, Any]) -> SpeechCard:
    """What our config.json says of the model and of what it may write; a field of the model that it
    lacks has the default."""
    file = folder / CONFIG
    reading.field(card, "vocab_size", int, file, WeightsError)
    fields = {f.name for f in dataclasses.fields(SpeechConfig)}
    rules = reading.field(card, RULES, dict, file, WeightsError)
    try:
        banned = tuple(tuple(word) for word in rules.get("banned", ()))
        return SpeechCard(
            SpeechConfig(**{k: v for k, v in card.items() if k in fields}),
            SearchRules(**{**rules, "banned": banned}),
            tuple(reading.field(card, PREFIX, list, file, WeightsError)),
        )
    except (Mendable, TypeError) as error:
        raise WeightsError(f"{file}: {error}") from None


def _state_of_whisper(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    config: SpeechConfig,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Our names -> values. The keys of Whisper's attention have no bias: zeros, and any other would
    change nothing, since it is the same for all that a query looks at. ``shapes``: by our names."""
    names = whisper.names(config)
    table = {
        ours: [StoredPiece(names[ours], shape)] if ours in names else []
        for ours, shape in shapes.items()
    }
    state = read_state(folder, table, shapes, dtype, unread=whisper.HEAD.__eq__).values
    copy, value = entries(folder).get(whisper.HEAD), state["tokens.weight"]
    if copy is not None and not torch.equal(copy.read().to(value.dtype), value):
        raise WeightsError(
            f"{folder / copy.file}: {whisper.HEAD} is not {names['tokens.weight']}, and {CONFIG} "
            "says that it is"
        )
    return state


def _check_tokenizer(tokenizer: Tokenizer | None, config: SpeechConfig) -> None:
    """Raise a ``WeightsError`` where a tokenizer has more ids than the model; fewer are no harm."""
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the model's vocabulary is "
            f"{config.vocab_size}: it is another model's"
        )


def write(
    model: Speech, folder: Path, tokenizer: Tokenizer | None, labels: Sequence[str] | None
) -> None:
    """Write the folder that ``read`` takes, in our own format; ``labels`` must be None."""
    if labels is not None:
        raise WeightsError("a recognizer of speech has no labels: leave them out")
    _check_tokenizer(tokenizer, model.config)
    state = model_tensors(model)

    def fill(work: Path) -> None:
        """All files of the folder, which is empty."""
        save_file(state, work / SAFETENSORS)
        card = {
            "model_type": MODEL_TYPE,
            **dataclasses.asdict(model.config),
            RULES: dataclasses.asdict(model.rules),
            PREFIX: list(model.prefix),
        }
        folders.write_json(work / CONFIG, card)
        if tokenizer is not None:
            tokenizer.save(work)

    folders.write(folder, fill)


def use(loaded: Loaded) -> Transcription:
    """What one asks of such a model: what is said. A ``Mendable`` where the folder has no
    tokenizer."""
    model, tokenizer = loaded.model, loaded.tokenizer
    assert isinstance(model, Speech)
    if not isinstance(tokenizer, Tokenizer):
        raise Mendable(
            "there is no tokenizer beside the model, only ids can be heard: "
            "model.generate(features)"
        )
    return Transcription(model, tokenizer, whole=loaded.card.get("model_type") == "whisper")


KIND = ModelKind(
    (whisper.MODEL_TYPE, MODEL_TYPE),
    Speech,
    "a recognizer of speech",
    read,
    write,
    use,
)
