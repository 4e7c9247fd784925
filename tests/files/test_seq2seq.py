"""Folders of sequence-to-sequence models: our format, the tokenizers beside the weights."""

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm import Tokenizer
from addnorm.data.tokenizer import TokenizerError
from addnorm.data.tokenizer.pair import pair, read_pair
from addnorm.files.folders import CHECKSUMS, CONFIG, WeightsError
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.seq2seq_config import Seq2SeqConfig

TEXTS = [
    "The stream is normed.",
    "A branch reads what the norm leaves, and adds to it.",
    "No norm, no gain; every stream ends in a norm.",
] * 3


def model(**changes: Any) -> Seq2Seq:
    torch.manual_seed(0)
    sizes = {"dim": 16, "encoder_layers": 1, "decoder_layers": 1, "context_length": 40}
    return Seq2Seq(Seq2SeqConfig(**{"vocab_size": 260, **sizes, **changes})).eval()


def alike(one: Seq2Seq, other: Seq2Seq) -> bool:
    a, b = one.state_dict(), other.state_dict()
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return same and (one.config, one.rules) == (other.config, other.rules)


def test_any_design_comes_back_as_it_was(tmp_path: Path) -> None:
    one = model(scheme="sandwich", norm="rms", position="learned", tied=False, logits_bias=True)
    one.rules = dataclasses.replace(one.rules, banned=((0,), (3, 4)), most=9, forced_end=1)
    one.save_pretrained(tmp_path / "a")
    assert alike(Seq2Seq.from_pretrained(tmp_path / "a"), one)
    loaded = addnorm.load(tmp_path / "a")
    assert loaded.tokenizer is None
    assert alike(loaded.model, one)
    with pytest.raises(WeightsError, match=r"Marian's format cannot say .*scheme is sandwich"):
        one.save_pretrained(tmp_path / "b", format="marian")
    marian = model(scheme="post_norm", position="halves")
    addnorm.save(marian, tmp_path / "c")
    assert addnorm.load(tmp_path / "c").card["model_type"] == "marian"
    marian.save_pretrained(tmp_path / "d", format="addnorm")
    assert alike(Seq2Seq.from_pretrained(tmp_path / "d"), marian)
    with pytest.raises(WeightsError, match="has no labels"):
        addnorm.save(one, tmp_path / "e", labels=["x"])


def test_tokenizers_stand_beside_the_weights(tmp_path: Path) -> None:
    characters, bytes_ = Tokenizer.characters(TEXTS), Tokenizer.bytes()
    addnorm.save(model(), tmp_path / "one", tokenizer=bytes_)
    loaded = addnorm.load(tmp_path / "one")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.shared
    assert loaded.tokenizer.encode("ab") == [97, 98, 256]
    both = pair(characters, bytes_)
    model(vocab_size=50, target_vocab_size=260).save_pretrained(tmp_path / "two", tokenizer=both)
    loaded = addnorm.load(tmp_path / "two")
    assert not loaded.tokenizer.shared
    assert (loaded.tokenizer.source.identity, loaded.tokenizer.target.identity) == (
        characters.identity,
        bytes_.identity,
    )
    assert loaded.tokenizer.source_end == characters.vocab_size
    assert loaded.tokenizer.target_end == 256
    with pytest.raises(WeightsError, match="the tokenizer of the target has 257 tokens"):
        model(vocab_size=50).save_pretrained(tmp_path / "three", tokenizer=both)
    (tmp_path / "two" / "target_addnorm_tokenizer.json").write_text("{}")
    with pytest.raises((WeightsError, TokenizerError)):
        addnorm.load(tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 15}, "does not divide"),
        ({"rules": None}, "rules"),
        ({"rules": {"start": 0}}, "missing"),
        ({"model_type": "addnorm_seq"}, "addnorm_seq"),
        ({"context_length": "long"}, "context_length must be a whole number"),
    ],
    ids=str,
)
def test_a_damaged_card_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    model().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / CHECKSUMS).unlink()
    card = json.loads((tmp_path / "a" / CONFIG).read_text())
    (tmp_path / "a" / CONFIG).write_text(json.dumps(card | changes))
    with pytest.raises(WeightsError, match=message):
        Seq2Seq.from_pretrained(tmp_path / "a")


# --- SentencePiece --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source.spm, target.spm and vocab.json, as in Marian's folders."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    folder = tmp_path_factory.mktemp("pieces")
    names = dict[str, None]()
    for side, size in (("source", 45), ("target", 60)):
        data = io.BytesIO()
        trainer.train(
            sentence_iterator=iter(TEXTS),
            model_writer=data,
            vocab_size=size,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{side}.spm").write_bytes(data.getvalue())
        processor = sys.modules["sentencepiece"].SentencePieceProcessor(model_proto=data.getvalue())
        names |= dict.fromkeys(
            processor.id_to_piece(i) for i in range(3, processor.get_piece_size())
        )
    names = dict.fromkeys(("</s>", "<unk>", ">>de<<", *list(names)[:-4], "<pad>"))
    vocab = {name: i for i, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return folder


def test_pieces_are_those_of_transformers(pieces: Path, recwarn: Any) -> None:
    other = pytest.importorskip("transformers").MarianTokenizer.from_pretrained(pieces)
    ours = read_pair(pieces)
    assert ours is not None
    for text in [*TEXTS[:3], "", "  two   spaces ", ">>de<< A norm", "ﬁne ½ 日本", "the norm,norm"]:
        ids = ours.encode(text)
        assert ids == other(text)["input_ids"], text
        assert ours.target.decode(ids) == other.decode(ids, skip_special_tokens=True), text
        target = other(text_target=text)["input_ids"]
        assert [*ours.target.encode(text), ours.target_end] == target
    recwarn.clear()


def test_pieces_are_kept_with_the_model(pieces: Path, tmp_path: Path) -> None:
    both = read_pair(pieces)
    assert both is not None
    marian = model(scheme="post_norm", position="halves", vocab_size=both.source.vocab_size)
    marian.save_pretrained(tmp_path / "a", tokenizer=both)
    loaded = addnorm.load(tmp_path / "a")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("A norm") == both.encode("A norm")
    (tmp_path / "a" / "target.spm").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"target.spm"):
        addnorm.load(tmp_path / "a")


def test_what_is_wrong_with_pieces_is_said(
    pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in pieces.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "source.spm").write_bytes(b"damaged")
    both = read_pair(tmp_path)
    assert both is not None
    with pytest.raises(TokenizerError, match=r"source.spm is not SentencePiece's, or damaged"):
        both.encode("a")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(TokenizerError, match=r"vocab.json has no </s>"):
        read_pair(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    both = read_pair(pieces)  # what takes ids goes on working
    assert both is not None
    with pytest.raises(TokenizerError, match=r"needs sentencepiece: pip install 'addnorm\[trans"):
        both.encode("a")
