"""When a text ends: stop strings in what is being written, and output that goes in circles."""

from collections.abc import Sequence
from typing import final

from addnorm.errors import Mendable
from addnorm.generation.automaton import Words

LEAST_LOOP = 24  # tokens that a repetition must fill, and ...
ROUNDS = 3  # ... how often its piece must come


@final
class StopStrings:
    """The stop strings of a row; ``watch`` begins to read a text.

    ``strings``: those that end it; without any, none does.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        for string in strings:
            if not isinstance(string, str):
                raise TypeError(f"a stop string must be a str, got {string!r}")
        if not all(strings):
            raise Mendable("an empty stop string would stop every text before it begins")
        self.words = Words(strings)

    def watch(self) -> "Watch":
        """A reader at the beginning of a text."""
        return Watch(self.words)


@final
class Watch:
    """Passes text on until a stop string is complete, and nothing of that string.

    ``words``: the stop strings.

    The string that ends first counts, and of those that end together the longest. What may yet
    become one is held back.
    """

    def __init__(self, words: Words[str]) -> None:
        self._words = words
        self._state = 0
        self._tail = ""
        self.hit: str | None = None  # the stop string, once it is complete

    def push(self, text: str) -> str:
        """What is certain to be no part of a stop string, of this text and of what was held back.
        Once ``hit`` is set the text is over, and nothing more is to be pushed."""
        if len(self._words) == 1:
            return text
        for i, character in enumerate(text):
            self._state = self._words.step(self._state, character)
            length = self._words.hit[self._state]
            if length:
                whole = self._tail + text[: i + 1]
                self.hit, self._tail = whole[-length:], ""
                return whole[:-length]
        whole = self._tail + text
        safe = len(whole) - self._words.depth[self._state]
        self._tail = whole[safe:]
        return whole[:safe]

    @property
    def tail(self) -> str:
        """The end that is held back: text after all, if nothing follows."""
        return self._tail


def looped(ids: Sequence[int]) -> bool:
    """Whether the output ends in a loop: one piece ``ROUNDS`` times or more in a row, without a gap
    up to the end, over at least ``LEAST_LOOP`` tokens."""
    back = ids[::-1]
    # fail[n]: the longest beginning of back[:n] that also ends it, so that n - fail[n] is the
    # shortest period of the last n tokens (Knuth, Morris & Pratt 1977)
    fail = [0, 0]
    for n in range(1, len(back)):
        k = fail[n]
        while k and back[k] != back[n]:
            k = fail[k]
        fail.append(k + 1 if back[k] == back[n] else 0)
        length = n + 1
        if length >= LEAST_LOOP and ROUNDS * (length - fail[length]) <= length:
            return True
    return False
