"""Text to the bytes of its ids: cut where it does not show, remembered, and the same again."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addnorm.data import cuts, packing
from addnorm.data.preparation import prepare
from addnorm.data.sources import DataError, Texts
from addnorm.data.tokenizer import Tokenizer
from tests.data.samples import SAMPLE, Parts, quick, stored, texts


@pytest.mark.parametrize("kind", ["bpe", "modern", "characters", "bytes"])
@pytest.mark.parametrize("rule", ["documents", "tail"])
@settings(quick, max_examples=30)
@given(parts=st.lists(texts, min_size=1, max_size=5), margin=st.sampled_from([6, 12]))
def test_a_document_in_parts_has_the_ids_of_the_whole(tmp_path, kinds, kind, rule, parts, margin):
    """The margin is small, so that short texts are cut."""
    whole = "".join(parts)
    if len(whole) < 10 or whole == "another":
        return
    tokenizer = kinds[kind]
    shutil.rmtree(tmp_path, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "MARGIN", margin)
        patch.setattr(packing, "BATCH", 30)
        prepared = prepare(Parts(parts), tokenizer, tmp_path, split=rule, val_fraction=0.3)
    begin = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    found = stored(prepared, "train") + stored(prepared, "val")
    if rule == "documents":
        expected = [whole, "another"]
    else:
        pairs = [(text, int(len(text) * (1 - 0.3))) for text in (whole, "another")]
        expected = [text[:cut] for text, cut in pairs] + [text[cut:] for text, cut in pairs]
    assert sorted(found) == sorted(begin + tokenizer.encode(text) for text in expected)


def test_long_documents_are_cut_where_it_does_not_show(kinds, monkeypatch):
    text = SAMPLE * 20
    for kind in ("bpe", "modern"):
        encoder = packing.encoder_for(kinds[kind])
        place = encoder.cut(text)
        assert len(text) - 2 * cuts.MARGIN < place <= len(text) - cuts.MARGIN
        assert text[place].isspace()
    # Between a full stop and a newline lies a word of GPT-4: only the other places are harmless.
    assert isinstance(packing.encoder_for(kinds["bpe"]), packing._ByWords)
    assert isinstance(encoder, packing._ByPairs)
    monkeypatch.setattr(cuts, "TRIES", 50)
    stops = "a.\n" * 1000
    assert packing.encoder_for(kinds["bpe"]).cut(stops) > 0
    assert encoder.cut(stops) == 0
    assert encoder.cut(f"a b{stops[:700]}") == 1


@pytest.mark.parametrize("kind", ["bpe", "modern", "composed", "characters", "bytes"])
def test_one_long_part_is_cut_too(tmp_path, kinds, monkeypatch, kind):
    monkeypatch.setattr(packing, "ENCODING_LIMIT", 100)
    monkeypatch.setattr(cuts, "MARGIN", 15)
    tokenizer, pieces = kinds[kind], []
    encode = Tokenizer.encode_batch

    def count(self, texts):
        pieces.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", count)
    text = SAMPLE * 9
    prepared = prepare(Texts([text]), tokenizer, tmp_path)
    assert all(len(piece) <= 100 for piece in pieces)
    cut = int(len(text) * 0.9)
    begin = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    assert stored(prepared, "train") == [begin + encode(tokenizer, [text[:cut]])[0]]
    assert stored(prepared, "val") == [begin + encode(tokenizer, [text[cut:]])[0]]


def test_what_cannot_be_cut_is_cut_anywhere_in_the_end(kinds, monkeypatch):
    monkeypatch.setattr(packing, "ENCODING_LIMIT", 5000)
    encoder = packing.encoder_for(kinds["bpe"])
    assert encoder.cut("x" * 4999) == 0
    assert encoder.cut("x" * 5000) == 5000


@pytest.mark.parametrize("kind", ["bpe", "composed"])
@settings(quick, max_examples=150)
@given(rows=st.lists(st.lists(texts | st.text(max_size=9), max_size=4), min_size=1, max_size=4))
def test_remembered_words_have_the_ids_of_the_text(kinds, kind, rows):
    tokenizer = kinds[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "REMEMBERED", 40)
        encoder = packing.encoder_for(tokenizer)
        assert isinstance(encoder, packing._ByWords)
        for batch in rows:
            found = [np.frombuffer(ids, "<u2").tolist() for ids in encoder.encode(batch)]
            assert found == tokenizer.encode_batch(batch)


def test_words_are_forgotten_but_not_those_in_use(kinds, monkeypatch):
    monkeypatch.setattr(packing, "REMEMBERED", 1000)
    encoder = packing.encoder_for(kinds["bpe"])
    encode, asked = encoder._pairs.encode, []

    def count(new):
        asked.extend(new)
        return encode(new)

    monkeypatch.setattr(encoder._pairs, "encode", count)
    for i in range(100):
        encoder.encode(["the cat" + "".join(f" {chr(97 + j) * (i % 50 + 1)}" for j in range(20))])
    assert asked.count(" cat") == 1
    assert asked.count(" aaaaaaa") == 2
    assert sum(map(len, encoder._recent)) + sum(map(len, encoder._older)) < 5000


def test_a_character_that_the_tokenizer_does_not_have(tmp_path):
    tokenizer = Tokenizer.characters("abc ")
    with pytest.raises(
        DataError, match=r"texts: not in this tokenizer's vocabulary .*'x' \(U\+0078"
    ):
        prepare(Texts(["abc abx"]), tokenizer, tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("mark", ["<|user|>", "x"])
def test_special_tokens_of_characters_are_none_of_the_text(mark):
    tokenizer = Tokenizer.characters("abcx").with_special([mark])
    ids = np.frombuffer(packing.encoder_for(tokenizer).encode(["cabx"])[0], "<u2")
    assert ids.tolist() == tokenizer.encode("cabx")


def test_large_vocabularies_need_four_bytes(tmp_path, kinds, monkeypatch):
    small = prepare(Texts([SAMPLE]), kinds["modern"], tmp_path / "small")
    encode = Tokenizer.encode_batch

    def large(self, texts):
        return [[i + 70_000 for i in ids] for ids in encode(self, texts)]

    monkeypatch.setattr(Tokenizer, "vocab_size", 71_000)
    monkeypatch.setattr(Tokenizer, "encode_batch", large)
    prepared = prepare(Texts([SAMPLE]), kinds["modern"], tmp_path / "large")
    for name in ("train", "val"):
        one, two = small.split(name), prepared.split(name)
        (eos, *ids), (same, *more) = one.read(0, len(one)), two.read(0, len(two))
        assert [i + 70_000 for i in map(int, ids)] == [*map(int, more)]
        assert eos == same
        assert one.read(0, 1).dtype == np.dtype("<u2")
        assert two.read(0, 1).dtype == np.dtype("<u4")
