"""How good transcripts are: the word and character error rates, over plain texts.

The rates are the fewest words or characters to insert, leave out and replace, over those of the
references, all sounds together. jiwer, the usual package, gives the same figures.
"""

import unicodedata
from collections.abc import Sequence

from addnorm.uses.edits import edits

APOSTROPHES = dict.fromkeys((0x2019, 0x02BC, 0x60), "'")
"""Code points of what is written for an apostrophe -> that."""


def plain(text: str) -> str:
    """A text as it is spoken: in lower case, letters, digits and the apostrophes inside words, one
    space between words."""
    text = unicodedata.normalize("NFC", text).lower().translate(APOSTROPHES)
    letters = [c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text]
    return " ".join(filter(None, (word.strip("'") for word in "".join(letters).split())))


def error_rates(outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """``wer`` and ``cer`` of texts beside what was said, made plain on both sides. They may be
    above 1, where much was written that nobody said."""
    pairs = [(plain(a), plain(b)) for a, b in zip(outputs, references, strict=True)]
    words = [(a.split(), b.split()) for a, b in pairs]
    return {
        "wer": sum(edits(a, b) for a, b in words) / max(sum(len(b) for _, b in words), 1),
        "cer": sum(edits(a, b) for a, b in pairs) / max(sum(len(b) for _, b in pairs), 1),
    }
