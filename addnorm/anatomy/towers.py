"""Parts of a model that one call leaves out, because they read what it was not given.

A model of texts and images runs on a text alone; its vision tower and what leads from it to the
text are then idle, which says nothing about how they are wired.
"""

import re
from collections.abc import Iterable
from typing import final

from torch import nn

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.signature import SHOWN, argument_names, signature

_ALSO_SHOWN = re.compile(r"pixel|video|wave|sound|mel|input_values|points|boxes|bbox")
"""In lower-case names of arguments that are something seen or heard, beside ``SHOWN``."""
_SETTING = re.compile(r"^(output|return|use|num)_|_(layer|strategy|sizes?|side|index|mask|thw)$")
"""In lower-case names of arguments that only say how something is read."""
DEPTH = 3
"""As many modules with parameters of their own make a tower; less is a layer that was forgotten."""


@final
class Towers:
    """Which parts wait for an input that a call does not have.

    ``unread`` are the names of the parameters that no operation of the call reads.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, unread: Iterable[str]) -> None:
        self.inputs = omitted_inputs(model, inputs)
        """The optional inputs of another kind that the call leaves out."""
        self._model = model
        self._unread = set(unread)
        self._paths = [path for path in self._idle("", model) if self._is_deep(path)]
        parents = {path.rpartition(".")[0] for path in self._paths}
        self._beside = parents if self.inputs else set[str]()

    @property
    def paths(self) -> list[str]:
        """The towers themselves; none where the call leaves out nothing that they could read."""
        return self._paths if self.inputs else []

    def explain(self, parameter: str) -> bool:
        """Whether a parameter is unread because it is in a tower, or beside one as what leads from
        it to the rest: an idle module or parameter with the same parent."""
        if any(parameter.startswith(f"{path}.") for path in self.paths):
            return True
        owner = parameter.rpartition(".")[0]
        if owner in self._beside:
            return True
        while owner:
            parent = owner.rpartition(".")[0]
            if parent in self._beside and self._is_idle(owner, self._model.get_submodule(owner)):
                return True
            owner = parent
        return False

    def _idle(self, path: str, module: nn.Module) -> list[str]:
        """The outermost modules all of whose parameters are unread."""
        if path and self._is_idle(path, module):
            return [path]
        return [
            inner
            for name, child in module.named_children()
            for inner in self._idle(f"{path}.{name}" if path else name, child)
        ]

    def _is_idle(self, path: str, module: nn.Module) -> bool:
        names = [f"{path}.{name}" for name, _ in module.named_parameters()]
        return bool(names) and self._unread.issuperset(names)

    def _is_deep(self, path: str) -> bool:
        owners = [
            m
            for m in self._model.get_submodule(path).modules()
            if next(m.parameters(recurse=False), None) is not None
        ]
        return len(owners) >= DEPTH and not re.search(r"(^|\.)\d+(\.|$)", path)


def omitted_inputs(model: nn.Module, inputs: Inputs) -> list[str]:
    """The names of optional arguments of forward that are something seen or heard, by what authors
    call it, and that a call does not have."""
    by_place = argument_names(model, inputs)
    present = {by_place.get(name, name) for name in inputs.tensors()}
    return [
        name
        for name, parameter in signature(model).items()
        if parameter.default is None
        and name not in present
        and (SHOWN.search(name.lower()) or _ALSO_SHOWN.search(name.lower()))
        and not _SETTING.search(name.lower())
    ]
