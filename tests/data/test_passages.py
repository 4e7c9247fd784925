"""Questions on passages: windows, the places of an answer, and the best span by brute force."""

import itertools

import numpy as np
import pytest
import torch

from addnorm.data.passages import (
    PassageReader,
    PassageWindow,
    Span,
    best_answer,
    best_spans,
    window_batch,
)
from addnorm.data.sources import DataError
from addnorm.data.tokenizer import Tokenizer, TokenizerError

TEXT = (
    "The Lámp at No. 16 is red, said Zoë;  the others -- 中文 \u200b灯 -- are e\u0301galement bleu."
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"{TEXT} what is the lamp like?"] * 3, 120, "wordpiece")


def test_each_token_is_where_it_says(tokenizer: Tokenizer) -> None:
    """Whatever is lost of the text, accents and case too; over the cuts of a long one."""
    for text in (TEXT, " ".join([TEXT] * 300)):
        ids, places = tokenizer.encode_with_places(text)
        assert ids == tokenizer.encode(text)
        ends = [end for _, end in places]
        assert all(a < b for a, b in places)
        assert ends == sorted(ends)
        last = len(text) - len(TEXT)
        again = [(a - last, b - last) for a, b in places if a >= last]
        assert [(TEXT[a:b], i) for (a, b), i in zip(again, ids[-len(again) :], strict=True)] == [
            (TEXT[a:b], i)
            for (a, b), i in zip(*reversed(tokenizer.encode_with_places(TEXT)), strict=True)
        ]
    words = {TEXT[a:b] for a, b in tokenizer.encode_with_places("The Lámp")[1]}
    assert "".join(sorted(words, key=TEXT.index)).startswith("TheL")
    with pytest.raises(TokenizerError, match="kind 'bytes' does not say where its tokens are"):
        Tokenizer.bytes().encode_with_places("a")


@pytest.mark.parametrize("stride", [None, 1, 4, 99])
@pytest.mark.parametrize("length", [24, 31, 500])
def test_windows(tokenizer: Tokenizer, length: int, stride: int | None) -> None:
    reader = PassageReader(tokenizer, length)
    query, passage = reader.tokens("what?"), reader.tokens(TEXT)
    windows = reader.windows(query, passage, stride)
    room = length - len(query.ids) - 3
    step = min(stride or room // 2, room)
    begin, end = tokenizer.role_id("cls"), tokenizer.role_id("sep")
    for w in windows:
        part = passage.ids[w.first : w.first + w.size]
        assert w.ids.tolist() == [begin, *query.ids, end, *part, end]
        assert w.types.tolist() == [0] * (len(query.ids) + 2) + [1] * (w.size + 1)
        assert w.ids[w.place : w.place + w.size].tolist() == part.tolist()
    assert windows[0].first == 0
    assert windows[-1].first + windows[-1].size == len(passage.ids)
    assert all(b.first - a.first == step for a, b in itertools.pairwise(windows))
    assert all(w.size == room for w in windows[:-1])
    assert (len(windows) == 1) == (len(passage.ids) <= room)
    batch = window_batch([*windows, windows[0]._replace(ids=windows[0].ids[:5])])
    assert batch["valid"].sum(1).tolist() == [*(len(w.ids) for w in windows), 5]


def test_a_question_that_leaves_no_room(tokenizer: Tokenizer) -> None:
    reader = PassageReader(tokenizer, 24)
    passage = reader.tokens(TEXT)
    with pytest.raises(DataError, match=r"the question has \d+ tokens, and the model reads 24"):
        reader.windows(reader.tokens("what is the lamp like? " * 4), passage)
    with pytest.raises(TokenizerError, match="a BERT needs WordPiece"):
        PassageReader(Tokenizer.bytes(), 24)


def test_where_an_answer_is(tokenizer: Tokenizer) -> None:
    """Every stretch of the text: the tokens that have any of its characters, if the window has all
    of these."""
    reader = PassageReader(tokenizer, 20)
    passage = reader.tokens(TEXT)
    windows = reader.windows(reader.tokens("what?"), passage)
    assert len(windows) > 2
    for start, end in itertools.combinations(range(len(TEXT) + 1), 2):
        spans = zip(passage.starts, passage.ends, strict=True)
        touched = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
        for w in windows:
            inside = touched and w.first <= touched[0] and touched[-1] < w.first + w.size
            shift = w.place - w.first
            want = (touched[0] + shift, touched[-1] + shift) if inside else (0, 0)
            assert w.places(passage, start, end) == want


def window(place: int, size: int, first: int = 0) -> PassageWindow:
    ids = np.arange(place + size + 1)
    return PassageWindow(ids, ids * 0, place, first, size)


@pytest.mark.parametrize("longest", [1, 3, 64])
def test_the_best_span_by_brute_force(longest: int) -> None:
    windows = [window(3, 9), window(5, 2), window(4, 0), window(2, 10)]
    logits = torch.randn(4, 13, 2, generator=torch.Generator().manual_seed(longest)).round()
    spans = best_spans(logits, windows, longest)
    for w, rows, (null, best, begin, end) in zip(windows, logits, spans.tolist(), strict=True):
        assert null == rows[0].sum()
        places = range(w.place, w.place + w.size)
        every = [
            (float(rows[i, 0] + rows[j, 1]), -i, -j)
            for i in places
            for j in places
            if i <= j < i + longest
        ]
        if every:
            assert (best, begin, end) == (max(every)[0], -max(every)[1], -max(every)[2])
        else:
            assert best == -torch.inf
    logits[0, 4, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="the scores of an answer are not finite"):
        best_spans(logits, windows, longest)


def test_the_answer_over_the_windows(tokenizer: Tokenizer) -> None:
    """The best span counts, and the least score of no answer."""
    passage = PassageReader(tokenizer, 24).tokens(TEXT)
    windows = [window(3, 4), window(3, 4, first=6)]
    rows = torch.tensor([[5.0, 1.0, 3, 3], [2.0, 4.5, 4, 5]])
    span = best_answer(rows, windows, passage, 2.5)
    assert span == Span(int(passage.starts[7]), int(passage.ends[8]), 2.5)
    assert best_answer(rows, windows, passage, 2.6) == Span(None, None, 2.5)
    nothing = torch.tensor([[5.0, -torch.inf, 0, 0]])
    span = best_answer(nothing, windows[:1], passage, -torch.inf)
    assert (span.start, span.end) == (None, None)
