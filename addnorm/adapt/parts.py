"""The modules of an adapter. None of them changes what it is put beside."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STD = 0.02  # of what does not begin at 0


class Triplets(NamedTuple):
    """An update of rank r, times no scale: B diag(values) A."""

    a: Tensor  # (r, in_features)
    values: Tensor  # (r,)
    b: Tensor  # (out_features, r)


class LowRank(nn.Linear, ABC):
    """A Linear, its parameters under their old names, and an update of low rank beside it.

    ``linear``: whose weight and bias these are, not copies. ``rank``: of the update, which counts
    ``scale`` times. ``dropout``: on what the update reads. A subclass fills ``lora_A`` and
    ``lora_B``, which are empty memory here.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        nn.Module.__init__(self)  # the weights are there: Linear's would make them anew
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.dropout, self.training = scale, dropout, linear.training
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(self.weight.new_empty(self.out_features, rank))
        self.original: Tensor | None = None  # the weight without the update, while it is merged

    @abstractmethod
    def reading(self) -> Tensor:
        """What reads the input: (rank, in_features)."""

    @abstractmethod
    def triplets(self) -> Triplets:
        """Those that are not pruned."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features). Merged, the weight has the update in it; that
        with gradients in training is a ``RuntimeError``, since the update would not learn."""
        y = F.linear(x, self.weight, self.bias)
        if self.original is not None:
            if self.training and torch.is_grad_enabled():
                raise RuntimeError("the adapter is merged and cannot be trained: unmerge(model)")
            return y
        low = F.linear(F.dropout(x, self.dropout, self.training), self.reading())  # (..., rank)
        return y + self.scale * F.linear(low, self.lora_B)

    @torch.no_grad()
    def sum(self) -> Tensor:
        """The weight with the update, added in float32 or wider."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        delta = self.lora_B.to(wide) @ self.reading().to(wide)
        return (self.weight.to(wide) + self.scale * delta).to(self.weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Put the update into the weight, in place; twice is as good as once. Until ``unmerge`` a
        forward in training with gradients is a ``RuntimeError``."""
        if self.original is None:
            merged = self.sum()
            self.original = self.weight.detach().clone()
            self.weight.copy_(merged)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Bit for bit the weight from before ``merge``; without one nothing happens."""
        if self.original is not None:
            self.weight.copy_(self.original)
            self.original = None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.lora_A)}, scale={self.scale:g}"


@final
class LoRA(LowRank):
    """W + scale * B A: A begins as Linears do, B at 0."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__(linear, rank, scale, dropout)
        self._begin()

    def reading(self) -> Tensor:
        """The matrix A: (rank, in_features)."""
        return self.lora_A

    def triplets(self) -> Triplets:
        """All triplets, each with the value 1: nothing is pruned."""
        return Triplets(self.lora_A, self.lora_A.new_ones(len(self.lora_A)), self.lora_B)

    def reset_parameters(self) -> None:
        """The Linear's and the adapter's."""
        super().reset_parameters()
        self._begin()

    def _begin(self) -> None:
        bound = self.in_features**-0.5
        nn.init.uniform_(self.lora_A, -bound, bound)
        nn.init.zeros_(self.lora_B)


@final
class Prefix(nn.Module):
    """Learned keys and values, in front of what attention sees.

    ``length``: how many there are. ``heads``: of keys and values. ``like``: a weight, whose dtype
    and device they have. ``width``: of all heads together.
    """

    def __init__(self, length: int, heads: int, like: Tensor, width: int) -> None:
        super().__init__()
        self.length, self.heads = length, heads
        options: Any = {"dtype": like.dtype, "device": like.device}
        self.keys = nn.Embedding(length, width, **options)  # tables: Muon is not for them
        self.values = nn.Embedding(length, width, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small: at first each key gets as much attention as a token of no interest."""
        nn.init.normal_(self.keys.weight, std=STD)
        nn.init.normal_(self.values.weight, std=STD)

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (B, heads, S, head_dim), with the learned ones in front: each
        (B, heads, length + S, head_dim)."""
        return self._before(self.keys.weight, k), self._before(self.values.weight, v)

    def _before(self, table: Tensor, t: Tensor) -> Tensor:
        own = table.to(t.dtype).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        return torch.cat((own.expand(t.shape[0], -1, -1, -1), t), -2)


@final
class SoftPrompt(nn.Module):
    """Soft tokens in front of the embeddings of a text.

    ``length``: how many there are. ``tokens``: the embeddings (V, dim) of the model's own tokens,
    of which ``length`` drawn at random are what they begin as: what the paper calls sampled
    vocabulary, though its are of the 5,000 most common.
    """

    def __init__(self, length: int, tokens: Tensor) -> None:
        super().__init__()
        options: Any = {"dtype": tokens.dtype, "device": tokens.device}
        self.table = nn.Embedding(length, tokens.shape[1], **options)
        self.begin(tokens, torch.randint(len(tokens), (length,), device=tokens.device))

    @torch.no_grad()
    def begin(self, tokens: Tensor, ids: Tensor) -> None:
        """As the ``tokens`` with these ``ids``, over again as often as there is room."""
        places = torch.arange(len(self.table.weight), device=tokens.device) % len(ids)
        self.table.weight.copy_(tokens[ids.to(tokens.device)[places]])

    def forward(self, h: Tensor) -> Tensor:
        """(B, T, dim) -> (B, length + T, dim)."""
        own = self.table.weight.to(h.dtype)
        return torch.cat((own.expand(h.shape[0], -1, -1), h), 1)


@final
class Bottleneck(nn.Module):
    """v + up(gelu(down(v))); up begins at 0, and with it the whole at the identity.

    ``dim``: of v. ``width``: between down and up. ``like``: a weight, whose dtype and device its
    own have.
    """

    def __init__(self, dim: int, width: int, like: Tensor) -> None:
        super().__init__()
        options: Any = {"dtype": like.dtype, "device": like.device}
        self.down = nn.Linear(dim, width, **options)
        self.up = nn.Linear(width, dim, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """down normal, all else 0."""
        for p in self.parameters():
            nn.init.zeros_(p)
        nn.init.normal_(self.down.weight, std=STD)

    def forward(self, v: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        return v + self.up(F.gelu(self.down(v)))
