"""What is for training and what is held out: nothing lost, nothing twice."""

import hashlib
import json

import pytest

from addnorm.data.preparation import prepare
from addnorm.data.sources import DataError, Texts, open_source
from addnorm.data.tokenizer import Tokenizer
from tests.data.samples import END, SAMPLE, SHARED, stored
from tests.references import bpe


@pytest.mark.parametrize("kind", ["bpe", "modern", "characters", "bytes"])
@pytest.mark.parametrize("rule", ["documents", "tail"])
def test_each_document_is_there_once_and_whole(tmp_path, kinds, kind, rule):
    tokenizer = kinds[kind]
    texts = [SAMPLE[a : a + 5 * a + 7] for a in range(40)]
    prepared = prepare(Texts(texts), tokenizer, tmp_path, split=rule)
    begin = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if rule == "tail":
        cuts = [int(len(text) * 0.9) for text in texts]
        expected = {
            "train": [text[:cut] for text, cut in zip(texts, cuts, strict=True)],
            "val": [text[cut:] for text, cut in zip(texts, cuts, strict=True)],
        }
    else:
        hashes = [hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in texts]
        val = [int(h, 16) < 0.1 * 2**64 for h in hashes]
        assert 0 < sum(val) < 20
        expected = {
            "train": [text for text, v in zip(texts, val, strict=True) if not v],
            "val": [text for text, v in zip(texts, val, strict=True) if v],
        }
    for name, parts in expected.items():
        assert stored(prepared, name) == [begin + tokenizer.encode(part) for part in parts]
        tokens, told = prepared.split(name), prepared.summary.splits[name]
        assert tokens.documents == told.documents == len(parts) == len(tokens.starts)
        assert tokens.bytes == told.bytes == sum(len(part.encode()) for part in parts)
        assert len(tokens) == told.tokens
    assert prepared.summary.rule == rule
    assert f"{len(prepared.split('val')):,} tokens" in str(prepared.summary)


def test_auto_keeps_documents_whole_if_there_are_enough(tmp_path):
    def rule(texts):
        return prepare(Texts(texts), Tokenizer.bytes(), tmp_path).summary.rule

    assert rule([f"text {i} of a few" for i in range(19)]) == "tail"
    assert rule([f"text {i} of a few" for i in range(20)]) == "documents"
    assert rule(["the same text again"] * 20) == "tail"


def test_more_documents_move_none_and_copies_stay_together(tmp_path):
    tokenizer = Tokenizer.bytes()

    def sides(texts):
        prepared = prepare(Texts(texts), tokenizer, tmp_path, split="documents", val_fraction=0.3)
        return [
            {tokenizer.decode(ids[1:]) for ids in stored(prepared, n)} for n in ("train", "val")
        ]

    few = [f"document {i}" for i in range(30)]
    train, val = sides(few)
    more_train, more_val = sides(few[::-1] + [f"new {i}" for i in range(70)] + few)
    assert train | val == {*few}
    assert train < more_train
    assert val < more_val
    assert not more_train & more_val


def test_no_side_is_empty(tmp_path):
    for fraction in (1e-9, 0.999999):
        source = Texts([f"document {i}" for i in range(5)] * 2)
        prepared = prepare(
            source, Tokenizer.bytes(), tmp_path, split="documents", val_fraction=fraction
        )
        counts = [prepared.split(name).documents for name in ("train", "val")]
        assert sorted(counts) == [2, 8]
        assert (counts[0] > counts[1]) == (fraction < 0.5)
    with pytest.raises(DataError, match=r"texts is one document: split it by tail"):
        prepare(Texts(["one"]), Tokenizer.bytes(), tmp_path, split="documents")
    with pytest.raises(DataError, match=r"texts is copies of one document"):
        prepare(Texts(["one"] * 30), Tokenizer.bytes(), tmp_path, split="documents")
    with pytest.raises(DataError, match=r"too short to split.* nothing is left for train"):
        prepare(Texts(["a"]), Tokenizer.bytes(), tmp_path)


@pytest.mark.parametrize(
    ("kind", "train", "val"), [("gpt2", 301_966, 36_059), ("characters", 1_003_854, 111_540)]
)
def test_shakespeare_has_the_tokens_that_nanogpt_counts(tmp_path, kind, train, val):
    path = SHARED / "tinyshakespeare.txt"
    if not path.exists() or not (SHARED / "gpt2").is_dir():
        pytest.skip(f"needs {path} and GPT-2's vocab.json and merges.txt beside it")
    gpt2 = kind == "gpt2"
    made = Tokenizer.from_pretrained(SHARED / "gpt2") if gpt2 else Tokenizer.characters(path)
    prepared = prepare(open_source(str(path)), made, tmp_path)
    # nanoGPT's readme; and our end-of-text token in front, where the tokenizer has one
    assert [len(prepared.split(name)) for name in ("train", "val")] == [train + gpt2, val + gpt2]
    text = path.read_text(encoding="utf-8")
    assert stored(prepared, "val")[0][gpt2:] == made.encode(text[int(len(text) * 0.9) :])


def test_a_text_has_the_tokens_that_nanogpts_preparation_counts(tmp_path):
    """Its first nine tenths and its last one, each encoded for itself by GPT-2's tokenizer: here by
    the reference and a vocabulary that it learned; and our end-of-text token in front."""
    merges = bpe.train([SAMPLE], merges=1000, min_frequency=2)
    (tmp_path / "gpt2").mkdir()
    bpe.write(tmp_path / "gpt2", merges)
    vocab = json.loads((tmp_path / "gpt2/vocab.json").read_text(encoding="utf-8"))
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    text = "".join(SAMPLE[i:] + SAMPLE[:i] for i in range(0, 200, 7))
    (tmp_path / "text.txt").write_bytes(text.encode())
    tokenizer = Tokenizer.from_pretrained(tmp_path / "gpt2")
    prepared = prepare(open_source(str(tmp_path / "text.txt")), tokenizer, tmp_path / "cache")
    cut = int(len(text) * 0.9)
    for name, part in (("train", text[:cut]), ("val", text[cut:])):
        want = [vocab[END], *bpe.encode(part, vocab, ranks)]
        assert len(prepared.split(name)) == len(want)
        assert stored(prepared, name) == [want]
