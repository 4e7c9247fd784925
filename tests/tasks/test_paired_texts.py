"""Pairs for a training: which are held out, and batches of like length."""

from pathlib import Path

import numpy as np
import pytest

from addnorm import Tokenizer
from addnorm.data.pairs import Pair
from addnorm.data.sources import DataError
from addnorm.data.tokenizer.pair import pair
from addnorm.tasks.paired_texts import buckets, ids_of, read_paired_texts


def write(file: Path, rows: list[tuple[str, str]]) -> str:
    file.write_text("".join(f"{s}\t{t}\n" for s, t in rows))
    return str(file)


def test_a_source_stands_on_one_side(tmp_path: Path) -> None:
    """However often it comes, and whatever else is in the file."""
    rows = [(f"word {i % 30}", f"target {i}") for i in range(90)]
    texts = read_paired_texts(write(tmp_path / "a.tsv", rows), "", 0.3)
    sides = [{row.source for row in side} for side in (texts.train, texts.val)]
    assert not sides[0] & sides[1]
    assert len(texts.train) + len(texts.val) == 90
    assert 3 <= len(sides[1]) <= 15
    fewer = read_paired_texts(write(tmp_path / "b.tsv", rows[::-1][:45]), "", 0.3)
    assert {row.source for row in fewer.val} <= sides[1]
    others = write(tmp_path / "c.tsv", [("word 3", "x"), ("new", "y")])
    texts = read_paired_texts(str(tmp_path / "a.tsv"), others, 0.3)
    assert (len(texts.train), len(texts.val)) == (90, 2)
    assert "1 source of" in texts.remarks[-1]
    with pytest.raises(DataError, match=r"too few pairs: of 1, .* none is left to"):
        read_paired_texts(write(tmp_path / "d.tsv", rows[:1]), "", 0.3)


def test_ids_have_a_start_and_an_end_and_what_is_too_long_is_counted() -> None:
    characters = Tokenizer.characters("abc")
    both = pair(characters, characters)
    pairs = [
        Pair("ab", "c", ""),
        Pair("abca", "c", ""),
        Pair("a", "abca", ""),
        Pair("c", "abc", ""),
    ]
    rows, long = ids_of(pairs, both, 9, 4)
    assert [(row.source.tolist(), row.target.tolist(), row.number) for row in rows] == [
        ([0, 1, 3], [9, 2, 3], 0),
        ([2, 3], [9, 0, 1, 2, 3], 3),
    ]
    assert long == 2


def test_every_epoch_has_every_row_once_and_like_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 103)
    one, again, other = (buckets(lengths, 8, 5, seed, 2) for seed in (4, 4, 5))
    assert len(one) == 13
    assert sorted(np.concatenate(one)) == list(range(103))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert sorted(len(batch) for batch in one) == [7, *[8] * 12]
    padding = sum(int(lengths[b].max() * len(b) - lengths[b].sum()) for b in one)
    whole = np.arange(103)
    random = [whole[i : i + 8] for i in range(0, 103, 8)]
    assert padding < sum(int(lengths[b].max() * len(b) - lengths[b].sum()) for b in random) / 3
