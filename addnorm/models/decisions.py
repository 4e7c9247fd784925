"""A model that acts: what is done in a state, if so much return is still to come.

    returns to go ──▶ linear ─┐
    states ──▶ table, linear ─┼─▶ + time ──▶ norm ──▶ Stack([attention, MLP] * n_layers, causal)
    actions ──▶ table, linear ┘        R1 s1 a1 R2 s2 a2 ...        │
                                                  at each state ──▶ head ──▶ its action

The Decision Transformer (Chen et al. 2021, arXiv 2106.01345, Algorithm 1, and its code,
github.com/kzl/decision-transformer): a GPT over (return to go, state, action), of which every step
has a learned embedding of its time in the episode, added to all three; each kind has a front of its
own and they share a norm behind it. The token of a state predicts the action. States and actions
are numbers, with a table as in the paper's Atari, or vectors, with a linear layer as in its Gym.
Without returns it is behaviour cloning: the same model over (state, action).

The return to go stands for itself, scaled by what is usual in the data; what a state or an action
of numbers is scaled by is kept beside the weights.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import schemes
from addnorm.branches import ACTIVATIONS
from addnorm.checks import check_known, check_whole, is_number
from addnorm.context import Context
from addnorm.data.episodes import NUMBER, VECTOR
from addnorm.errors import Mendable, value_in_short
from addnorm.models.transformer import decoder

KINDS = (NUMBER, VECTOR)


@final
@dataclass(frozen=True, kw_only=True)
class DecisionConfig:
    """What a model that acts is, checked when it is made."""

    states: int
    """How many states there are, or numbers in one; at least 1."""
    actions: int
    """How many actions there are, or numbers in one; at least 1."""
    state_kind: str = NUMBER
    """number: a state is one of so many; vector: a list of numbers."""
    action_kind: str = NUMBER
    """number: an action is one of so many; vector: a list of numbers."""
    returns: bool = True
    """Whether it reads the return to go; without it behaviour is cloned as it is."""
    context_length: int = 20
    """The most steps that one call reads; at least 1."""
    longest: int = 1000
    """Times in an episode that have an embedding of their own; all later ones share the last."""
    return_mean: float = 0.0
    """What is taken off a return to go before it is read."""
    return_scale: float = 1.0
    """What it is divided by then; above 0."""
    quartiles: tuple[float, ...] = ()
    """Returns of the episodes that it learned from: lowest, quartiles and highest."""
    dim: int = 128
    """The width of the residual stream, a multiple of ``n_heads``."""
    n_layers: int = 3
    """Blocks of attention and MLP; at least 1."""
    n_heads: int = 4
    """Heads of each attention; at least 1."""
    scheme: str = "pre_norm"
    """Where the norms are: any text for ``schemes.parse``."""
    activation: str = "relu"
    """The MLP's, a key of ``branches.ACTIVATIONS``."""
    dropout: float = 0.0
    """After the front, on attention weights and on branch outputs, in [0, 1)."""

    def __post_init__(self) -> None:
        sizes = ("states", "actions", "context_length", "longest", "dim", "n_layers", "n_heads")
        for name in sizes:
            check_whole(name, getattr(self, name))
        for name in ("state_kind", "action_kind"):
            check_known(name, getattr(self, name), KINDS)
        check_known("activation", self.activation, ACTIVATIONS)
        if type(self.returns) is not bool:
            raise Mendable(f"returns must be true or false, got {value_in_short(self.returns)}")
        for name in ("return_mean", "return_scale"):
            if not is_number(getattr(self, name)):
                raise Mendable(
                    f"{name} must be a number, got {value_in_short(getattr(self, name))}"
                )
        if self.return_scale <= 0:
            raise Mendable(f"return_scale must be above 0, got {self.return_scale:g}")
        if not isinstance(self.quartiles, tuple) or not all(map(is_number, self.quartiles)):
            raise Mendable(f"quartiles must be numbers, got {value_in_short(self.quartiles)}")
        if self.dim % self.n_heads:
            raise Mendable(f"{self.n_heads} heads do not divide the width {self.dim}")
        if not (is_number(self.dropout) and 0.0 <= self.dropout < 1.0):
            raise Mendable(f"dropout must be in [0, 1), got {value_in_short(self.dropout)}")
        schemes.parse(self.scheme)


