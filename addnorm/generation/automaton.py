r"""Finite automata over bytes: what a regular expression allows, and what banned words forbid.

A text is its UTF-8 bytes, because tokens may end inside a character. Both kinds of rule become a
``Dfa``; ``both`` is their intersection; ``constraint.py`` asks it which tokens may come next.

The regular expressions are those of Python's ``re`` as ``re.fullmatch`` reads them, as far as a
finite automaton can:

    a  \.  \n \t \r \f \v \a  \xhh \uhhhh \Uhhhhhhhh   a character
    .                                    any but a newline
    [abc]  [a-z]  [^abc]                 one of a set, or not of it
    \d \D \w \W \s \S                     as in re, all of Unicode: write [0-9] for digits
    ab  a|b  (a)  (?:a)  (?P<name>a)     sequence, choice, group (nothing is captured)
    a*  a+  a?  a{2}  a{2,}  a{,3}  a{2,3}   repetition; a lazy ? behind it changes no text
    ^ at the start, $ at the end         which fullmatch implies

Flags, look-around, back-references, word boundaries, atomic groups and possessive repetition are
refused by name. So is what costs too much: ``MOST_STATES``, ``MOST_WORK`` and ``MOST_NESTED`` bound
the time and the memory of whatever is asked.

References: Thompson 1968 (the construction), Aho & Corasick 1975 (the search for many words).
"""

import re
import sys
import warnings
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Generic, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from addnorm.errors import Mendable

MOST_STATES = 10_000  # of an automaton; each costs a kilobyte, and time to find its tokens
MOST_WORK = 2_000_000  # places of an expression that are looked at until its states are found
MOST_NESTED = 50  # groups in groups: reading one takes five calls, and Python has some 1000
LAST = 0x10FFFF  # the highest code point
Ranges = tuple[tuple[int, int], ...]  # of code points, inclusive, ascending, apart
NEVER = np.iinfo(np.int64).max  # a number of steps that no automaton has


@final
class RegexError(Mendable):
    """An expression that is wrong, or that needs more than a finite automaton."""


@final
@dataclass(frozen=True, eq=False)
class Dfa:
    """A set of texts, as states 0, 1, ... and the bytes that lead from one to another.

    A text begins at 0, and from every state the end of some text can be reached.
    ``table``: (states, 256), the next state for each byte, or -1 where no text goes on like this.
    ``accepting``: (states,), whether a text may end here.
    """

    table: NDArray[np.int32]
    accepting: NDArray[np.bool_]

    def step(self, state: int, piece: bytes) -> int:
        """The state to which some bytes lead from another, or -1 where no text goes on like this;
        from -1 it is -1."""
        for byte in piece:
            if state < 0:
                break
            state = int(self.table[state, byte])
        return state

    def matches(self, text: str) -> bool:
        """Whether the whole text is one of those meant."""
        state = self.step(0, text.encode())
        return state >= 0 and bool(self.accepting[state])


