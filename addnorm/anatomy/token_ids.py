"""Which arguments of a model are token ids, of how many rows, and which ids mean no word.

An argument is one of ids if a table is looked up with it; which ids are padding and the like is
what the model says of itself.
"""

import re
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.masks import is_mask
from addnorm.anatomy.outputs import tensors_in

_FRESH = re.compile("_like$|^new_|^(eq|ne|lt|le|gt|ge|argsort|argmax|argmin|nonzero)$")
"""Functions whose whole numbers are no ids, though ids went in."""


@final
class Lookups(TorchFunctionMode):
    """Which tables are looked up with which indices, and from which of the ``arguments``, by name,
    these come: noted while it is active around a call that is given these very tensors."""

    def __init__(self, arguments: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.arguments = arguments
        self.lookups: list[tuple[int, Tensor, frozenset[str]]] = []
        """(rows, indices, arguments that they were computed from)"""
        self.sources = {id(t): frozenset({name}) for name, t in arguments.items()}
        self.alive: list[Tensor] = []  # so that no id is used twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each of its functions; notes what it looks up, and who it is from."""
        name = getattr(func, "__name__", "")
        if name == "embedding" and len(args) >= 2:
            ids, table = args[:2]
            # torch.embedding(table, ids), but F.embedding(ids, table)
            if isinstance(ids, Tensor) and ids.is_floating_point():
                ids, table = table, ids
            self._note(table, ids)
        elif name in ("__getitem__", "index_select", "take_along_dim") and len(args) >= 2:
            self._note(args[0], args[-1])
        elif name == "one_hot" and len(args) >= 2 and isinstance(args[1], int) and args[1] > 0:
            self.lookups.append((args[1], args[0].detach().clone(), self._source(args[0])))
        out = func(*args, **(kwargs or {}))
        if not _FRESH.search(name):
            self._follow((args, kwargs), out)
        return out

    def _source(self, value: Any) -> frozenset[str]:
        """The arguments that a tensor was computed from; none if that is not known."""
        return self.sources.get(id(value), frozenset())

    def _follow(self, arguments: Any, out: Any) -> None:
        """Note that whole numbers computed from an argument's are the argument's: ``ids + 2``."""
        numbers = [t for t in tensors_in(out) if t.dtype in (torch.int32, torch.int64)]
        if numbers:
            source = frozenset().union(*(self._source(t) for t in tensors_in(arguments)))
            for t in numbers if source else ():
                self.sources[id(t)] = source
                self.alive.append(t)

    def _note(self, table: Any, ids: Any) -> None:
        """Write down a lookup, if it is one of whole numbers in a table of floating-point ones."""
        if isinstance(ids, tuple):  # table[ids, :]
            whole = [i for i in ids if isinstance(i, Tensor)]
            ids = whole[0] if len(whole) == 1 else None
        if not isinstance(table, Tensor) or not isinstance(ids, Tensor) or not table.dim():
            return
        if table.is_floating_point() and ids.dtype in (torch.int32, torch.int64):
            self.lookups.append((table.shape[0], ids.detach().clone(), self._source(ids)))

    def rows(self, name: str) -> int | None:
        """The fewest rows of the tables that are looked up with just this argument; where there is
        none, of those that are looked up with numbers computed from it: as many as leave room for
        what is added."""
        ids = self.arguments[name]
        same = [
            rows
            for rows, index, _ in self.lookups
            if index.numel() == ids.numel()
            and (
                torch.equal(index.reshape(-1), ids.reshape(-1))
                or (ids.dim() == 2 and torch.equal(index.reshape(-1), ids.t().reshape(-1)))
            )
        ]
        if same:
            return min(same)
        computed = [  # a lookup with ids + 2 leaves two rows less
            max(rows - max(int((index - ids).max()), 0), 1)
            for rows, index, sources in self.lookups
            if name in sources and index.shape == ids.shape and not _holds_places(index)
        ]
        return min(computed, default=None)


def _holds_places(index: Tensor) -> bool:
    """Whether they are places, not ids: they differ along a line and every line is the same."""
    lines = index.reshape(index.shape[0], -1)
    return bool((lines == lines[:1]).all()) and bool((lines != lines[:, :1]).any())


def table_rows(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """For every whole-number argument that is used as token ids: the rows of its table."""
    return lookups_of(model, inputs)[0]


def lookups_of(model: nn.Module, inputs: Inputs) -> tuple[dict[str, int], Any]:
    """(``table_rows``, what the model returned meanwhile); never more rows than the vocabulary that
    its config claims, if all ids are in that."""
    lookups = Lookups(
        {
            name: value
            for name, value in inputs.tensors().items()
            if value.dtype in (torch.int32, torch.int64)
            and value.dim()
            and not is_mask(name, value)
        }
    )
    with lookups:
        out = inputs.call(model)
    rows_by_name = {}
    config = getattr(model, "config", None)
    claimed = getattr(config, "vocab_size", None)  # tables may be longer than the vocabulary
    for name, value in lookups.arguments.items():
        rows = lookups.rows(name)
        if rows is not None:
            fits = type(claimed) is int and 0 < claimed < rows and int(value.max()) < claimed
            rows_by_name[name] = claimed if fits and type(claimed) is int else rows
    return rows_by_name, out


def special_ids(model: nn.Module) -> set[int]:
    """Ids that mean something else than a word, as far as the model says: padding above all."""
    return _ids_called(model, r"token_id$|pad_?(idx|id|token|index)$|^pad$")


def pad_ids(model: nn.Module) -> set[int]:
    """Ids of padding, as far as the model says."""
    return {v for v in _ids_called(model, r"pad_token_id$|pad(ding)?_?(idx|id|index)$") if v >= 0}


def _ids_called(model: nn.Module, pattern: str) -> set[int]:
    """The ids that a table leaves out (``padding_idx``), and those under a name of the model or its
    config that matches ``pattern``."""
    ids: set[Any] = {m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding)}
    for owner in (getattr(model, "config", None), *model.modules()):
        for name, value in getattr(owner, "__dict__", {}).items():
            if re.search(pattern, name):
                ids |= set(value if isinstance(value, list) else [value])
    return {v for v in ids if type(v) is int}


def word_ids(rows: int, special: set[int]) -> list[int]:
    """Ids below ``rows`` that are surely words: no special ones, nor the lowest four if at least
    eight are left. Never empty: all ids where every one is special."""
    for low in (4, 1, 0):
        words = [i for i in range(low, rows) if i not in special]
        if len(words) >= 8 or low == 0:
            return words or list(range(rows))
    return list(range(rows))
