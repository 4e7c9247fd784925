"""Which tokens may come next, where an automaton over bytes says which texts are meant.

``Constraint`` joins a ``Dfa`` with the tokens of a tokenizer. The tokens allowed in a state are
found when it is first entered: those whose bytes lead on, each walked through the table at once.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from addnorm.generation.automaton import (
    NEVER,
    Dfa,
    RegexError,
    both,
    in_short,
    regex,
    steps_to_the_end,
    without,
)

REMEMBERED = 512  # states whose tokens are kept; each costs a byte per token


class TokenBytes(Protocol):
    """What a constraint needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int | None: ...

    def token_bytes(self, id: int) -> bytes: ...

    def __hash__(self) -> int: ...


@final
class Constraint:
    """The texts of a ``Dfa``, spelled in the tokens of a tokenizer.

    ``dfa``: which texts are meant; ``tokenizer``: what they are spelled in.

    A text is never begun that the tokens cannot finish, nor, if ``budget`` tokens are left, one
    that they cannot finish in ``budget`` tokens; unless there is none. Where a vocabulary has all
    single bytes, the bytes that are missing stand for the tokens that are missing: that many are
    enough.
    """

    def __init__(self, dfa: Dfa, tokenizer: TokenBytes) -> None:
        self.dfa = dfa
        self.eos = tokenizer.eos_id
        self.pieces = pieces(tokenizer)
        self._walk = _Walk([b"" if i == self.eos else p for i, p in enumerate(self.pieces)])
        self._candidates: dict[int, Tensor] = {}
        singles = {p for p in self.pieces if len(p) == 1}
        edges = []
        if len(singles) == 256:
            source, byte = np.nonzero(dfa.table >= 0)
            edges.append(np.stack((source, dfa.table[source, byte].astype(np.int64))))
        else:
            for state in range(len(dfa.table)):
                to = np.unique(self._walk(dfa, state))
                to = to[to >= 0].astype(np.int64)
                edges.append(np.stack((np.full_like(to, state), to)))
        source, target = np.concatenate(edges, 1)
        self.missing = steps_to_the_end(source, target, dfa.accepting)
        if self.missing[0] == NEVER:
            raise RegexError("the tokenizer has no tokens for any text that satisfies it")
        # With more tokens left than this, no budget forbids anything.
        self._most_missing = self.missing.max(initial=0, where=self.missing < NEVER)

    def step(self, state: int, id: int) -> int:
        """The state after one more token."""
        return self.dfa.step(state, self.pieces[id])

    def candidates(self, state: int, budget: int) -> Tensor:
        """(tokens,) True for what may come next, if ``budget`` tokens are left with it, EOS apart;
        there is nothing where a text ends. It is kept for the next call: do not change it."""
        if state not in self._candidates:
            if len(self._candidates) >= REMEMBERED:
                self._candidates.clear()
            self._candidates[state] = torch.from_numpy(self._missing_after(state) < NEVER)
        mask = self._candidates[state]
        if budget <= self._most_missing:
            in_time = torch.from_numpy(self._missing_after(state) < budget)
            mask = in_time if in_time.any() or self.may_end(state) else mask
        return mask

    def may_end(self, state: int) -> bool:
        """Whether the text so far is one of those meant."""
        return bool(self.dfa.accepting[state])

    def _missing_after(self, state: int) -> NDArray[np.int64]:
        """For each token how many more are needed after it to finish a text, NEVER where it does
        not lead on."""
        to = self._walk(self.dfa, state)
        return np.where(to >= 0, self.missing[to], NEVER)


@final
class _Walk:
    """All tokens through an automaton at once, byte by byte."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        lengths = np.array([len(piece) for piece in pieces])
        self._order = np.argsort(-lengths, kind="stable")  # the longest first
        # At place i: how many tokens have a byte there.
        self._count = [int((lengths > i).sum()) for i in range(lengths.max(initial=0))]
        width = max(len(self._count), 1)
        padded = b"".join(pieces[i].ljust(width, b"\0") for i in self._order)
        self._bytes = np.frombuffer(padded, np.uint8).reshape(len(pieces), width).T.copy()

    def __call__(self, dfa: Dfa, state: int) -> NDArray[np.int32]:
        """Where each token leads from a state, or -1; an empty token leads nowhere."""
        to = np.full(len(self._order), -1, np.int32)
        alive = np.arange(self._count[0] if self._count else 0)
        at = np.full(len(alive), state, np.int32)
        for i, count in enumerate(self._count):
            if i:
                to[alive] = at
                going_on = alive < count
                alive, at = alive[going_on], at[going_on]
                to[alive] = -1
            at = dfa.table[at, self._bytes[i, alive]]
            alive, at = alive[at >= 0], at[at >= 0]
            if not alive.size:
                break
        to[alive] = at
        result = np.empty_like(to)
        result[self._order] = to
        return result


@lru_cache(maxsize=4)
def pieces(tokenizer: TokenBytes) -> tuple[bytes, ...]:
    """The bytes of every id; b"" where the tokenizer has a gap. Remembered for a few tokenizers:
    it takes a call for each id."""
    bytes_of_ids = []
    for id in range(tokenizer.vocab_size):
        try:
            bytes_of_ids.append(tokenizer.token_bytes(id))
        except ValueError:
            bytes_of_ids.append(b"")
    return tuple(bytes_of_ids)


@lru_cache(maxsize=16)
def constraint(
    tokenizer: TokenBytes, pattern: str | None, banned: tuple[str, ...]
) -> Constraint | None:
    """What a regular expression and banned words say together; None: there are none of both. The
    same arguments get the same object, which is kept, since making one takes long. A ``RegexError``
    where no text of the tokenizer satisfies both."""
    rules = []
    if pattern is not None:
        rules.append(regex(pattern))
    if banned:
        rules.append(without(banned))
    if not rules:
        return None
    try:
        return Constraint(rules[0] if len(rules) == 1 else both(*rules), tokenizer)
    except RegexError as error:
        rules_in_words = [] if pattern is None else [in_short(pattern)]
        rules_in_words += [f"banned words {', '.join(map(repr, banned))}"] if banned else []
        raise RegexError(f"{' and '.join(rules_in_words)}: {error}") from None