def steps_to_the_end(
    source: NDArray[np.int64], target: NDArray[np.int64], accepting: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The fewest steps from each state to an accepting one, (states,); NEVER if none lead there.
    The i-th of the single steps leads from ``source[i]`` to ``target[i]``."""
    order = np.argsort(target, kind="stable")
    source, target = source[order], target[order]
    begins = np.searchsorted(target, np.arange(len(accepting) + 1))
    steps = np.where(accepting, 0, NEVER)
    front = np.flatnonzero(accepting)
    while front.size:
        before = np.concatenate([source[begins[s] : begins[s + 1]] for s in front])
        front = np.unique(before[steps[before] == NEVER])
        steps[front] = steps.max(initial=0, where=steps != NEVER) + 1
    return steps


def trimmed(table: NDArray[np.int32], accepting: NDArray[np.bool_]) -> Dfa:
    """A ``Dfa`` without the states from which no text can be finished; its arguments are as there.
    A ``RegexError`` if that is all of them."""
    source, byte = np.nonzero(table >= 0)
    alive = steps_to_the_end(source, table[source, byte].astype(np.int64), accepting) != NEVER
    if not alive[0]:
        raise RegexError("no text satisfies it")
    number = np.where(alive, np.cumsum(alive) - 1, -1).astype(np.int32)
    rows = table[alive]
    return Dfa(np.where(rows >= 0, number[rows], -1).astype(np.int32), accepting[alive])


def both(a: Dfa, b: Dfa) -> Dfa:
    """The texts that satisfy a and b; a ``RegexError`` if there are none, or if this takes too many
    states."""
    numbers = {(0, 0): 0}
    pairs = [(0, 0)]
    rows = []
    for i, j in pairs:  # grows while it is read
        row = np.full(256, -1, np.int32)
        left, right = a.table[i], b.table[j]
        for byte in np.flatnonzero((left >= 0) & (right >= 0)):
            pair = (int(left[byte]), int(right[byte]))
            if pair not in numbers:
                numbers[pair] = len(pairs)
                pairs.append(pair)
            row[byte] = numbers[pair]
        rows.append(row)
        _check_size(len(pairs))
    accepting = np.array([a.accepting[i] and b.accepting[j] for i, j in pairs])
    return trimmed(np.stack(rows), accepting)


def _check_size(states: int) -> None:
    """Raise a ``RegexError`` if an automaton of so many states is too large."""
    if states > MOST_STATES:
        raise RegexError(
            f"it needs more than {MOST_STATES} states: shorten its repetitions, and write "
            "[0-9] and [A-Za-z] where not all of Unicode is meant"
        )


# --- words ----------------------------------------------------------------------------------------

Symbol = TypeVar("Symbol", bound=Hashable)


@final
class Words(Generic[Symbol]):
    """Where some words end in what is read symbol by symbol (Aho & Corasick 1975).

    ``words``: those that are looked for.

    A state is the longest end of what was read that begins a word, ``depth`` its length and ``hit``
    that of the longest word that ends here, or 0.
    """

    def __init__(self, words: Iterable[Sequence[Symbol]]) -> None:
        self._next: list[dict[Symbol, int]] = [{}]
        self._fail = [0]
        self.depth, self.hit = [0], [0]
        for word in words:
            state = 0
            for symbol in word:
                if symbol not in self._next[state]:
                    self._next[state][symbol] = len(self._next)
                    self._next.append({})
                    self._fail.append(0)
                    self.depth.append(self.depth[state] + 1)
                    self.hit.append(0)
                state = self._next[state][symbol]
            self.hit[state] = len(word)
        self._order = [0]
        for state in self._order:  # breadth first: shorter ends are done before longer ones
            for symbol, child in self._next[state].items():
                self._order.append(child)
                if state:
                    self._fail[child] = self.step(self._fail[state], symbol)
                self.hit[child] = self.hit[child] or self.hit[self._fail[child]]

    def __len__(self) -> int:
        return len(self._next)

    def step(self, state: int, symbol: Symbol) -> int:
        """The state after one more symbol."""
        while state and symbol not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(symbol, 0)


def without(words: Sequence[str]) -> Dfa:
    """The texts in which none of the words occurs; a ``Mendable`` for a word that is in every text,
    or in none."""
    if not all(words):
        raise Mendable("an empty word is in every text: it cannot be banned")
    for word in words:
        if any("\ud800" <= c <= "\udfff" for c in word):
            raise Mendable(f"{word!r} holds half of a character, which is in no text: ban it whole")
    find = Words(word.encode() for word in words)
    table = np.array(
        [[find.step(state, byte) for byte in range(256)] for state in range(len(find))], np.int32
    )
    hit = np.array(find.hit) > 0
    table[hit[table]] = -1
    return trimmed(table, ~hit)


# --- regular expressions --------------------------------------------------------------------------


def regex(pattern: str) -> Dfa:
    """The texts that ``re.fullmatch(pattern, text)`` matches; a ``RegexError`` that begins with the
    expression if it is wrong, or more than an automaton can."""
    try:
        depth = _depth(pattern)
        if depth > MOST_NESTED:
            raise RegexError(
                f"its groups are nested {depth} deep, and at most {MOST_NESTED} are read"
            )
        _check_syntax(pattern)
        return _Parser(pattern).parse().determined()
    except RegexError as error:
        raise RegexError(f"{in_short(pattern)}: {error}") from None


def in_short(pattern: str) -> str:
    """An expression in a message, cut if it is long."""
    return f"regex {pattern!r}" if len(pattern) <= 100 else f"regex {pattern[:80]!r}..."


def _check_syntax(pattern: str) -> None:
    """Raise a ``RegexError`` if ``re`` does not read it: ``_Parser`` then need not look for what is
    ill-formed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that [[a] may come to mean something else
        try:
            re.compile(pattern)
        except re.error as error:
            raise RegexError(str(error)) from None
        except (OverflowError, ValueError):  # of more than 32 bits, of more than 4300 digits
            raise RegexError("a number of repetitions in it is too large") from None


def _depth(pattern: str) -> int:
    """How deep the groups of an expression are nested, 0 without any, be it well-formed or not; a (
    in a set or behind a backslash opens none."""
    depth = deepest = at = 0
    while at < len(pattern):
        c = pattern[at]
        at += 2 if c == "\\" else 1
        if c == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif c == ")":
            depth -= 1
        elif c == "[":
            at += pattern.startswith("^", at)
            at += pattern.startswith("]", at)  # at the beginning it is a member
            while at < len(pattern) and pattern[at] != "]":
                at += 2 if pattern[at] == "\\" else 1
            at += 1
    return deepest


@final
class _Nfa:
    """A nondeterministic automaton in the making. A piece of it is (where it begins, where it
    ends); pieces are used once. ``start`` and ``end`` are of the whole, once it is there; ``work``
    is what was looked at so far, which MOST_WORK bounds."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int, int]]] = []  # state -> (first byte, last byte, to)
        self.free: list[list[int]] = []  # state -> states reached without a byte
        self.start = self.end = 0
        self.work = 0

    def state(self) -> int:
        """The number of a new state."""
        self.edges.append([])
        self.free.append([])
        if len(self.edges) > 20 * MOST_STATES:  # a state of the Dfa stands for several of these
            _check_size(len(self.edges))
        return len(self.edges) - 1

    def characters(self, ranges: Ranges) -> tuple[int, int]:
        """A new piece that reads one character of a set. Its byte sequences share equal ends."""
        start, end = self.state(), self.state()
        shared: dict[Ranges, int] = {(): end}
        for sequence in _utf8(ranges):
            for i in range(len(sequence) - 1, 0, -1):
                if sequence[i:] not in shared:
                    shared[sequence[i:]] = self.state()
                    first, last = sequence[i]
                    to = shared[sequence[i + 1 :]]
                    self.edges[shared[sequence[i:]]].append((first, last, to))
            first, last = sequence[0]
            self.edges[start].append((first, last, shared[sequence[1:]]))
        return start, end

    def closure(self, states: Iterable[int]) -> bytes:
        """What is reached without a byte, as four bytes each: only what reads a byte or ends the
        text tells states apart."""
        reached = set(states)
        stack = list(reached)
        while stack:
            for state in self.free[stack.pop()]:
                if state not in reached:
                    reached.add(state)
                    stack.append(state)
        self.spend(len(reached))
        telling = sorted(s for s in reached if self.edges[s] or s == self.end)
        return array("i", telling).tobytes()

    def spend(self, places: int) -> None:
        """Count so many ``places`` that are looked at, and raise a ``RegexError`` before it is too
        much."""
        self.work += places
        if self.work > MOST_WORK:
            raise RegexError(
                "it takes too much work. It is too long, or many of its parts may come at the same "
                "place: write a{,1000} rather than (a?){1000}"
            )

    def determined(self) -> Dfa:
        """The same texts as a ``Dfa``, by the subset construction, once ``start`` and ``end`` are
        set; a ``RegexError`` where there are none, or it takes too much."""
        begin = self.closure([self.start])
        numbers = {begin: 0}
        sets = [begin]
        rows = []
        accepting = []
        for places in sets:  # grows while it is read
            states = array("i", places).tolist()
            row = np.full(256, -1, np.int32)
            for low, high, reached in self.moves(states):
                after = self.closure(reached)
                if after not in numbers:
                    numbers[after] = len(sets)
                    sets.append(after)
                row[low:high] = numbers[after]
            rows.append(row)
            accepting.append(self.end in states)
            _check_size(len(sets))
        return trimmed(np.stack(rows), np.array(accepting))

    def moves(self, states: Sequence[int]) -> Iterator[tuple[int, int, set[int]]]:
        """(low, high, others): each byte from low to below high leads from these states to the same
        others; bytes that lead nowhere are left out."""
        edges = [edge for s in states for edge in self.edges[s]]
        cuts = sorted({first for first, _, _ in edges} | {last + 1 for _, last, _ in edges})
        edges.sort(reverse=True)
        active: list[tuple[int, int, int]] = []
        for low, high in pairwise(cuts):
            active = [edge for edge in active if low <= edge[1]]
            while edges and edges[-1][0] == low:
                active.append(edges.pop())
            if active:
                yield low, high, {to for _, _, to in active}


@final
class _Parser:
    """Recursive descent over an expression that ``re`` has found to be well-formed."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0
        self.nfa = _Nfa()

    def parse(self) -> _Nfa:
        if self.pattern.startswith("^"):
            self.at = 1
        self.nfa.start, self.nfa.end = self.choice()
        return self.nfa

    # Every method from here on reads a part of the pattern and returns the piece that it means.

    def choice(self) -> tuple[int, int]:
        """Sequences with | between, up to the end or the ) of a group, which stays unread."""
        fork, join = self.nfa.state(), self.nfa.state()
        while True:
            start, end = self.sequence()
            self.nfa.free[fork].append(start)
            self.nfa.free[end].append(join)
            if not self.took("|"):
                return fork, join

    def sequence(self) -> tuple[int, int]:
        """What stands up to a | or ), or up to the $ at the end, which is read and means
        nothing."""
        start = end = self.nfa.state()
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            if self.pattern[self.at] == "$" and self.at == len(self.pattern) - 1:
                self.at += 1
                break
            first, last = self.repeated()
            self.nfa.free[end].append(first)
            end = last
        return start, end

    def repeated(self) -> tuple[int, int]:
        """An atom as often as what stands behind it says: that many copies in a row, of which those
        beyond the least may be left out; without a most, the last one may come again."""
        begin = self.at
        first, stop = self.atom()
        end = self.at
        least, most = self.bounds()
        if self.at == end:
            return first, stop
        self.took("?")  # lazy: another order of trying, the same texts
        if self.took("+"):
            self.refuse("possessive repetition", self.at - 1)
        after = self.at
        free = self.nfa.free
        start, stop_of_all = self.nfa.state(), self.nfa.state()
        last = start
        for copy in range(max(least, 1) if most is None else most):
            if copy:  # a piece is used once: read it again
                self.at = begin
                first, stop = self.atom()
            if copy >= least:
                free[last].append(stop_of_all)
            free[last].append(first)
            last = stop
        free[last].append(stop_of_all)
        if most is None:
            free[last].append(first)
        self.at = after
        return start, stop_of_all

    def bounds(self) -> tuple[int, int | None]:
        """Read how often an atom may come: (at least, at most), None for without end; (1, 1) and
        nothing read if nothing is said."""
        for sign, (least, most) in {"*": (0, None), "+": (1, None), "?": (0, 1)}.items():
            if self.took(sign):
                return least, most
        bounds = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self.pattern, self.at)
        if bounds is None or bounds[0] == "{}":
            return 1, 1
        self.at = bounds.end()
        least = int(bounds[1] or 0)
        if not bounds[2]:
            return least, least
        return least, int(bounds[3]) if bounds[3] else None

    def atom(self) -> tuple[int, int]:
        """A character, a set of them, or a group, without what repeats it."""
        place = self.at
        c = self.pattern[self.at]
        self.at += 1
        if c == "(":
            return self.group(place)
        if c == "[":
            return self.nfa.characters(self.set())
        if c == ".":
            return self.nfa.characters(complement(((10, 10),)))
        if c == "\\":
            return self.nfa.characters(self.escape())
        if c in "^$":
            self.refuse(f"{c} anywhere but at the {'start' if c == '^' else 'end'}", place)
        return self.nfa.characters(((ord(c), ord(c)),))

    def group(self, place: int) -> tuple[int, int]:
        """What stands up to the ) of a group; its ( is read already, and stood at ``place``."""
        if self.took("?"):
            name = re.compile(r"P<\w+>").match(self.pattern, self.at)
            if name:
                self.at = name.end()
            elif not self.took(":"):
                kinds = {"=": "look-ahead", "!": "look-ahead", "<": "look-behind", "#": "a comment"}
                kinds |= {">": "an atomic group", "P": "a back-reference", "(": "a condition"}
                self.refuse(kinds.get(self.pattern[self.at], "a flag"), place)
        piece = self.choice()
        assert self.took(")"), "re.compile accepted it"
        return piece

    def escape(self) -> Ranges:
        """Read what stands behind a backslash, in a set or outside; the backslash is read
        already."""
        place = self.at - 1
        c = self.pattern[self.at]
        self.at += 1
        if c in "dws":
            return _category(c)
        if c in "DWS":
            return complement(_category(c.lower()))
        simple = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
        if c in simple:
            return ((ord(simple[c]), ord(simple[c])),)
        if c in "xuU":
            digits = {"x": 2, "u": 4, "U": 8}[c]
            code = int(self.pattern[self.at : self.at + digits], 16)
            self.at += digits
            return ((code, code),)
        if c.isalnum():
            names = {"b": "a word boundary", "B": "a word boundary", "N": "a character's name"}
            names |= {"A": "\\A (leave it out)", "Z": "\\Z (leave it out)"}
            name = "a back-reference or an octal number" if c.isdigit() else f"\\{c}"
            self.refuse(names.get(c, name), place)
        return ((ord(c), ord(c)),)

    def set(self) -> Ranges:
        """Read the rest of a set, up to its ], and return the characters in it; the [ is read
        already."""
        negated = self.took("^")
        parts: list[tuple[int, int]] = []
        first = True
        while first or self.pattern[self.at] != "]":
            first = False
            self.nfa.spend(1)
            low = self.member()
            c = self.pattern
            if c[self.at] == "-" and c[self.at + 1] != "]":
                self.at += 1
                high = self.member()
                parts.append((low[0][0], high[0][0]))
            else:
                parts += low
        self.at += 1
        ranges = union(parts)
        return complement(ranges) if negated else ranges

    def member(self) -> Ranges:
        """Read one character of a set, or a class of them such as \\d."""
        c = self.pattern[self.at]
        self.at += 1
        return self.escape() if c == "\\" else ((ord(c), ord(c)),)

    def took(self, sign: str) -> bool:
        """Whether the ``sign``, a single character, comes next; then it is read."""
        if self.at < len(self.pattern) and self.pattern[self.at] == sign:
            self.at += 1
            return True
        return False

    def refuse(self, what: str, place: int) -> None:
        raise RegexError(f"{what} at position {place} is not supported")


# --- sets of characters ---------------------------------------------------------------------------


def union(parts: Iterable[tuple[int, int]]) -> Ranges:
    """The characters of all parts, which may overlap, as ranges ascending and apart."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(parts):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """All other characters, up to LAST, surrogates among them."""
    gaps = []
    low = 0
    for first, last in ranges:
        gaps.append((low, first - 1))
        low = last + 1
    gaps.append((low, LAST))
    return tuple((a, b) for a, b in gaps if a <= b)


@lru_cache
def _category(letter: str) -> Ranges:
    """What re understands by \\d, \\w and \\s: asked of re itself."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    return tuple((m.start(), m.end() - 1) for m in re.finditer(rf"\{letter}+", everything))


@lru_cache
def _utf8(ranges: Ranges) -> tuple[Ranges, ...]:
    """A set of characters as sequences of ranges of bytes (as in RE2): every UTF-8 of the set is in
    exactly one, and every sequence of bytes in one is a UTF-8 of the set."""
    one_length = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, LAST))
    return tuple(
        sequence
        for low, high in ranges  # between 0xD7FF and 0xE000 are surrogates, which have no UTF-8
        for first, last in one_length
        if max(low, first) <= min(high, last)
        for sequence in _same_length(max(low, first), min(high, last))
    )


def _same_length(low: int, high: int) -> Iterator[Ranges]:
    """``_utf8`` of the characters from low to high, whose UTF-8 has one length. Where their last
    bytes do not run through all values, the range is cut until they do."""
    a, b = chr(low).encode(), chr(high).encode()
    for i in range(1, len(a)):
        mask = (1 << 6 * i) - 1  # the bits of the last i bytes
        if low >> 6 * i != high >> 6 * i:
            if low & mask:
                yield from _same_length(low, low | mask)
                yield from _same_length((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _same_length(low, (high & ~mask) - 1)
                yield from _same_length(high & ~mask, high)
                return
    yield tuple(zip(a, b, strict=True))
