"""Recurrent language models: tokens in front, LSTMs or GRUs in a row, the tokens again as the head.

    ids ──▶ tokens ──▶ [LSTM or GRU, with layer normalization or without] * n_layers ──▶ logits

They are what a Transformer is compared with, and where layer normalization began. Cells without it
are PyTorch's; they begin as those with it do, so that the norm is all that differs: recurrent
matrices orthogonal and input matrices by Xavier, gate by gate, biases 0, but 1 for the LSTM's
forget gate.

A text is read from a state of zeros, in windows of at most ``context_length`` where it is learned
from. The state is all that a token knows of those before it, so a text may as well be longer.

References: Hochreiter & Schmidhuber 1997 (LSTM); Cho et al. 2014 (arXiv 1406.1078, GRU); Ba et al.
2016 (1607.06450, layer normalization); Zaremba et al. 2014 (1409.2329) for dropout that leaves the
recurrence alone; Press & Wolf 2017 (1608.05859) for the tied head; Merity et al. 2017 (1708.02182)
for the init of the tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from addnorm.checks import check_known, check_whole, is_number
from addnorm.context import StateCache
from addnorm.errors import Mendable, value_in_short
from addnorm.generation.decode import IdWriter
from addnorm.models.ids import check_ids
from addnorm.recurrent import LayerNormGRU, LayerNormLSTM

State = tuple[Tensor, ...]
"""(h,) of a GRU or (h, c) of an LSTM, each (layers, B, dim)."""


def plain_lstm(*sizes: int, **options: Any) -> nn.LSTM:
    """PyTorch's, with the init of ``LayerNormLSTM``."""
    cell = nn.LSTM(*sizes, **options)
    _fill(cell, gates=4)
    for biases in cell.all_weights:
        nn.init.ones_(biases[2].detach().chunk(4)[1])  # gates are i, f, g, o
    return cell


def plain_gru(*sizes: int, **options: Any) -> nn.GRU:
    """PyTorch's, with the init of ``LayerNormGRU``."""
    cell = nn.GRU(*sizes, **options)
    _fill(cell, gates=3)
    return cell


def _fill(cell: nn.RNNBase, gates: int) -> None:
    """Fill the matrices of a cell of PyTorch's, in place: each gate's by itself, as it is stacked
    with the others in one tensor; biases are 0. ``gates``: how many there are."""
    for of_input, of_state, *biases in cell.all_weights:
        for gate in of_input.detach().chunk(gates):
            nn.init.xavier_uniform_(gate)
        for gate in of_state.detach().chunk(gates):
            nn.init.orthogonal_(gate)
        for bias in biases:
            nn.init.zeros_(bias)


CELLS: dict[str, Callable[..., nn.Module]] = {
    "lstm": plain_lstm,
    "gru": plain_gru,
    "layer_norm_lstm": LayerNormLSTM,
    "layer_norm_gru": LayerNormGRU,
}


