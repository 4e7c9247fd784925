"""LSTM and GRU with layer normalization (Ba, Kiros & Hinton 2016, arXiv 1607.06450, supplement).

``LayerNormLSTM`` and ``LayerNormGRU`` take and return what ``nn.LSTM`` and ``nn.GRU`` do. Here::

    LN(W u; g, b) = g * (W u - mean) / sqrt(var + eps) + b     over all gates of the product at once

Decided here, because the paper or torch leaves it open:

* Sequences of different lengths run in packed form: what is padding is never computed. A row that
  has ended, or in the reverse direction not begun, keeps its state.
* ``bias=False`` removes every additive parameter: the b of the LSTM and those of all norms.
* Matrix products are in the dtype of their matrix, or in autocast's; everything between them, so
  the statistics and the state (h of the GRU is a memory as much as c), in float32 or better.
  ``output`` has the dtype of the input. The returned state is not rounded, so that a sequence can
  be continued from it without a loss.
* Init, gate by gate: orthogonal for recurrent matrices, Xavier (uniform) for input matrices. The
  norm hides the scale of a matrix from forward, but the scale still sets how fast it turns.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from addnorm.norms import LayerNorm
from addnorm.ops.reference import accumulate_dtype

__all__ = ["LayerNormGRU", "LayerNormLSTM"]

GateInit = Callable[[Tensor], Tensor]
"""Fills the matrix of one gate in place, and returns it, as those of ``nn.init`` do."""
State = tuple[Tensor, ...]  # (h,) or (h, c): (B, H) each, or (layers * directions, B, H) for all


@final
class NormedProduct(nn.Module):
    """LN(W u; g, b), in the precision of the statistics, with one matrix per gate, stacked;
    ``init`` fills them one by one, in place.

    The matrices are empty at first: whoever makes it calls ``reset_parameters``.
    """

    def __init__(
        self, dim: int, hidden_size: int, gates: int, init: GateInit, bias: bool, eps: float
    ):
        super().__init__()
        self.gates, self.init = gates, init
        self.weight = nn.Parameter(torch.empty(gates * hidden_size, dim))
        self.norm = LayerNorm(gates * hidden_size, eps, bias)

    def reset_parameters(self) -> None:
        """Every gate's matrix by ``init``, the norm back to 1 and 0."""
        for gate in self.weight.detach().chunk(self.gates):
            self.init(gate)
        self.norm.reset_parameters()

    def forward(self, u: Tensor) -> Tensor:
        product = F.linear(u.to(self.weight.dtype), self.weight)
        return cast(Tensor, self.norm(product.to(accumulate_dtype(product))))


class Layer(nn.Module, ABC):
    """One layer in one direction: the loop over time. A subclass says what a step is, and is final.

    ``data`` (N, D) holds the rows of all time steps one after the other, ``sizes[t]`` of them at
    step t: the first ``sizes[t]`` rows of the batch, the longest sequences first.
    """

    state_names: ClassVar[tuple[str, ...]]
    """What messages call the parts of a state, which are as many."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Back to the values at init."""

    @abstractmethod
    def project(self, data: Tensor) -> Tensor:
        """All that does not depend on the state, for all time steps at once."""

    @abstractmethod
    def step(self, x: Tensor, state: State) -> State:
        """The next state, h first, from one time step of ``project``."""

    def forward(
        self, data: Tensor, sizes: list[int], state: State, reverse: bool
    ) -> tuple[Tensor, State]:
        """(h after every step, in the rows and the dtype of ``data``; the state after each row's
        last step). ``state`` is (B, H) each, of all rows; ``reverse`` begins with the last step."""
        order = slice(None, None, -1 if reverse else 1)
        hs = []
        for x in torch.split(self.project(data), sizes)[order]:
            rows = len(x)
            new_state = self.step(x, tuple(s[:rows] for s in state))
            hs.append(new_state[0])
            state = tuple(
                torch.cat((new, s[rows:])) for new, s in zip(new_state, state, strict=True)
            )
        return torch.cat(hs[order]).to(data.dtype), state  # (N, H), (B, H) each


