"""GPT-2's byte-level BPE, straight-line: quadratic in the length of a word, and meant to be.

Sennrich, Haddow & Birch 2016 (arXiv 1508.07909), algorithm 1, applied to bytes as in Radford et al.
2019. A text is split into words by the expression

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

whose alternatives are tried in this order at each place. \\p{L} and \\p{N} are the categories that
begin with L and N, and \\s is White_Space: Python's `str.isspace` has U+001C to U+001F besides.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def character_class(c: str) -> str:
    """ "L" letter, "N" number, "S" white space, "O" anything else."""
    category = unicodedata.category(c)[0]
    if category in ("L", "N"):
        return category
    return "S" if c.isspace() and not "\x1c" <= c <= "\x1f" else "O"


def split(text: str) -> list[str]:
    """The words of a text; joined they are the text."""
    classes = [character_class(c) for c in text]

    def run(start: int) -> int:
        """Where the characters end that have the class of the one at `start`."""
        end = start
        while end < len(text) and classes[end] == classes[start]:
            end += 1
        return end

    words, i = [], 0
    while i < len(text):
        contraction = next((c for c in CONTRACTIONS if text.startswith(c, i)), None)
        after_space = i + 1 < len(text) and text[i] == " " and classes[i + 1] != "S"
        if contraction is not None:
            end = i + len(contraction)
        elif classes[i] != "S":
            end = run(i)
        elif after_space:
            end = run(i + 1)
        else:
            end = run(i)
            if end < len(text) and end - i > 1:
                end -= 1  # \s+(?!\S): the last one belongs to the word that follows
        words.append(text[i:end])
        i = end
    return words


def byte_characters() -> list[str]:
    """The character that stands for each byte: itself if it prints, else the next from U+0100."""
    table, shifted = [], 0
    for byte in range(256):
        if ord("!") <= byte <= ord("~") or ord("¡") <= byte <= ord("¬") or ord("®") <= byte:
            table.append(chr(byte))
        else:
            table.append(chr(256 + shifted))
            shifted += 1
    return table


def merge(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Join the neighbours with the lowest rank, everywhere, as long as there are any."""
    symbols = list(symbols)
    while True:
        pairs = {pair for pair in pairwise(symbols) if pair in ranks}
        if not pairs:
            return symbols
        best = min(pairs, key=lambda pair: ranks[pair])
        merged, i = [], 0
        while i < len(symbols):
            if tuple(symbols[i : i + 2]) == best:
                merged.append(symbols[i] + symbols[i + 1])
                i += 2
            else:
                merged.append(symbols[i])
                i += 1
        symbols = merged


def encode(text: str, vocab: Mapping[str, int], ranks: Mapping[tuple[str, str], int]) -> list[int]:
    """The ids of a text; special tokens are not looked for. Ranks are the places of the merges."""
    table, ids = byte_characters(), []
    for word in split(text):
        for symbol in merge([table[byte] for byte in word.encode()], ranks):
            ids.append(vocab[symbol])
    return ids


BYTES = {c: byte for byte, c in enumerate(byte_characters())}


def token_bytes(token: str) -> bytes:
    """The bytes that the characters of a token stand for."""
    return bytes(BYTES[c] for c in token)


def train(texts: Sequence[str], merges: int, min_frequency: int) -> list[tuple[str, str]]:
    """Algorithm 1: the most frequent pair of neighbours within words becomes a symbol, again and
    again. Among equals the pair comes first whose symbols were made first (bytes in the order of
    their characters), the left one deciding before the right one.
    """
    table = byte_characters()
    words = [[table[b] for b in word.encode()] for text in texts for word in split(text)]
    ids = {symbol: n for n, symbol in enumerate(sorted(table))}
    learned: list[tuple[str, str]] = []
    while len(learned) < merges:
        counts: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        frequent = [pair for pair, count in counts.items() if count >= min_frequency]
        if not frequent:
            break
        best = min(frequent, key=lambda p: (-counts[p], ids[p[0]], ids[p[1]]))
        learned.append(best)
        ids.setdefault(best[0] + best[1], len(ids))
        words = [merge(word, {best: 0}) for word in words]
    return learned


def write(folder: Path, merges: Sequence[tuple[str, str]]) -> None:
    """The two files as OpenAI published them: ids are those of the bytes in the order of their
    characters, then of the merges, then of the end of text."""
    tokens = [*sorted(byte_characters()), *map("".join, merges), "<|endoftext|>"]
    vocab = json.dumps({token: i for i, token in enumerate(tokens)})
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
