"""What tasks on a GPT begin with: a new one by the settings, or one that is there, whole or with an
adapter beside it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from torch import nn

from addnorm import schemes
from addnorm.adapt import APART, Adapt, WordReader, apply, export, with_room
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files import config_json, folders
from addnorm.files.config_json import SavedTokenizer
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import NORMS, GPTConfig
from addnorm.settings import (
    AT_RESUME,
    ELSEWHERE,
    HIDDEN,
    INSIDE,
    NEEDS,
    AtResume,
    SettingsError,
    assignment,
    changed,
    defaults,
    values_by_key,
    without_effect,
)
from addnorm.tasks.texts import fits
from addnorm.training.config import TaskSettings
from addnorm.training.loop_settings import LoopSettings

FROM_NOTHING = {"init_from": (None,)}
"""What a setting needs that counts for new models only."""
WITH_EPS = tuple(name for name in NORMS if name != "dyt")  # the norms that have an eps

Settings = TypeVar("Settings", bound=TaskSettings)
Configuration = TypeVar("Configuration")


@final
class SchemesWithNorms:
    """The schemes that have norms, to ask for with ``in``: the values of ``scheme`` beside which a
    setting of the norms has an effect."""

    def __contains__(self, scheme: str) -> bool:
        try:
            return schemes.has_norms(schemes.parse(scheme))
        except schemes.SchemeError:
            return True  # GPTConfig says what is wrong with the text

    def __iter__(self) -> Iterator[str]:  # in words
        return iter(["one that has norms"])


# --- settings -------------------------------------------------------------------------------------


OF_GPT = {
    HIDDEN: ("vocab_size", "dropout"),
    AT_RESUME: AtResume.ANEW,
    NEEDS: (FROM_NOTHING,),
    ELSEWHERE: True,
    INSIDE: {
        "rope_base": ({"position": ("rope",)},),
        "norm": ({"scheme": SchemesWithNorms()},),
        "eps": ({"scheme": SchemesWithNorms(), "norm": WITH_EPS}, {"qk_norm": WITH_EPS}),
    },
}
"""Metadata of the field that holds a new model's choices."""
OF_ADAPTER = {AT_RESUME: AtResume.BY_TUNING}
"""Metadata of the field that holds an adapter's."""


def with_clock(settings: Settings, adapt: Adapt, loop: LoopSettings) -> Settings:
    """The settings with ``adapt.steps`` set to the steps of the run, where ``adapt``, which is
    theirs, is an AdaLoRA that has none of its own; else as they are. A ``SettingsError`` where the
    run divides the matrices that AdaLoRA compares."""
    if adapt.kind != "adalora":
        return settings
    if loop.parallel == "fsdp":
        raise SettingsError("adapt.kind=adalora compares whole matrices: parallel=ddp, not fsdp")
    return settings if adapt.steps else changed(settings, {"adapt.steps": loop.steps})


def owns_its_weights(then: Mapping[str, Any]) -> bool:
    """Whether what a run with the settings ``then`` trained is part of the model's own weights."""
    return then.get("adapt.kind") not in APART


# --- a model that is there ------------------------------------------------------------------------


def opened_model(path_or_id: str, dropout: float) -> tuple[GPTConfig, Tokenizer, str]:
    """``opened_as`` a GPT; ``dropout`` replaces what the configuration says."""
    return opened_as(lambda folder: config_json.read(folder, dropout)[1], path_or_id)


def opened_as(
    read: Callable[[Path], Configuration], path_or_id: str
) -> tuple[Configuration, Tokenizer, str]:
    """(configuration, tokenizer, a hash of the weights) of what ``init_from`` names; the weights
    themselves are not loaded yet. ``read``: folder -> configuration."""
    try:
        folder = folders.find(path_or_id)
        config = read(folder)
        return config, Tokenizer.from_pretrained(folder), folders.identity(folder)
    except Mendable as error:
        raise SettingsError(f"init_from={path_or_id}: {error}") from None