@final
class DecisionModel(nn.Module):
    """``model(returns, observations, actions, times)`` -> what is done, (B, T, actions).

    An observation is a state, by the name that gymnasium gives to what is seen of it.

    ``config``: all of its choices.
    """

    def __init__(self, config: DecisionConfig) -> None:
        super().__init__()
        c = self.config = config
        self.returns = nn.Linear(1, c.dim) if c.returns else None
        self.states = StepInput(c.state_kind, c.states, c.dim)
        self.actions = StepInput(c.action_kind, c.actions, c.dim)
        self.times = nn.Embedding(c.longest, c.dim)
        self.norm = nn.LayerNorm(c.dim)
        self.stack = decoder(
            c.dim,
            c.n_heads,
            c.n_layers,
            schemes.parse(c.scheme),
            activation=c.activation,
            dropout=c.dropout,
            hidden_dropout=0.0,
        )
        self.head = nn.Linear(c.dim, c.actions)
        for layer in (self.returns, self.times, self.head):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)  # as everything in its GPT
        nn.init.zeros_(self.head.bias)

    def forward(
        self, returns: Tensor | None, observations: Tensor, actions: Tensor, times: Tensor
    ) -> Tensor:
        """Returns to go (B, T), not read by a model without them; states and actions, whole numbers
        (B, T) or vectors (B, T, width); times in the episode (B, T), from 0 on.

        The last action is not seen by anything, and may be any. What comes after a step is not seen
        by it, so that rows are filled up at their ends. The output are logits of the actions that
        there are, or the expected action itself.
        """
        c = self.config
        time = self.times(times.clamp(max=c.longest - 1))  # (B, T, D)
        tokens = [self.states(observations), self.actions(actions)]
        if self.returns is not None:
            assert returns is not None
            scaled = (returns[..., None].to(time.dtype) - c.return_mean) / c.return_scale
            tokens.insert(0, self.returns(scaled))
        h = torch.stack([token + time for token in tokens], 2)  # (B, T, 3, D)
        h = F.dropout(self.norm(h.flatten(1, 2)), c.dropout, self.training)  # (B, 3 T, D)
        h = self.stack(h, Context()).unflatten(1, (-1, len(tokens)))
        outputs = self.head(h[:, :, -2].to(self.head.weight.dtype))  # at the states
        return outputs if c.action_kind == NUMBER else self.actions.unscaled(outputs)

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.stack.after_step(step)


@final
class StepInput(nn.Module):
    """What states or actions are to the stack: a row of a table, or a linear layer of what a vector
    is less its mean, over its spread. What they are is learned from no gradient: ``adapt``.

    ``kind``: of ``KINDS``. ``size``: how many there are, or numbers in one. ``dim``: the width of
    the stream.
    """

    def __init__(self, kind: str, size: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, dim) if kind == NUMBER else None
        self.linear = nn.Linear(size, dim) if kind == VECTOR else None
        layer = self.table or self.linear
        assert layer is not None
        nn.init.normal_(layer.weight, std=0.02)
        if self.linear is not None:
            nn.init.zeros_(self.linear.bias)
            for name, value in {"mean": 0.0, "spread": 1.0, "low": -1.0, "high": 1.0}.items():
                self.register_buffer(name, torch.full((size,), value))

    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) or (B, T, size) -> (B, T, dim)."""
        if self.table is not None:
            return self.table(x)
        assert self.linear is not None
        return self.linear((x.to(self.mean.dtype) - self.mean) / self.spread)

    def unscaled(self, x: Tensor) -> Tensor:
        """Numbers as the head gives them, of mean 0 and spread 1, as they are in the data."""
        return x * self.spread + self.mean

    @torch.no_grad()
    def adapt(self, values: Tensor) -> None:
        """Take mean, spread and ends from vectors (N, size)."""
        ends = {"low": values.amin(0), "high": values.amax(0)}
        for name, value in {"mean": values.mean(0), "spread": spread_of(values), **ends}.items():
            getattr(self, name).copy_(value)


def spread_of(values: Tensor) -> Tensor:
    """The standard deviation of each number in vectors (N, size), or 1 where all are the same."""
    spread = values.std(0, correction=0)
    return spread.where(spread > 1e-6, torch.ones_like(spread))