@final
@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """What a recurrent language model is, checked when it is made."""

    vocab_size: int
    """How many ids there are; at least 1."""
    context_length: int = 256
    """Tokens of a window that is learned from, and of one that a longer text is measured by; at
    least 1."""
    dim: int = 256
    """The width of the tokens and of the state; at least 1."""
    n_layers: int = 2
    """Layers, one above the other; at least 1."""
    cell: str = "layer_norm_lstm"
    """What computes the state: lstm, gru, layer_norm_lstm, layer_norm_gru."""
    dropout: float = 0.0
    """On tokens, between layers and before the head, never from step to step; in [0, 1)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "dim", "n_layers"):
            check_whole(name, getattr(self, name))
        check_known("cell", self.cell, CELLS)
        if not (is_number(self.dropout) and 0.0 <= self.dropout < 1.0):
            raise Mendable(f"dropout must be in [0, 1), got {value_in_short(self.dropout)}")


@final
class Recurrence(nn.Module):
    """(B, T, dim) -> (B, T, dim), each token from what it and those before it have left.

    ``cell``: a key of ``CELLS``; ``dim``: the width; ``n_layers``: layers, one above the other.
    ``dropout``: between layers.
    """

    def __init__(self, cell: str, dim: int, n_layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        between = dropout if n_layers > 1 else 0.0  # else PyTorch warns that it has no effect
        self.cell = CELLS[cell](dim, dim, n_layers, batch_first=True, dropout=between)

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        documents: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State | None]:
        """(the output, the state after each row's last token; None of documents, which go with no
        ``state``).

        ``valid`` (B, T) is True for real tokens, wherever they are: the others leave the state as
        it is, and their output is 0. Each of a row's ``documents`` (B, T) begins with zeros.
        """
        if documents is not None and state is not None:
            raise Mendable("a state is of one text: leave out documents, or the cache")
        if not x.numel():
            return torch.zeros_like(x), state
        if documents is None and (valid is None or bool(valid.all())):
            return self._run(x, state)
        return self._in_pieces(x, valid, documents, state)

    def _run(self, x: Any, state: State | None) -> tuple[Any, State]:
        """The cell on a batch of sequences, the state as a tuple whatever the number of parts."""
        one = state is not None and len(state) == 1  # a GRU takes a tensor, an LSTM a tuple
        out, new = self.cell(x, state[0] if state is not None and one else state)
        return out, new if isinstance(new, tuple) else (new,)

    def _in_pieces(
        self, x: Tensor, valid: Tensor | None, documents: Tensor | None, state: State | None
    ) -> tuple[Tensor, State | None]:
        """What ``forward`` returns, where there is padding or there are documents: the real tokens
        of each row, or of each of its documents, go through the cell as sequences of their own, and
        what comes out is put back in its place."""
        rows, steps, dim = x.shape
        real = x.new_ones(rows, steps, dtype=torch.bool) if valid is None else valid
        places = real.flatten().nonzero()[:, 0]  # (N,), row after row
        if not len(places):
            return torch.zeros_like(x), state
        row, begins = places // steps, torch.ones_like(places, dtype=torch.bool)
        begins[1:] = row[1:] != row[:-1]
        if documents is not None:
            number = documents.flatten()[places]
            begins[1:] |= number[1:] != number[:-1]
        piece = begins.cumsum(0) - 1  # (N,), the number of each token's sequence
        first = begins.nonzero()[:, 0]  # (P,)
        step = torch.arange(len(places), device=x.device) - first[piece]
        lengths = piece.bincount()
        padded = x.new_zeros(len(first), int(lengths.max()), dim)
        padded = padded.index_put((piece, step), x.flatten(0, 1)[places])
        packed = pack_padded_sequence(padded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        of_piece = row[first]
        before = None if state is None else tuple(s.index_select(1, of_piece) for s in state)
        packed_out, new = self._run(packed, before)
        out = pad_packed_sequence(packed_out, batch_first=True)[0][piece, step]  # (N, dim)
        h = out.new_zeros(rows * steps, dim).index_copy(0, places, out).view(rows, steps, dim)
        if documents is not None:
            return h, None
        after = state or tuple(s.new_zeros(s.shape[0], rows, s.shape[2]) for s in new)
        return h, tuple(
            s.index_copy(1, of_piece, n.to(s.dtype)) for s, n in zip(after, new, strict=True)
        )


@final
class RecurrentLM(nn.Module, IdWriter):
    """A recurrent language model: ``model(ids) -> logits``, (B, T) -> (B, T, vocab_size).

    ``config``: all of its choices.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        c = self.config = config
        self.tokens = nn.Embedding(c.vocab_size, c.dim)
        self.body = Recurrence(c.cell, c.dim, c.n_layers, c.dropout)
        self.tokenizer_identity: str | None = None  # of the tokenizer it was saved with
        nn.init.uniform_(self.tokens.weight, -0.1, 0.1)  # Merity et al. 2017

    def forward(
        self,
        ids: Tensor,
        valid: Tensor | None = None,
        *,
        cache: StateCache | None = None,
        last: int | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token at every place, or only at the ``last`` of them.

        ``valid`` (B, S) is True for real tokens, wherever the padding is. With a cache ``ids`` are
        the new tokens, which go on from the state that is there; S counts the tokens before them
        too, and may go on to tokens that are still to come. ``documents`` (B, T) numbers what each
        token is a part of: each document begins without a past.
        """
        check_ids(ids, self.config.vocab_size)
        if valid is not None and valid.dtype != torch.bool:
            raise TypeError(f"valid must be boolean, True = real token, got {valid.dtype}")
        if last is not None and last < 0:
            raise Mendable(f"last must be the number of places at the end, at least 0, got {last}")
        past = 0 if cache is None else cache.length(0)
        if valid is not None:
            new = past + torch.arange(ids.shape[1], device=ids.device)
            valid = valid.index_select(1, new)
        h = F.dropout(self.tokens(ids), self.config.dropout, self.training)  # (B, T, D)
        state = None if cache is None else cache.state(0)
        h, state = self.body(h, valid, documents, None if state is None else _layers_first(state))
        if cache is not None and state is not None:
            cache.leave(0, tuple(s.transpose(0, 1) for s in state))
        if last is not None:
            h = h[:, max(h.shape[1] - last, 0) :]
        h = F.dropout(h, self.config.dropout, self.training)
        return F.linear(h.to(self.tokens.weight.dtype), self.tokens.weight)


def _layers_first(state: State) -> State:
    """As the cells take it; a cache has the rows first."""
    return tuple(s.transpose(0, 1).contiguous() for s in state)