def compare(
    settings: TaskSettings,
    init_from: str | None,
    config: GPTConfig,
    tokenizer: Tokenizer,
    choices: Mapping[str, Any],
) -> None:
    """Raise if what ``init_from`` brings, ``config`` and ``tokenizer``, is not what was asked for:
    by ``choices``, as in ``TaskSettings.build``, or by a setting that is not the usual."""
    usual = defaults(type(settings))
    values = values_by_key(settings)
    idle = without_effect(settings).keys()
    wishes = {k: choices.get(k, values[k]) for k in idle if k in choices or values[k] != usual[k]}
    wrong = []
    for key, value in wishes.items():
        if key == "tokenizer" and not fits(value, tokenizer):
            wrong.append(f"{assignment(key, value)} is not its tokenizer")
        elif key.startswith("model."):
            name = key.removeprefix("model.")
            theirs = _spelled_out(name, config, getattr(config, name))
            if _spelled_out(name, config, value) != theirs:
                wrong.append(f"{assignment(key, value)} is {theirs} there")
    if wrong:
        raise SettingsError(
            f"init_from={init_from} comes with a model and a tokenizer, and {', '.join(wrong)}. "
            "Leave these settings out, or leave out init_from to start from scratch"
        )


def _spelled_out(name: str, config: GPTConfig, value: Any) -> Any:
    """The value of one of the model's settings; None is replaced where it stands for a number that
    follows from ``config``, so that two ways to say the same are equal."""
    standing = {"hidden": 4 * config.dim, "n_kv_heads": config.n_heads}
    return standing.get(name) if value is None else value


def with_more_tokens(model: GPT, config: GPTConfig, first: int) -> GPT:
    """The model with a vocabulary of ``config``'s size, whose tokens from ``first`` on are new.

    Their rows are the mean of those that are there, and a tenth of the spread of these at random,
    from torch's global generator: so they are as probable as any at first, and no two are alike.
    The model that is given is used up: the new one has its tensors.
    """
    grown = GPT(config)
    state = model.state_dict()
    for name in state.keys() & {"tokens.weight", "head.weight"}:
        rows = state[name][:first]
        table = grown.state_dict()[name].to(rows)
        table[:first] = rows
        table[first:] = rows.mean(0) + 0.1 * rows.std(0) * torch.randn_like(table[first:])
        state[name] = table
    grown.load_state_dict(state, assign=True)
    return grown.train(model.training)


# --- with an adapter ------------------------------------------------------------------------------


def check_adapter(adapt: Adapt, init_from: str | None) -> None:
    """Raise a ``SettingsError`` where there is an adapter and no model for it to stand beside."""
    if adapt.kind != "none" and init_from is None:
        raise SettingsError(
            f"adapt.kind={adapt.kind} trains beside a model that stays what it is: say which with "
            "init_from"
        )


def put_adapter(adapt: Adapt, model: nn.Module, tokenizer: WordReader | None = None) -> None:
    """Adapt the model in place, unless ``adapt.kind`` is none; a ``SettingsError`` says what is
    wrong with the settings. ``tokenizer``: the model's, for a prompt that begins as a text."""
    try:
        apply(adapt, model, tokenizer)
    except Mendable as error:
        raise SettingsError(f"adapt: {error}") from None


def config_beside(adapt: Adapt, config: GPTConfig) -> GPTConfig:
    """``config`` with the context that the adapter leaves to a text; a ``SettingsError`` where that
    is nothing."""
    try:
        return with_room(config, adapt)
    except Mendable as error:
        raise SettingsError(f"adapt.{error}") from None


def save_model(model: nn.Module, adapt: Adapt, folder: Path, tokenizer: SavedTokenizer) -> None:
    """For ``GPT.from_pretrained``, transformers and ``addnorm generate``; of an adapted model what
    ``adapt.export`` says."""
    assert isinstance(model, GPT)
    if adapt.kind == "none":
        model.save_pretrained(folder, tokenizer=tokenizer)
    else:
        export(model, folder, tokenizer=tokenizer)
