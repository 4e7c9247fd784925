"""Tokenizers of all kinds, and a prepared data set."""

import json

import pytest

from addnorm.data import preparation
from addnorm.data.preparation import prepare
from addnorm.data.sources import Texts
from addnorm.data.tokenizer import Tokenizer
from tests.data.samples import END, ODD, SAMPLE

# What splits text into words in GPT-4 and most models since; punctuation takes newlines with it.
GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def small():
    """A BPE with GPT-2's words."""
    return Tokenizer.train(SAMPLE * 2, vocab_size=330)


@pytest.fixture(scope="module")
def modern(small, tmp_path_factory):
    """A BPE with GPT-4's words, and merges that go from punctuation into the next line."""
    folder = tmp_path_factory.mktemp("modern")
    small.save(folder)
    (folder / "addnorm_tokenizer.json").unlink()
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    newline = "\u010a"  # GPT-2's way of writing it
    model, end = data["model"], data["added_tokens"][0]
    tokens = sorted(model["vocab"].keys() - {END}, key=model["vocab"].__getitem__)
    for pair in ([".", newline], [f".{newline}", newline], [newline, newline]):
        if "".join(pair) not in tokens:
            tokens.append("".join(pair))
            model["merges"].append(pair)
    model["vocab"] = {token: i for i, token in enumerate(tokens)}
    data["added_tokens"] = [{**end, "id": len(tokens)}]
    data["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": GPT4_WORDS},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def composed(small, tmp_path_factory):
    """A BPE with GPT-2's words of the text in NFC, as Pythia's."""
    folder = tmp_path_factory.mktemp("composed")
    small.save(folder)
    (folder / "addnorm_tokenizer.json").unlink()
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def kinds(small, modern, composed):
    return {
        "composed": composed,
        "bpe": small,
        "modern": modern,
        "characters": Tokenizer.characters(SAMPLE + "".join(ODD)),
        "bytes": Tokenizer.bytes(),
    }


@pytest.fixture
def sample(tmp_path):
    """A prepared data set in several shards."""
    source = Texts([SAMPLE * (i + 1) for i in range(30)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "SHARD", 10_000)
        return source, prepare(source, Tokenizer.bytes(), tmp_path / "cache")
