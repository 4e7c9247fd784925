"""A GPT as a function of tensors alone, which is what an ONNX graph is.

One graph with a cache serves the prompt and every step after it: with a past of length 0 it reads
the prompt, and what it returns as ``present`` is the next call's ``past``.
"""

from collections.abc import Callable, Hashable
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.export.check import draw
from addnorm.models.gpt import GPT

Past = list[tuple[Tensor, Tensor]]


@final
class _PastCache:
    """Keys and values that come in as tensors, for ``context.Cache``. ``layers``: the cache's key
    of an attention -> its place in ``past``; ``present``: what each has seen after the call.

    The length is a tensor: then attention neither takes it for a constant nor asks whether it is 0.
    """

    def __init__(self, past: Past, layers: dict[Hashable, int]) -> None:
        self.past, self.layers = past, layers
        self.present: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self.filled = torch.scalar_tensor(past[0][0].shape[2], dtype=torch.long)

    def lead(self, places: int) -> None:
        raise NotImplementedError("a past holds tokens only")

    def length(self, key: Hashable) -> Tensor:
        return self.filled

    def update(self, key: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        old_k, old_v = self.past[self.layers[key]]
        self.present[key] = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        return self.present[key]

    def memory(
        self, key: Hashable, make: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a GPT has no encoder to remember")


@final
class Graph(nn.Module):
    """The model as a function of tensors alone, and what they are called. ``with_cache``: it takes
    a past and returns it grown; ``with_valid``: it takes a mask of the tokens that are no
    padding."""

    def __init__(self, gpt: GPT, with_cache: bool, with_valid: bool) -> None:
        super().__init__()
        self.gpt, self.with_cache, self.with_valid = gpt, with_cache, with_valid
        kinds = [sub.site for sub in gpt.stack.sublayers() if sub.site.kind == "attn"]
        self.layers: dict[Hashable, int] = {site.index: i for i, site in enumerate(kinds)}

    def forward(
        self, ids: Tensor, valid: Tensor | None, past: Past | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """(logits, present): of each attention the keys and values that ``past`` has and these
        tokens; [] where there is no past. None stands for what the graph does not take."""
        if past is None:
            return self.gpt(ids, valid), []
        cache = _PastCache(past, self.layers)
        logits = self.gpt(ids, valid, cache=cache)
        return logits, [cache.present[key] for key in self.layers]

    def names(self, tensor: str) -> list[str]:
        """Names of the cache's tensors in order; ``tensor`` is "past" or "present"."""
        if not self.with_cache:
            return []
        return [
            f"{tensor}.{i}.{kind}" for i in range(len(self.layers)) for kind in ("key", "value")
        ]

    def empty(self, batch: int) -> dict[str, Tensor]:
        """A past of length 0."""
        c = self.gpt.config
        shape = (batch, c.n_kv_heads or c.n_heads, 0, c.dim // c.n_heads)
        return {name: torch.zeros(shape) for name in self.names("past")}

    def example(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Inputs of ``forward`` to trace with, and which of their sizes may be any number, as
        torch.export takes both."""
        # sizes of 0 and 1 would be taken for constants; longer than the context is refused
        batch, past, new = 2, 3 if self.with_cache else 0, min(5, self.gpt.config.context_length)
        anything = torch.export.Dim.DYNAMIC
        ids = draw(self.gpt, batch, new)
        valid = torch.ones(batch, past + new, dtype=torch.bool) if self.with_valid else None
        free = {0: anything, 1: anything}
        if not self.with_cache:
            return (ids, valid, None), (free, None if valid is None else free, None)
        tensors = [t.new_zeros(*t.shape[:2], past, t.shape[3]) for t in self.empty(batch).values()]
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        grown = {0: anything, 2: anything}
        return (
            (ids, valid, pairs),
            (free, None if valid is None else free, [(grown, grown) for _ in pairs]),
        )
