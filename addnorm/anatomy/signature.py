"""What a model's forward takes, by its signature, and what authors call such arguments."""

import inspect
import re

from torch import nn

from addnorm.anatomy.inputs import Inputs

SOURCE = re.compile(r"src|source|memory|enc(?!_?dec)|context|cond")


FEATURES = re.compile(
    r"memory|embed|hidden|feature|states?$|^enc_out|encoder_out|context|latent|query|key|value"
)


SHOWN = re.compile(r"feature|image|visual|vision|region|patch|audio|frame|speech|grid")


def signature(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of forward by name, those that gather the rest left out."""
    try:
        found = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}
    return {n: p for n, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def argument_names(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """The names in the signature of arguments given by place: {"0": "idx"}."""
    try:
        order = [
            p.name
            for p in inspect.signature(model.forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        return {}
    return {str(i): n for i, n in enumerate(order[: len(inputs.args)])}
