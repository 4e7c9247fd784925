"""What a model's forward takes, by its signature, and what authors call such arguments."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from addnorm.anatomy.inputs import Inputs

SOURCE = re.compile(r"src|source|memory|enc(?!_?dec)|context|cond")
"""In lower-case names of arguments that are an encoder's input, or what a decoder reads of it."""


FEATURES = re.compile(
    r"memory|embed|hidden|feature|states?$|^enc_out|encoder_out|context|latent|query|key|value"
)
"""In lower-case names of arguments that are vectors, even where the model has a table for ids."""


SHOWN = re.compile(r"feature|image|visual|vision|region|patch|audio|frame|speech|grid")
"""In lower-case names of arguments that are what was seen or heard, as vectors beside a text."""


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters of a function or class by name; None where Python cannot tell, as of a
    function that is written in C."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


def gathers(parameter: inspect.Parameter) -> bool:
    """Whether it takes any number of arguments: ``*args`` or ``**kwargs``."""
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def signature(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of forward by name, those that gather the rest left out."""
    parameters = parameters_of(model.forward) or {}
    return {name: p for name, p in parameters.items() if not gathers(p)}


def argument_names(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """The names in the signature of arguments given by place: {"0": "idx"}."""
    parameters = (parameters_of(model.forward) or {}).values()
    order = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return {str(i): n for i, n in enumerate(order[: len(inputs.args)])}