@final
class LSTMLayer(Layer):
    """The equations of ``LayerNormLSTM``."""

    state_names = ("h_0", "c_0")

    def __init__(self, input_size: int, hidden_size: int, bias: bool, eps: float):
        super().__init__()
        orthogonal, xavier = nn.init.orthogonal_, nn.init.xavier_uniform_
        self.hidden = NormedProduct(hidden_size, hidden_size, 4, orthogonal, bias, eps)
        self.input = NormedProduct(input_size, hidden_size, 4, xavier, bias, eps)
        self.cell = LayerNorm(hidden_size, eps, bias)
        self.bias = nn.Parameter(torch.empty(4 * hidden_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """b = 1 for the forget gate: the cell begins by remembering. The other gates' b = 0."""
        for part in (self.hidden, self.input, self.cell):
            part.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)
            nn.init.ones_(self.bias.detach().chunk(4)[1])

    def project(self, data: Tensor) -> Tensor:
        x: Tensor = self.input(data)  # (N, 4H)
        return x if self.bias is None else x + self.bias

    def step(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (self.hidden(h) + x).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.cell(c).tanh(), c


@final
class GRULayer(Layer):
    """The equations of ``LayerNormGRU``."""

    state_names = ("h_0",)

    def __init__(self, input_size: int, hidden_size: int, bias: bool, eps: float):
        super().__init__()
        orthogonal, xavier = nn.init.orthogonal_, nn.init.xavier_uniform_
        self.hidden_gates = NormedProduct(hidden_size, hidden_size, 2, orthogonal, bias, eps)
        self.input_gates = NormedProduct(input_size, hidden_size, 2, xavier, bias, eps)
        self.hidden_new = NormedProduct(hidden_size, hidden_size, 1, orthogonal, bias, eps)
        self.input_new = NormedProduct(input_size, hidden_size, 1, xavier, bias, eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for part in (self.hidden_gates, self.input_gates, self.hidden_new, self.input_new):
            part.reset_parameters()

    def project(self, data: Tensor) -> Tensor:
        return torch.cat((self.input_gates(data), self.input_new(data)), -1)  # (N, 3H)

    def step(self, x: Tensor, state: State) -> State:
        (h,) = state
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z = self.hidden_gates(h).chunk(2, -1)
        r, z = (h_r + x_r).sigmoid(), (h_z + x_z).sigmoid()
        n = (x_n + r * self.hidden_new(h)).tanh()
        return ((1 - z) * h + z * n,)


class Recurrent(nn.Module, ABC):
    """Layers, directions and dropout, with the interface of ``nn.LSTM``. A subclass is final.

    ``layers[k]`` is the one that reads ``h_0[k]`` and fills ``h_n[k]``: first layer forward, first
    layer reverse, second layer forward, ...
    """

    layer: ClassVar[type[Layer]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__()
        if min(input_size, hidden_size, num_layers) < 1:
            raise ValueError(
                "input_size, hidden_size and num_layers must be at least 1, "
                f"got {input_size}, {hidden_size} and {num_layers}"
            )
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout is a probability between 0 and 1, got {dropout}")
        if dropout > 0.0 and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} does nothing with num_layers=1: it acts between layers. "
                "Use more layers, or nn.Dropout on the output.",
                stacklevel=2,
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.bidirectional, self.eps = bidirectional, eps
        self.directions = 2 if bidirectional else 1
        self.layers = nn.ModuleList(
            self.layer(size, hidden_size, bias, eps)
            for size in [input_size] + [self.directions * hidden_size] * (num_layers - 1)
            for _ in range(self.directions)
        )

    @abstractmethod
    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """``(output, state)`` from a sequence and the state before it (None: zeros)."""

    def reset_parameters(self) -> None:
        """Back to fresh values as at init, in all layers."""
        for layer in self.layers:
            cast(Layer, layer).reset_parameters()

    def run(
        self, input: Tensor | PackedSequence, hx: State | None
    ) -> tuple[Tensor | PackedSequence, State]:
        """``forward`` with the state as a tuple, whatever the number of its parts: (output, state
        of all layers), of the shapes that ``nn.LSTM`` has; ``hx`` None: zeros."""
        if isinstance(input, PackedSequence):
            self._check_input(input.data, (2,), "packed data (N, input_size)")
            sort, unsort = input.sorted_indices, input.unsorted_indices
            sizes = input.batch_sizes.tolist()
            state = self._initial(hx, input.data, (sizes[0],))
            if sort is not None:
                state = tuple(s.index_select(1, sort) for s in state)
            data, state = self._scan(input.data, sizes, state)
            if unsort is not None:
                state = tuple(s.index_select(1, unsort) for s in state)
            return input._replace(data=data), state

        shapes = "(B, T, input_size)" if self.batch_first else "(T, B, input_size)"
        self._check_input(input, (2, 3), f"{shapes} or unbatched (T, input_size)")
        if input.dim() == 2:
            state = tuple(s.unsqueeze(1) for s in self._initial(hx, input, ()))
            data, state = self._scan(input, [1] * len(input), state)
            return data, tuple(s.squeeze(1) for s in state)
        x = input.transpose(0, 1) if self.batch_first else input  # (T, B, D)
        steps, batch = x.shape[:2]
        state = self._initial(hx, input, (batch,))
        data, state = self._scan(x.flatten(0, 1), [batch] * steps, state)
        output = data.view(steps, batch, data.shape[-1])
        return output.transpose(0, 1) if self.batch_first else output, state

    def _scan(self, data: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        """All layers over packed ``data`` (N, D), with ``sizes`` as in ``Layer``: the output (N,
        directions * H) and the state of all layers, (layers * directions, B, H) each, in and
        out."""
        if not sizes:
            raise ValueError(f"{type(self).__name__}: the input has no time steps")
        last = []
        for k in range(0, len(self.layers), self.directions):
            if k > 0:
                data = F.dropout(data, self.dropout, self.training)
            both = [
                layer(data, sizes, tuple(s[k + d] for s in state), reverse=d == 1)
                for d, layer in enumerate(self.layers[k : k + self.directions])
            ]
            data = torch.cat([hs for hs, _ in both], -1)  # (N, directions * H)
            last += [ended for _, ended in both]
        return data, tuple(torch.stack(s) for s in zip(*last, strict=True))

    def _check_input(self, x: Tensor, dims: tuple[int, ...], expected: str) -> None:
        """Raise unless x has as many axes as one of ``dims``, and ``input_size`` features;
        ``expected`` says that in words."""
        name, shape = type(self).__name__, tuple(x.shape)
        if x.dim() not in dims:
            raise ValueError(f"{name}: the input must be {expected}, got shape {shape}")
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"{name}: the input has {x.shape[-1]} features (shape {shape}), but input_size is "
                f"{self.input_size}; pass {expected}"
            )
        if not x.is_floating_point():
            raise TypeError(
                f"{name}: the input must be floating point, got {x.dtype}; embed token ids first"
            )

    def _initial(self, hx: State | None, x: Tensor, batch: tuple[int, ...]) -> State:
        """The state before the first step: zeros or ``hx``, in float32 or better; a ``ValueError``
        where that does not fit. ``batch`` is (B,), or () for an input without a batch."""
        names, wide = self.layer.state_names, accumulate_dtype(x)
        shape = (len(self.layers), *batch, self.hidden_size)
        if hx is None:
            return tuple(torch.zeros(shape, dtype=wide, device=x.device) for _ in names)
        if len(hx) != len(names):
            raise ValueError(
                f"{type(self).__name__}: hx must be ({', '.join(names)}), got {len(hx)} parts"
            )
        for name, s in zip(names, hx, strict=True):
            if s.shape != shape:
                raise ValueError(
                    f"{type(self).__name__}: {name} in hx must have shape {shape}, (num_layers * "
                    f"directions, {'batch, ' if batch else ''}hidden_size), got {tuple(s.shape)}"
                )
        return tuple(s.to(wide) for s in hx)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"bias={self.bias}, batch_first={self.batch_first}, dropout={self.dropout:g}, "
            f"bidirectional={self.bidirectional}, eps={self.eps:g}"
        )


@final
class LayerNormLSTM(Recurrent):
    """The LSTM with three norms per step; ``nn.LSTM``'s interface::

        z  = LN(W_h h; g1, b1) + LN(W_x x; g2, b2) + b              (4H): i, f, g, o
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(LN(c'; g3, b3))

    c itself is never normalized: only what is read from it is. b1, b2 and b add up to one vector,
    as published; ``bias=False`` removes all of them and b3. b begins at 1 for the forget gate and
    at 0 elsewhere; without b the forget gate begins around sigmoid(0), like the others.

    ``input_size``: the features of the input, D.
    ``hidden_size``: the features of the state, H.
    ``num_layers``: layers, one above the other.
    ``bias``: False leaves out every additive parameter.
    ``batch_first``: input and output are (B, T, features), not (T, B, features).
    ``dropout``: on the output of each layer but the last, in [0, 1].
    ``bidirectional``: each layer also runs backwards; the output has 2 * H features.
    ``eps``: added to the variance of every norm.
    """

    layer = LSTMLayer

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        output, (h, c) = self.run(input, hx)
        return output, (h, c)


@final
class LayerNormGRU(Recurrent):
    """The GRU with four norms per step; ``nn.GRU``'s interface::

        (r, z) = LN(W_h h; g1, b1) + LN(W_x x; g2, b2)              (2H)
        n  = tanh(LN(V x; g3, b3) + sigmoid(r) * LN(U h; g4, b4))
        h' = (1 - sigmoid(z)) * h + sigmoid(z) * n

    z is the share of what is *new*, as in the paper; in ``nn.GRU`` it is the share of what stays.
    The norms' biases are the only ones; ``bias=False`` removes them.

    ``input_size``: the features of the input, D.
    ``hidden_size``: the features of the state, H.
    ``num_layers``: layers, one above the other.
    ``bias``: False leaves out every additive parameter.
    ``batch_first``: input and output are (B, T, features), not (T, B, features).
    ``dropout``: on the output of each layer but the last, in [0, 1].
    ``bidirectional``: each layer also runs backwards; the output has 2 * H features.
    ``eps``: added to the variance of every norm.
    """

    layer = GRULayer

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        output, (h,) = self.run(input, None if hx is None else (hx,))
        return output, h
