"""WordPiece: equal to transformers' BertTokenizer, learned the same each time, refused by name."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from addnorm.data.tokenizer import Tokenizer, TokenizerError
from addnorm.data.tokenizer.wordpiece import ROLES

SAMPLE = """The cat sat on the mat; the hat that the cat had sat on was flat. Naïve CAFÉ, café!
We'll say it's the cat's. 12 123 1234! 今天天气很好。今天我们去看电影。 [MASK] ##cat unaffable
"""
VOCABULARY = [*ROLES.values(), *"abcdefghijklmnopqrstuvwxyz'.,;!#[]12天气今", "the", "cat", "##s"]
VOCABULARY += ["##at", "CAFÉ", "The", "naive", "un", "##aff", "##able", *(f"##{c}" for c in "abt")]


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return Tokenizer.train(SAMPLE * 3, vocab_size=140, kind="wordpiece")


@pytest.mark.parametrize(
    "options", [{}, {"do_lower_case": False}, {"tokenize_chinese_chars": False}]
)
def test_a_published_vocabulary_gives_transformers_ids(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours = Tokenizer.from_pretrained(tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    text = SAMPLE.replace("[MASK]", "mask")  # as text it is text here, and a token there
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    cased = options == {"do_lower_case": False}
    assert ours.decode(ids[:3]) == ("The cat s" if cased else "the cat s")
    theirs.save_pretrained(tmp_path / "again")
    again = Tokenizer.from_pretrained(tmp_path / "again")
    assert again.identity == ours.identity  # vocab.txt or tokenizer.json: the same
    ours.save(tmp_path / "ours")
    (tmp_path / "ours" / "config.json").write_text('{"model_type": "bert"}')
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert back(text)["input_ids"] == theirs(text)["input_ids"]


def test_what_is_learned(learned: Tokenizer, tmp_path: Path) -> None:
    again = Tokenizer.train(SAMPLE * 3, vocab_size=140, kind="wordpiece")
    assert again.identity == learned.identity
    assert learned.vocab_size <= 140
    assert not learned.exact
    assert learned.special == {token: i for i, token in enumerate(ROLES.values())}
    assert [learned.role_id(role) for role in ("cls", "sep", "mask")] == [2, 3, 4]
    assert (learned.eos_id, learned.pad_id) == (3, 0)
    ids = learned.encode("The CAT sat: 今天")
    assert learned.decode(ids) == "the cat sat [UNK] 今 天"
    assert learned.encode("[MASK]", allow_special=True) == [4]
    assert 4 not in learned.encode("[MASK]")
    assert learned.encode_batch([SAMPLE, ""]) == [learned.encode(SAMPLE), []]
    long = SAMPLE * 400  # more than one piece
    assert learned.encode(long) == learned.encode(SAMPLE) * 400
    learned.save(tmp_path)
    for copy in (Tokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(learned))):
        assert (copy.identity, copy.encode(SAMPLE)) == (learned.identity, learned.encode(SAMPLE))


def test_case_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    text = SAMPLE.replace("[MASK]", "mask") * 3 + " ls -a ls -A" * 3
    cased = Tokenizer.train(text, vocab_size=160, kind="wordpiece-cased")
    assert cased.cased
    assert cased.kind == "wordpiece"
    assert not Tokenizer.train(text, vocab_size=160, kind="wordpiece").cased
    assert cased.encode("-a") != cased.encode("-A")
    assert cased.decode(cased.encode("ls -A")) == "ls - A"
    cased.save(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).identity == cased.identity
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text, add_special_tokens=False) == cased.encode(text)


def test_rare_characters_give_way() -> None:
    text = "".join(chr(0x4E00 + i) * (2 if i < 500 else 9) for i in range(600))
    few = Tokenizer.train(text, vocab_size=200, kind="wordpiece")
    assert few.vocab_size <= 200
    assert few.role_id("mask") == 4
    assert few.encode(chr(0x4E00 + 550)) != few.encode(chr(0x4E00 + 300)) == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no token"),
        ("a\nb\na\n", "line 3: 'a' is in line 1 as well"),
        ("a\nb\n[UNK]\n", r"no \[PAD\], \[CLS\], \[SEP\] and 1 more, which a BERT needs"),
    ],
)
def test_vocabularies_that_are_damaged(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": None}, "only BERT's WordPiece is read here, found normalizer None"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer {'type': 'Whitespace'}"),
        ({"added_tokens": [{"id": 9, "content": "hm"}]}, "the added token .* is damaged"),
        ({"added_tokens": [{"id": 999, "content": "hm"}]}, "'hm', which is not special"),
        ({"model": {"type": "WordPiece"}}, "has no vocabulary: it is damaged"),
    ],
)
def test_files_of_other_tokenizers(
    learned: Tokenizer, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    learned.save(tmp_path)
    (tmp_path / "addnorm_tokenizer.json").unlink()
    file = tmp_path / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["vocab"]["hm"] = 999
    file.write_text(json.dumps({**data, **changes}))
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_pretrained(tmp_path)


def test_what_cannot_be_learned() -> None:
    with pytest.raises(TokenizerError, match="vocab_size is 99: at least 100 are learned"):
        Tokenizer.train(SAMPLE, vocab_size=99, kind="wordpiece")
    with pytest.raises(TokenizerError, match="there is no text"):
        Tokenizer.train(" \n", vocab_size=200, kind="wordpiece")
    with pytest.raises(TokenizerError, match="kind 'bytes' has no token for mask: a BERT needs"):
        Tokenizer.bytes().role_id("mask")
