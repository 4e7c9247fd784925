"""Where a text may be cut without changing an id: known for GPT-2's words, tried for all others.

GPT-2's words never reach from a character that is no whitespace to one that is, and its only
look-ahead starts in whitespace: between the two there is a place to cut (``CUT``). Where a
tokenizer splits text in another way, ``harmless_cut`` looks for a place like this where the ids are
the same with the cut as without. Text without any place is cut somewhere in the end; the limits are
here too.
"""

import re
from collections.abc import Callable, Sequence

WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
WHITESPACE += "\u2028\u2029\u202f\u205f\u3000"
r"""Unicode's White_Space, which is the \s of GPT-2's expression; str.isspace has more."""

CUT = re.compile(f"[^{WHITESPACE}](?=[{WHITESPACE}])")
"""Ends where a text may be cut."""

LAST_CUT = re.compile(f"(?s:.*){CUT.pattern}")

MARGIN = 500  # characters on each side with which a cut is tried
TRIES = 1000  # places tried before more text is waited for

LEARNING_LIMIT = 1 << 24
"""Characters without a place to cut, after which a text to learn from is cut anywhere."""
ENCODING_LIMIT = 1 << 21
"""Characters without a harmless cut, after which a text to encode is cut anywhere. Not as many as
for learning, which only counts words: an encoding takes some 170 bytes for each character."""


def last_cut(text: str) -> int:
    """The last place for GPT-2's words; 0 if there is none."""
    match = LAST_CUT.match(text)
    return 0 if match is None else match.end()


def harmless_cut(text: str, encode: Callable[[Sequence[str]], Sequence[Sequence[int]]]) -> int:
    """The last place at which the tokenizer may be given the text in two parts, tried with MARGIN
    characters on either side; 0 if none is found in TRIES. ``encode``: its ids of several texts."""
    tries, width = 0, MARGIN
    stop = len(text) - MARGIN  # what follows decides too
    while stop > 0 and tries < TRIES:
        start = max(0, stop - width)
        for match in reversed([*CUT.finditer(text, start, stop + 1)]):
            tries += 1
            place = match.end()
            left, right = text[max(0, place - MARGIN) : place], text[place : place + MARGIN]
            whole, before, after = encode([left + right, left, right])
            if [*whole] == [*before, *after]:
                return place
        stop, width = start, 2 * width
    return 0
