"""Pairs of texts for a training: read, divided into what is learned from and what is held out, and
turned into ids.

A pair is held out by a hash of its source alone, or because it stands in a file of its own for
that: a source that comes twice, with two targets say, stays on one side. What is longer than the
model reads or writes is left out, and told.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from addnorm.data.pairs import Pair, read_pairs
from addnorm.data.sources import DataError
from addnorm.data.split import HASHES, text_hash
from addnorm.data.tokenizer.pair import TokenizerPair
from addnorm.words import plural


@final
@dataclass(frozen=True)
class PairedTexts:
    """What there is to learn from, and to measure on."""

    train: Sequence[Pair]
    val: Sequence[Pair]
    remarks: Sequence[str] = field(default=())
    """What is odd about the pairs, in sentences."""


class PairOfIds(NamedTuple):
    """A pair as the model sees it."""

    source: NDArray[np.int64]
    """With its end."""
    target: NDArray[np.int64]
    """Between its start and its end."""
    number: int
    """Of the pair among those of its side."""


def read_paired_texts(data: str, val_data: str, val_fraction: float) -> PairedTexts:
    """The pairs of ``data``, the share ``val_fraction`` of them held out; or all to learn from, if
    those to hold out are in ``val_data``, "" for none. A ``DataError`` where a side is empty."""
    pairs = read_pairs(data)
    remarks = list(pairs.remarks)
    if val_data:
        others = read_pairs(val_data)
        train, val = pairs.rows, others.rows
        remarks += others.remarks
        learned = {row.source for row in train}
        if common := sum(row.source in learned for row in val):
            remarks.append(
                f"{plural(common, 'source')} of {val_data} stand in {data} too: what is measured "
                "on them is what was learned by heart"
            )
        return PairedTexts(train, val, remarks)
    train, val = [], []
    for row in pairs.rows:
        (val if text_hash(row.source) / HASHES < val_fraction else train).append(row)
    for side, what in ((train, "learn from"), (val, "hold out")):
        if not side:
            raise DataError(
                f"{data} has too few pairs: of {len(pairs.rows):,}, with "
                f"val_fraction={val_fraction:g}, none is left to {what}"
            )
    return PairedTexts(train, val, remarks)


def ids_of(
    pairs: Sequence[Pair], tokenizers: TokenizerPair, start: int, most: int
) -> tuple[list[PairOfIds], int]:
    """(each pair that fits into ``most`` tokens a side, how many do not). ``tokenizers``: of both
    sides; ``start``: the id that every target begins with."""
    rows = []
    for number, pair in enumerate(pairs):
        source = tokenizers.encode(pair.source)
        target = [start, *tokenizers.target.encode(pair.target), tokenizers.target_end]
        # the model reads the target without its end, and writes it without its start
        if len(source) <= most and len(target) - 1 <= most:
            rows.append(PairOfIds(np.array(source, np.int64), np.array(target, np.int64), number))
    return rows, len(pairs) - len(rows)


def buckets(
    lengths: NDArray[np.int64], size: int, pool: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """The batches of one epoch, each the numbers of ``size`` rows of like length, or fewer in one
    of them: a function of its arguments, in which every row comes once. ``lengths``: of each row.

    Rows are put into a random order; every ``pool`` batches of it are sorted by length and cut;
    then the batches come in a random order too.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches = []
    for first in range(0, len(order), size * pool):
        rows = order[first : first + size * pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + size] for i in range(0, len(rows), size)]
    return [batches[i] for i in rng.permutation(len(batches))]
