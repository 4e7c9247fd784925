"""Tokenizers: equal to the straight-line BPE, nothing lost either way, nothing wrong unsaid."""

import codecs
import itertools
import json
import os
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from addnorm.data.tokenizer import Tokenizer, TokenizerError, corpus
from addnorm.data.tokenizer import bpe as bpe_file
from addnorm.data.tokenizer import tokenizer as tokenizer_file
from tests.references import bpe

END = "<|endoftext|>"
GPT2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2"
SAMPLE = """The cat sat on the mat; the hat that the cat had sat on was flat.
We'll say it's the cat's, they've said, and I'm sure she'd know. 12 123 1234!

日本語の日本は日本。 Ünïcödé ünïcödé 🙂🙂 🙂
    def the(cat):\r\n\treturn cat + "the"   # the   cat
"""

# Merges of marks, whose lines in merges.txt begin as its first one does, of white space, digits,
# contractions, and of bytes inside of characters and across them.
MORE = """## # ## ### #### # the cats the cat's we'll we've they'd I'm you're the the at at on on
    the    cat     sat\n\n\n\n\t\t on\t\tthe   mat\r\n\r\n 12 123 1234 12 1234 10 100 1000 2024 2024
日本語の文章。日本語の文章。 Привет, мир! Привет, мир! 👩‍👩‍👧👩‍👩‍👧 🇩🇪🇩🇪 éé ééé e\u0301e\u0301
\u00a0\u00a0\u3000\u3000 ٣٤٥ ٣٤٥ ½½ ²² \0\0 \x1c\x1c \x85\x85 <|endoftext|><|endoftext|>
"""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that would ask the hub fails instead."""
    import huggingface_hub

    def asked(*args, **kwargs):
        pytest.fail("asked the hub")  # no Exception, which the tokenizer would take for the hub's

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)


def files(folder: Path):
    """The vocabulary and the rank of each merge, read by hand."""
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines[1:] if line]
    return vocab, {pair: rank for rank, pair in enumerate(pairs)}


@pytest.fixture(scope="module", params=["learned here", "OpenAI's"])
def gpt2_folder(request, tmp_path_factory):
    """A vocabulary in GPT-2's two files: one that the reference learned and wrote, and GPT-2's."""
    if request.param == "learned here":
        folder = tmp_path_factory.mktemp("gpt2")
        bpe.write(folder, bpe.train([SAMPLE, MORE], merges=1000, min_frequency=2))
        return folder
    if not GPT2.is_dir():
        pytest.skip(f"needs vocab.json and merges.txt of GPT-2 in {GPT2}")
    return GPT2


@pytest.fixture(scope="module")
def gpt2(gpt2_folder):
    return Tokenizer.from_pretrained(gpt2_folder)


@pytest.fixture(scope="module")
def gpt2_files(gpt2_folder):
    return files(gpt2_folder)


@pytest.fixture(scope="module")
def transformers_gpt2(gpt2_folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.GPT2Tokenizer.from_pretrained(gpt2_folder)


@pytest.fixture(scope="module")
def small():
    """A BPE of our own, with 60 merges."""
    return Tokenizer.train(SAMPLE * 2, vocab_size=317)


@pytest.fixture(scope="module")
def data(small):
    """The ``tokenizer.json`` of ``small``."""
    return json.loads(small._kind._engine.to_str())


@pytest.fixture(scope="module")
def everything(small):
    """One tokenizer of each kind."""
    return {"bpe": small, "characters": Tokenizer.characters(SAMPLE), "bytes": Tokenizer.bytes()}


def write(folder: Path, **contents) -> Path:
    """A folder with files; what is not text is written as JSON. __ in a name stands for its dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def changed(data, **changes):
    """A deep copy of a ``tokenizer.json`` with some entries replaced; model__x is one of model."""
    copy = json.loads(json.dumps(data))
    for name, value in changes.items():
        if name.startswith("model__"):
            copy["model"][name.removeprefix("model__")] = value
        else:
            copy[name] = value
    return copy


def added(content, id, special=True, **flags):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, **flags}
    return {"id": id, "content": content, **flags, "special": special}


# Assigned in every version of Unicode since 3.2: what letter and number mean for a character that
# is newer depends on who knows it. Emoji are newer, but no letters in any version.
OLD = st.characters(exclude_categories=["Cs"]).filter(
    lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn"
)
HARD = st.sampled_from([*" \n\t\r'sStTlmvered", "'ll", "'VE", "  ", "\u3000", "\x1c", "\x85", "\0"])
EMOJI = st.sampled_from(["🙂", "👩‍👩‍👧", "🇩🇪", "👍🏽", "é", "e\u0301", "日本", "١٢", "Ⅷ", "²"])
TEXT = st.lists(HARD | OLD | EMOJI, max_size=30).map("".join)
# Fixtures are made once and never changed, so that it does no harm that examples share them.
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


# --- GPT-2 ----------------------------------------------------------------------------------------


def test_gpt2_gives_the_ids_that_everybody_knows(gpt2, gpt2_files):
    for text, i in {"!": 0, "'": 6, "0": 15, "A": 32, "a": 64, "\n": 198, " ": 220}.items():
        assert gpt2.encode(text) == [i]
    assert gpt2.eos_id == len(gpt2) - 1 == 256 + len(gpt2_files[1])
    if len(gpt2) != 50257:
        return
    known = {
        "Hello world": [15496, 995],
        "Hello, world!": [15496, 11, 995, 0],
        " Hello": [18435],
        "The quick brown fox jumps over the lazy dog.": [
            *(464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13)
        ],
        "\n": [198],
        "\n\n": [628],
        "": [],
    }
    assert {text: gpt2.encode(text) for text in known} == known
    assert gpt2.encode(END, allow_special=True) == [50256]
    assert gpt2.encode(END) == [27, 91, 437, 1659, 5239, 91, 29]  # < | end of text | >
    assert (len(gpt2), gpt2.vocab_size, gpt2.eos_id, gpt2.pad_id) == (50257, 50257, 50256, None)
    assert gpt2.token_bytes(18435) == b" Hello"
    assert gpt2.special == {END: 50256}


@pytest.mark.parametrize(
    "text",
    [
        "🙂 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 1️⃣ ☃\ufe0f",
        "日本語の文章。中文沒有空格 한국어 문장 ไทย",
        "Привет, мир! שלום עולם مرحبا १२३ ٣٤٥ Ⅷ ½ ²³",
        "a b  c   d    e \t f\t\tg \n h\n\ni\n\n\nj \r\n k\r\n\r\nl   ",
        "   leading, trailing   \n   ",
        "\u00a0x\u2003y\u3000z\u2028w\u1680v\x85u \u00a0 \u2003\n",
        "\0\x01\x07\x08\x1b[31m\x7f\x80\x9f\ufeff\ufffe\ufffd\U0010ffff",
        "a\x1cb \x1d c\x1e\x1e d\x1f",
        "I'm you're he's we'll they'd I've don't I'M DON'T 'tis ''s '' 're''ll x'sy 'S' 's",
        "\u2019s \u2018t` it\u2019s",
        "snake_case CamelCase x1y2 3.14 1,000,000 10% #!/bin/sh -- ... ????? (((x)))",
        "e\u0301 u\u0308 é ü a\u0300\u0301\u0302 \u0301x",
        "\n\n\n", " ", "  ", " \n", "\n ", "a ", " a", "a  ", "  a", "\t a", " \u3000a",
        "antidisestablishmentarianism" * 4,
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "<|endoftext|> <|endoftext|><|endoftext|x",
    ],
)  # fmt: skip
def test_gpt2_equals_the_reference(gpt2, gpt2_files, text):
    expected = bpe.encode(text, *gpt2_files)
    assert gpt2.encode(text) == expected
    assert gpt2.decode(expected) == text


@SHARED
@given(text=TEXT)
def test_gpt2_equals_the_reference_on_any_text(gpt2, gpt2_files, text):
    assert gpt2.encode(text) == bpe.encode(text, *gpt2_files)


def test_gpt2_in_two_files_has_all_of_them(gpt2, gpt2_files):
    """No merge is lost, not even those whose lines look like the header."""
    vocab, ranks = gpt2_files
    assert ("#", "#") in ranks
    assert gpt2.encode("##") == [vocab["##"]]
    assert gpt2._kind.merges == list(ranks)
    assert {**gpt2._kind.vocab, **gpt2.special} == vocab


@SHARED
@given(text=st.lists(TEXT | st.just(END), max_size=3).map("".join))
def test_gpt2_is_transformers(gpt2, transformers_gpt2, text):
    """Their GPT2Tokenizer reads the same files; with the end of text as text, and as its token."""
    ids = gpt2.encode(text)
    assert transformers_gpt2.encode(text, split_special_tokens=True) == ids
    special = gpt2.encode(text, allow_special=True)
    assert transformers_gpt2.encode(text) == special
    for some in (ids, special):
        assert transformers_gpt2.decode(some, clean_up_tokenization_spaces=False) == text


@SHARED
@given(text=TEXT)
def test_the_references_words_are_those_of_gpt2s_expression(text):
    """As OpenAI published it, run by another engine."""
    regex = pytest.importorskip("regex", reason="regex is not installed")
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    assert bpe.split(text) == regex.findall(words, text)


def test_every_token_has_the_bytes_of_the_reference(gpt2, gpt2_files):
    vocab, _ = gpt2_files
    for token, i in vocab.items():
        assert gpt2.token_bytes(i) == bpe.token_bytes(token)


def test_gpt2_invalid_bytes(gpt2, gpt2_files):
    vocab, ranks = gpt2_files
    byte = {b: vocab[c] for b, c in enumerate(bpe.byte_characters())}
    valid, hello = bpe.encode("日本", vocab, ranks), bpe.encode(" Hello", vocab, ranks)
    ids = gpt2.encode_bytes(b"\xff\xfe" + "日本".encode() + b"\xe6\x97 Hello")
    assert ids == [byte[0xFF], byte[0xFE], *valid, byte[0xE6], byte[0x97], *hello]
    assert gpt2.decode(ids) == "\ufffd\ufffd日本\ufffd Hello"


# --- there and back -------------------------------------------------------------------------------

KINDS = pytest.mark.parametrize("kind", ["bpe", "characters", "bytes"])


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
@SHARED
@given(text=st.text() | TEXT)
def test_decode_gives_back_every_text(everything, kind, text):
    tokenizer = everything[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.encode_bytes(text.encode()) == ids
    assert not {*ids} & {*tokenizer.special.values()}


@SHARED
@given(text=st.text(alphabet=SAMPLE))
def test_characters_give_back_every_text_of_theirs(everything, text):
    tokenizer = everything["characters"]
    ids = tokenizer.encode(text)
    assert ids == [sorted({*SAMPLE}).index(c) for c in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_bytes(text.encode()) == ids


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
@SHARED
@given(data=st.binary() | st.lists(st.binary() | TEXT.map(str.encode)).map(b"".join))
def test_decode_bytes_gives_back_all_bytes(everything, kind, data):
    tokenizer = everything[kind]
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


@KINDS
@SHARED
@given(data=st.data())
def test_the_stream_is_decode(everything, kind, data):
    tokenizer = everything[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1)))
    stream, told, seen = tokenizer.stream(), "", b""
    for i in ids:
        told += stream.push(i)
        seen += tokenizer.token_bytes(i)
        # all that is decided, and no more: a decoder that gets everything at once agrees
        assert told == codecs.getincrementaldecoder("utf-8")("replace").decode(seen)
    told += stream.flush()
    assert told == tokenizer.decode(ids)
    assert stream.flush() == ""
    assert "".join(map(stream.push, ids)) + stream.flush() == told  # it can be used again


def test_the_stream_waits_for_whole_characters():
    tokenizer = Tokenizer.bytes()
    stream = tokenizer.stream()
    assert [stream.push(i) for i in tokenizer.encode("aé€🙂b")] == [
        *("a", "", "é", "", "", "€", "", "", "", "🙂", "b")
    ]
    assert [stream.push(i) for i in (0xF0, 0x9F, 0x41)] == ["", "", "\ufffdA"]
    assert (stream.push(0xE2), stream.push(0x82), stream.flush()) == ("", "", "\ufffd")
    assert (stream.push(0xE2), stream.push(256), stream.flush()) == ("", "\ufffd" + END, "")


@KINDS
def test_many_at_once(everything, kind):
    tokenizer = everything[kind]
    texts = ["the cat", "", "日本", "sat on", SAMPLE]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(iter(texts)) == tokenizer.encode_batch(texts)
    assert tokenizer.encode_batch([]) == []


@KINDS
def test_ids_may_come_from_anywhere(everything, kind):
    tokenizer = everything[kind]
    ids = tokenizer.encode("the cat")
    for form in (iter(ids), tuple(ids), np.array(ids), torch.tensor(ids)):
        assert tokenizer.decode(form) == "the cat"
    assert tokenizer.decode([]) == ""


# --- large texts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spacious():
    """A BPE with tokens of white space, and of what only Python takes for it: a word that is cut
    shows in its ids."""
    some = ("\n", " ", "\t", "\x1c", "\u3000", "!")
    words = ["".join(word) for n in (2, 3) for word in itertools.product(some, repeat=n)]
    return Tokenizer.train([word for word in words for _ in range(2)], vocab_size=700)


@SHARED
@given(text=st.text(" \n\t\x1c\u3000!a's"))
def test_words_of_space_equal_the_reference(spacious, text):
    """GPT-2 has few tokens of white space, so that a word split wrongly often has the same ids."""
    kind = spacious._kind
    ranks = {pair: rank for rank, pair in enumerate(kind.merges)}
    assert spacious.encode(text) == bpe.encode(text, kind.vocab, ranks)


@SHARED
@given(texts=st.lists(st.text(" \n\t\x1c\u3000!a") | TEXT, max_size=4))
def test_where_a_text_is_cut_changes_no_id(spacious, texts):
    whole = spacious.encode_batch(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe_file, "PIECE", 0)  # cut wherever one may
        patch.setattr(bpe_file, "GROUP", 3)
        assert spacious.encode_batch(texts) == whole


def test_a_text_of_some_pieces(small, monkeypatch):
    """More pieces than one group has, with the true sizes."""
    monkeypatch.setattr(bpe_file, "GROUP", 3 * bpe_file.PIECE)
    text = SAMPLE * 500
    assert len(text) > 6 * bpe_file.PIECE
    pieces = list(small._kind._cut(text))
    assert bpe_file.PIECE < max(map(len, pieces)) < bpe_file.PIECE + 100
    ids = small.encode(text)
    assert ids == small._kind._engine.encode(text, add_special_tokens=False).ids
    assert small.decode(ids) == text


# --- special tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_special_text_is_text_unless_allowed(everything, kind):
    tokenizer = everything[kind]
    end = tokenizer.eos_id
    text = f"a{END}{END} the cat{END}"
    assert end not in tokenizer.encode(text)
    cat = tokenizer.encode(" the cat")
    expected = [*tokenizer.encode("a"), end, end, *cat, end]
    assert tokenizer.encode(text, allow_special=True) == expected
    assert tokenizer.encode_batch(["a", text], allow_special=True)[1] == expected
    assert tokenizer.decode(expected) == text
    assert end not in tokenizer.encode_bytes(text.encode())


def test_characters_have_no_special_tokens(everything):
    tokenizer = everything["characters"]
    assert (tokenizer.special, tokenizer.eos_id, tokenizer.pad_id) == ({}, None, None)
    assert tokenizer.encode("the", allow_special=True) == tokenizer.encode("the")


def test_the_longest_special_token_wins(data, tmp_path):
    tokens = [*data["added_tokens"], added("<a>", 317), added("<a>b", 318)]
    folder = write(tmp_path, tokenizer__json=changed(data, added_tokens=tokens))
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.encode("<a>b<a>", allow_special=True) == [318, 317]


@pytest.mark.parametrize("copy", [lambda t: pickle.loads(pickle.dumps(t))], ids=["pickle"])
def test_a_copy_still_takes_special_text_for_text(small, copy):
    """The tokenizers package forgets that setting when it is pickled, as for a loader's workers."""
    other = copy(small)
    assert other.encode(f"the{END}") == small.encode(f"the{END}")
    assert (other.identity, other.special) == (small.identity, small.special)


@pytest.mark.parametrize(
    ("config", "more", "eos", "pad"),
    [
        ({}, {}, END, None),
        ({"eos_token": "<e>", "pad_token": "<p>"}, {}, "<e>", "<p>"),
        ({"eos_token": {"content": "<e>", "lstrip": False}}, {}, "<e>", None),
        ({"pad_token": None}, {"eos_token": "<e>", "pad_token": {"content": "<p>"}}, "<e>", "<p>"),
        ({"eos_token": "<e>"}, {"eos_token": "<p>"}, "<e>", None),
    ],
)
def test_which_token_ends_and_which_one_pads(data, tmp_path, config, more, eos, pad):
    tokens = [*data["added_tokens"], added("<e>", 317), added("<p>", 318, special=False)]
    folder = write(
        tmp_path / "in",
        tokenizer__json=changed(data, added_tokens=tokens),
        tokenizer_config__json={"model_max_length": 77, **config},
        special_tokens_map__json=more,
    )
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.save(tmp_path / "out")
    for t in (tokenizer, Tokenizer.from_pretrained(tmp_path / "out")):
        ids = {END: 316, "<e>": 317, "<p>": 318, None: None}
        assert (t.eos_id, t.pad_id) == (ids[eos], ids[pad])
        assert ids[pad] is None or pad in t.special  # it was not, in tokenizer.json
    saved = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert saved["model_max_length"] == 77
    assert saved["clean_up_tokenization_spaces"] is False


def test_a_role_for_a_token_that_is_not_there(data, tmp_path):
    folder = write(tmp_path, tokenizer__json=data, tokenizer_config__json={"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match=r"pad_token '\[PAD\]'"):
        Tokenizer.from_pretrained(folder)


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SAMPLE * 2, "aaaa aaa aaaaaa abab ababab baba" * 3])
@pytest.mark.parametrize("vocab_size", [257, 270, 330, 3000])
def test_training_is_algorithm_1(text, vocab_size):
    tokenizer = Tokenizer.train(text, vocab_size=vocab_size)
    merges = bpe.train([text], merges=vocab_size - 257, min_frequency=2)
    assert tokenizer._kind.merges == merges
    assert len(tokenizer) == 257 + len(merges)  # less than asked for, if no pair comes twice
    # ids as GPT-2 has them: bytes by their characters, merges as learned, the special token last
    tokens = [*sorted(bpe.byte_characters()), *map("".join, merges)]
    assert tokenizer._kind.vocab == {token: i for i, token in enumerate(tokens)}
    assert tokenizer.special == {END: len(tokens)} == {END: tokenizer.eos_id}
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    assert tokenizer.encode(text) == bpe.encode(text, tokenizer._kind.vocab, ranks)


def test_training_on_threads_gives_the_same_again():
    texts = [f"{SAMPLE} {i}" for i in range(200)]
    first = Tokenizer.train(texts, vocab_size=500).identity
    assert all(Tokenizer.train(texts, vocab_size=500).identity == first for _ in range(3))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_a_file_teaches_what_its_text_teaches(small, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(corpus, "CHUNK", chunk)
    (tmp_path / "a.txt").write_bytes((SAMPLE * 2).encode())  # as bytes: \r\n stays
    path = tmp_path / "a.txt"
    for source in (path, [path], iter([path]), SAMPLE * 2):
        assert Tokenizer.train(source, vocab_size=317).identity == small.identity
    assert Tokenizer.characters(path).identity == Tokenizer.characters(SAMPLE).identity


def test_texts_and_files_together(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"bb bb bb")
    tokenizer = Tokenizer.train(["aa aa aa", tmp_path / "a.txt"], vocab_size=300)
    assert {("a", "a"), ("b", "b")} <= {*tokenizer._kind.merges}


def test_nothing_is_learned_from_or_across_the_special_token():
    tokenizer = Tokenizer.train([f"xy{END}" * 50, f"xy{END}"], vocab_size=300)
    assert tokenizer._kind.merges == [("x", "y")]


def test_a_text_without_a_place_to_cut_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK", 10)
    monkeypatch.setattr(corpus, "LEARNING_LIMIT", 50)
    path = tmp_path / "a.txt"
    path.write_text("x" * 1000 + " y" * 100)
    pieces = list(corpus.read_texts([path]))
    assert "".join(pieces) == path.read_text()
    assert max(map(len, pieces)) <= 60


def test_a_bar_is_shown_for_what_takes_long_where_it_can_be_seen(monkeypatch):
    shown, trainer = [], tokenizers.trainers.BpeTrainer

    def spy(**options):
        shown.append(options["show_progress"])
        return trainer(**options)

    monkeypatch.setattr(tokenizers.trainers, "BpeTrainer", spy)

    def train(source) -> bool:
        Tokenizer.train(source, vocab_size=300)
        return shown.pop()

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert not train(SAMPLE)
    monkeypatch.setattr(tokenizer_file, "QUIET", 100)
    assert train(SAMPLE)
    assert train([SAMPLE[:60], SAMPLE[:60]])
    assert not train([SAMPLE[:60]])
    assert train(iter([SAMPLE[:60]]))  # nobody knows how long that is
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert not train(SAMPLE)  # into a file or a pipe


def test_characters_of_a_text():
    tokenizer = Tokenizer.characters("hello")
    assert (len(tokenizer), tokenizer.encode("hello")) == (4, [1, 0, 2, 2, 3])
    assert Tokenizer.train("hello", kind="characters").identity == tokenizer.identity
    assert Tokenizer.train("hello", 4, "characters").identity == tokenizer.identity
    with pytest.raises(ValueError, match="4 characters, vocab_size is 3"):
        Tokenizer.train("hello", 3, "characters")


def test_bytes():
    tokenizer = Tokenizer.bytes()
    assert (len(tokenizer), tokenizer.eos_id, tokenizer.pad_id) == (257, 256, None)
    assert tokenizer.encode("hé") == [104, 195, 169]


def test_training_says_what_is_wrong(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\xffdef")
    with pytest.raises(ValueError, match=r"text\.txt is not UTF-8 \(byte 3 is 0xff\): convert it"):
        Tokenizer.train(path, vocab_size=300)
    path.write_bytes("日本".encode()[:-1])
    with pytest.raises(ValueError, match=r"text\.txt is not UTF-8 \(byte 3 is 0xe6"):
        Tokenizer.characters(path)
    path.write_text("\ufeffabc", encoding="utf-8")
    assert len(Tokenizer.characters(path)) == 3, "a byte order mark is no part of the text"
    with pytest.raises(ValueError, match=r"is a file: give Path\("):
        Tokenizer.train(str(path), vocab_size=300)
    with pytest.raises(TokenizerError, match="is a folder: give its files"):
        Tokenizer.train(tmp_path, vocab_size=300)
    with pytest.raises(TokenizerError, match=r"no\.txt"):
        Tokenizer.train(tmp_path / "no.txt", vocab_size=300)
    with pytest.raises(TypeError, match="expected a str, got bytes"):
        Tokenizer.train([b"abc"], vocab_size=300)
    with pytest.raises(ValueError, match="there is no text"):
        Tokenizer.train(["", END], vocab_size=300)
    with pytest.raises(ValueError, match="there is no text"):
        Tokenizer.characters("")
    with pytest.raises(ValueError, match="vocab_size is 256: 256 bytes and"):
        Tokenizer.train("abc", vocab_size=256)
    with pytest.raises(ValueError, match="needs a vocab_size"):
        Tokenizer.train("abc")
    with pytest.raises(ValueError, match="unknown kind 'character': 'bpe', 'wordpiece', "):
        Tokenizer.train("abc", kind="character")


def test_where_an_invalid_byte_is_does_not_depend_on_the_chunks(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes("日本語".encode() + b"\xe6\x97x")
    for chunk in range(1, 14):
        monkeypatch.setattr(corpus, "CHUNK", chunk)
        with pytest.raises(ValueError, match="byte 9 is 0xe6"):
            Tokenizer.characters(path)


# --- what cannot be encoded or decoded ------------------------------------------------------------


def test_unknown_characters_are_named_with_their_places():
    tokenizer = Tokenizer.characters("hello")
    with pytest.raises(ValueError) as error:  # noqa: PT011  read below
        tokenizer.encode_batch(["hello", "hé€hé" + "é" * 9])
    message = str(error.value)
    assert "vocabulary of 4 characters" in message
    assert "'é' (U+00E9) at 1, 4, 5, 6 and 7 more; '€' (U+20AC) at 2." in message
    with pytest.raises(ValueError, match=r" and 5 more\. It was made"):
        tokenizer.encode("abcdfgijkmnpq")


@KINDS
def test_half_a_surrogate_pair_is_refused(everything, kind):
    with pytest.raises(ValueError, match=r"character 4 of the text, '\\udc80'"):
        everything[kind].encode("the \udc80")
    with pytest.raises(ValueError, match="character 0 of the text"):
        everything[kind].encode_batch(["the", "\ud83d"])


@pytest.mark.parametrize("text", ["a. b" * 200, "é. b" * 63])
def test_a_text_longer_than_any_name_is_a_text(text):
    tokenizer = Tokenizer.train([text], vocab_size=260)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_half_a_surrogate_pair_is_nothing_to_learn_from():
    for kind in ("bpe", "characters"):
        with pytest.raises(ValueError, match="character 3 of the text"):
            Tokenizer.train("the\ud83d", 300, kind)


def test_not_text_at_all(small):
    with pytest.raises(TypeError, match="got bytes: encode_bytes takes bytes"):
        small.encode(b"the")
    with pytest.raises(TypeError, match="expected a str, got NoneType"):
        small.encode_batch(["the", None])
    with pytest.raises(TypeError, match="encode_batch takes several"):
        small.encode_batch("the")


def test_bytes_for_which_there_is_no_token():
    with pytest.raises(ValueError, match=r"not UTF-8, and of kind 'characters'.* byte 0xff"):
        Tokenizer.characters("hello").encode_bytes(b"he\xff")


@KINDS
@pytest.mark.parametrize("bad", [-1, 317, 2**40])
def test_an_id_out_of_range(everything, kind, bad):
    tokenizer = everything[kind]
    with pytest.raises(ValueError, match=f"id {bad} at position 2 .* 0 to {len(tokenizer) - 1}$"):
        tokenizer.decode([0, 1, bad])
    with pytest.raises(ValueError, match=f"id {bad} "):
        tokenizer.token_bytes(bad)
    with pytest.raises(ValueError, match=f"id {bad} "):
        tokenizer.stream().push(bad)
    with pytest.raises(TypeError):
        tokenizer.decode([0.0])


# --- saving ---------------------------------------------------------------------------------------


@KINDS
def test_saved_and_loaded(everything, kind, tmp_path):
    tokenizer = everything[kind]
    tokenizer.save(tmp_path / "new" / "folder")
    tokenizer.save(str(tmp_path / "new" / "folder"))  # over itself
    other = Tokenizer.from_pretrained(str(tmp_path / "new" / "folder"))
    assert other.encode(SAMPLE) == tokenizer.encode(SAMPLE)
    for name in ("kind", "identity", "special", "eos_id", "pad_id", "vocab_size"):
        assert getattr(other, name) == getattr(tokenizer, name)
    assert kind in repr(other)
    assert tokenizer.identity in repr(other)
    assert not list(tmp_path.rglob(".*"))


def test_the_tokenizers_package_reads_it(small, tmp_path):
    small.save(tmp_path)
    engine = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert engine.encode(SAMPLE).ids == small.encode(SAMPLE)
    assert engine.encode(f"the{END}").ids == small.encode(f"the{END}", allow_special=True)
    assert engine.decode(small.encode(SAMPLE)) == SAMPLE


@pytest.mark.slow  # starts transformers
def test_transformers_reads_it(small, tmp_path):
    pytest.importorskip("transformers")
    small.save(tmp_path)
    text = SAMPLE + "spaces that stay : a . b , c ! do n't we 're"
    code = (
        "import json, sys; from transformers import AutoTokenizer, PreTrainedTokenizerFast\n"
        "text = sys.stdin.read()\n"
        "for kind in (AutoTokenizer, PreTrainedTokenizerFast):\n"
        "    t = kind.from_pretrained(sys.argv[1])\n"
        "    ids = t(text)['input_ids']\n"
        "    print(json.dumps([ids, t.decode(ids), t.eos_token_id, t.pad_token_id, len(t)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input=text,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
    )
    expected = [small.encode(text), text, small.eos_id, None, len(small)]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [expected] * 2


def test_a_changed_vocabulary_is_noticed(everything, tmp_path):
    for kind, tokenizer in everything.items():
        tokenizer.save(tmp_path / kind)
    path = tmp_path / "bpe" / "tokenizer.json"
    path.write_text(
        path.read_text().replace('"!": 0,', '"!": 1,').replace('"\\"": 1,', '"\\"": 0,')
    )
    with pytest.raises(
        ValueError, match=r"bpe.tokenizer\.json is not the tokenizer that was saved"
    ):
        Tokenizer.from_pretrained(tmp_path / "bpe")
    (tmp_path / "bpe" / "addnorm_tokenizer.json").unlink()  # as the message says
    assert Tokenizer.from_pretrained(tmp_path / "bpe").encode("!") == [1]

    path = tmp_path / "characters" / "characters.json"
    path.write_text(path.read_text().replace("hi", "ih"))
    with pytest.raises(ValueError, match=r"characters\.json is not the tokenizer that was saved"):
        Tokenizer.from_pretrained(tmp_path / "characters")

    path = tmp_path / "bytes" / "addnorm_tokenizer.json"
    path.write_text(path.read_text().replace(everything["bytes"].identity, "0" * 16))
    with pytest.raises(ValueError, match=r"addnorm_tokenizer\.json is not the tokenizer"):
        Tokenizer.from_pretrained(tmp_path / "bytes")


def test_two_kinds_do_not_share_a_folder(everything, tmp_path):
    everything["bpe"].save(tmp_path)
    for kind in ("characters", "bytes"):
        with pytest.raises(TokenizerError, match=r"another kind \(tokenizer\.json\)"):
            everything[kind].save(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).kind == "bpe"


# --- identity -------------------------------------------------------------------------------------


def test_identities_do_not_change_with_our_version():
    """They stand in people's checkpoints: these must stay, whatever is rewritten."""
    assert Tokenizer.bytes().identity == "741a6db5e5c2ec85"
    assert Tokenizer.characters("hello").identity == "a8f6a47cd80f0e14"
    assert Tokenizer.train("xy xy", vocab_size=300).identity == "f25498f832d33f11"


def test_the_identity_of_gpt2(gpt2):
    """It is written beside every prepared text, and so must never change."""
    assert gpt2.identity == {50257: "e91150796c17bcd1", 383: "5a58d0010e358295"}[len(gpt2)]


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {"type": "Split", "pattern": {"Regex": " ?\\S+"}, "behavior": "Isolated", "invert": False}


def test_what_changes_no_id_does_not_change_the_identity(data, small, tmp_path):
    merges = data["model"]["merges"]
    same = {
        "as it is": data,
        "truncation": changed(
            data,
            truncation={
                **{"direction": "Right", "max_length": 3},
                **{"strategy": "LongestFirst", "stride": 0},
            },
            padding={
                **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None},
                **{"pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
            },
        ),
        "decoder": changed(data, decoder=None),
        "offsets": changed(data, pre_tokenizer={**BYTE_LEVEL, "trim_offsets": False}),
        "post-processor": changed(
            data,
            post_processor={
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": END, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {END: {"id": END, "ids": [316], "tokens": [END]}},
            },
        ),
        "sequences of one or none": changed(
            data,
            pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTE_LEVEL]},
            normalizer={"type": "Sequence", "normalizers": []},
        ),
        "special token in the vocabulary": changed(
            data, model__vocab={**data["model"]["vocab"], END: 316}
        ),
        "merges of old": changed(data, model__merges=[" ".join(pair) for pair in merges]),
    }
    # As GPT-2's own tokenizer.json was written in 2019
    old = changed(same["merges of old"], model__continuing_subword_prefix="")
    del old["model"]["type"], old["model"]["ignore_merges"], old["model"]["byte_fallback"]
    for name, other in {**same, "old": old}.items():
        tokenizer = Tokenizer.from_pretrained(write(tmp_path / name, tokenizer__json=other))
        assert tokenizer.identity == small.identity, name
        assert tokenizer.encode(SAMPLE) == small.encode(SAMPLE), name

    tokens = {**data["model"]["vocab"], END: 316}
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    for name, end in {"unix": "\n", "windows": "\r\n"}.items():
        folder = write(tmp_path / name, vocab__json=tokens)
        (folder / "merges.txt").write_bytes(end.join(lines).encode())
        assert Tokenizer.from_pretrained(folder).identity == small.identity


def test_what_changes_ids_changes_the_identity(data, small, tmp_path):
    vocab, merges = data["model"]["vocab"], data["model"]["merges"]
    tokens = data["added_tokens"]
    other = {
        "ids": changed(data, model__vocab={**vocab, "a": vocab["b"], "b": vocab["a"]}),
        "order of merges": changed(data, model__merges=[merges[1], merges[0], *merges[2:]]),
        "a merge less": changed(data, model__merges=merges[:-1]),
        "special": changed(data, added_tokens=[*tokens, added("<x>", 317)]),
        "another special": changed(data, added_tokens=[*tokens, added("<y>", 317)]),
        "not special": changed(data, added_tokens=[*tokens, added("<x>", 317, special=False)]),
        "word": changed(
            data, added_tokens=[*tokens, added("<x>", 317, special=False, single_word=True)]
        ),
        "normalizer": changed(data, normalizer={"type": "NFC"}),
        "split": changed(
            data,
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [SPLIT, {**BYTE_LEVEL, "use_regex": False}],
            },
        ),
        "no split": changed(data, pre_tokenizer={**BYTE_LEVEL, "use_regex": False}),
        "ignore_merges": changed(data, model__ignore_merges=True),
    }
    found = {"as it is": small.identity}
    for name, content in other.items():
        folder = write(tmp_path / name, tokenizer__json=content)
        found[name] = Tokenizer.from_pretrained(folder).identity
    assert len({*found.values()}) == len(found), found


# --- relatives of GPT-2 ---------------------------------------------------------------------------


def test_a_tokenizer_like_pythia(data, tmp_path):
    """NFC, and runs of spaces as tokens that are not special."""
    spaces = [added(" " * n, 315 + n, special=False, normalized=True) for n in (2, 3)]
    content = changed(
        data, normalizer={"type": "NFC"}, added_tokens=[*data["added_tokens"], *spaces]
    )
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, tokenizer__json=content))
    assert tokenizer.encode("a   b")[1] == 318
    assert tokenizer.token_bytes(318) == b"   "
    assert tokenizer.decode(tokenizer.encode("a   e\u0301")) == "a   é"
    assert tokenizer.encode(f"a{END}  ") == [*tokenizer.encode(f"a{END}"), 317]
    whole = tokenizer.encode(SAMPLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe_file, "PIECE", 0)
        assert tokenizer.encode(SAMPLE) == whole


def test_an_added_token_is_its_text(data, tmp_path):
    """Not bytes in GPT-2's alphabet, in which é would be the byte 0xe9."""
    tokens = [*data["added_tokens"], added("é日 ", 317), added("éé", 318, special=False)]
    content = changed(data, added_tokens=tokens)
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, tokenizer__json=content))
    assert tokenizer.token_bytes(317) == "é日 ".encode()
    assert tokenizer.encode("xéé")[-1] == 318
    assert tokenizer.decode(tokenizer.encode("xéé日 ")) == "xéé日 "


def test_a_token_over_the_place_of_a_cut(data, tmp_path, monkeypatch):
    tokens = [*data["added_tokens"], added("t s", 317, special=False)]
    content = changed(data, added_tokens=tokens)
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, tokenizer__json=content))
    monkeypatch.setattr(bpe_file, "PIECE", 0)
    assert 317 in tokenizer.encode("the cat sat")


def test_a_tokenizer_like_llama_3(data, tmp_path, monkeypatch):
    """Words by an expression of its own, in which a line's end belongs to the full stop before."""
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
    words = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {**BYTE_LEVEL, "use_regex": False},
    ]
    vocab, last = dict(data["model"]["vocab"]), added(END, 317)
    vocab[".Ċ"] = 316
    content = changed(
        data,
        pre_tokenizer={"type": "Sequence", "pretokenizers": words},
        model__vocab=vocab,
        model__merges=[*data["model"]["merges"], [".", "Ċ"]],
        model__ignore_merges=True,
        added_tokens=[last],
    )
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, tokenizer__json=content))
    monkeypatch.setattr(bpe_file, "PIECE", 0)  # it must not cut before the line's end
    assert tokenizer.encode("a.\nb")[1] == 316
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE
    assert 317 not in tokenizer.encode(SAMPLE + END)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "only BERT's WordPiece"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "model Unigram"),
        ({"model": {"vocab": {"a": 0}}}, "model without a name"),
        ({"model": None}, "no model in it"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "no vocabulary or no merges"),
        ({"pre_tokenizer": None}, "pre-tokenizer none"),
        ({"pre_tokenizer": {"add_prefix_space": False}}, "pre-tokenizer without a name"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "pre-tokenizer Metaspace"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}},
            "pre-tokenizer Whitespace",
        ),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "WhitespaceSplit"}, BYTE_LEVEL],
                }
            },
            "pre-tokenizer WhitespaceSplit, ByteLevel",
        ),
        ({"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, "add_prefix_space"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{**SPLIT, "behavior": "Removed"}, BYTE_LEVEL],
                }
            },
            "a Split that removes text",
        ),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}},
            "normalizer NFKC",
        ),
        ({"model__dropout": 0.1}, "dropout 0.1"),
        ({"model__end_of_word_suffix": "</w>"}, "end_of_word_suffix '</w>'"),
        (
            {"added_tokens": [added("<x>", 316, special=False, lstrip=True)]},
            "'<x>' that swallows the spaces",
        ),
    ],
)
def test_other_kinds_are_refused_by_name(data, tmp_path, changes, found):
    folder = write(tmp_path, tokenizer__json=changed(data, **changes))
    with pytest.raises(ValueError, match=r"tokenizer\.json: ") as error:
        Tokenizer.from_pretrained(folder)
    assert found in str(error.value)


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda v, m: v.update({"a": "7"}), "the id of 'a' is '7', not a number"),
        (lambda v, m: v.update({"a": -7}), "the id of 'a' is -7, not a number"),
        (lambda v, m: v.update({"a": v["b"]}), "tokens 'a' and 'b' have the same id, "),
        (lambda v, m: v.pop("Ā"), "no token for the single bytes 0x00: "),
        (lambda v, m: v.update({"▁the": 900}), "token '▁the' is not written in"),
        (lambda v, m: m.append(["q", "x"]), "merge 61, ['q', 'x'], needs 'qx'"),
        (lambda v, m: m.append("日 x"), "merge 61, '日 x', needs '日'"),
        (lambda v, m: m.append("a b c"), "merge 61 is 'a b c': expected two"),
        (lambda v, m: m.append(7), "merge 61 is 7: expected two"),
        (lambda v, m: m.append([["a"], "b"]), "merge 61 is [['a'], 'b']: expected two"),
        (lambda v, m: v.update({END: 317}), "has two ids, 317 and 316"),
    ],
)
def test_a_tokenizer_json_that_contradicts_itself(data, tmp_path, spoil, said):
    content = changed(data)
    spoil(content["model"]["vocab"], content["model"]["merges"])
    folder = write(tmp_path, tokenizer__json=content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: ") as error:
        Tokenizer.from_pretrained(folder)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"added_tokens": [5]}, "added_tokens holds the number 5, expected objects"),
        ({"added_tokens": {}}, "added_tokens is an object, expected a list"),
        ({"added_tokens": [{"content": 5, "id": 316}]}, "'content' is the number 5, expected a te"),
        (
            {"added_tokens": [{"content": "x", "id": "316"}]},
            "'id' is the text '316', expected a whole number",
        ),
        (
            {"added_tokens": [{"content": "x", "id": 316, "special": 1}]},
            "'special' is the number 1, expected true",
        ),
        ({"model": []}, "no model in it"),
        ({"pre_tokenizer": "ByteLevel"}, "a step in it is the text 'ByteLevel', expected an obj"),
        ({"pre_tokenizer": {"type": ["ByteLevel"]}}, "'type' is a list, expected a text"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 5}}, "is the number 5, expected"),
        ({"normalizer": 5}, "a step in it is the number 5, expected an object"),
    ],
)
def test_parts_of_a_tokenizer_json_of_another_type(data, tmp_path, changes, said):
    folder = write(tmp_path, tokenizer__json=data | changes)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: ") as error:
        Tokenizer.from_pretrained(folder)
    assert said in str(error.value)


@pytest.mark.parametrize("token", [5, ["x"], {"content": 5}, True])
def test_a_role_that_is_no_token(data, tmp_path, token):
    for name in ("tokenizer_config__json", "special_tokens_map__json"):
        folder = write(tmp_path / name, tokenizer__json=data, **{name: {"eos_token": token}})
        with pytest.raises(TokenizerError, match="for a token"):
            Tokenizer.from_pretrained(folder)


def test_a_card_of_another_type(tmp_path):
    for card, said in (
        ({"kind": ["bpe"], "identity": ""}, "'kind' is a list, expected a text"),
        ({"kind": "bytes", "identity": 5}, "'identity' is the number 5, expected a text"),
        ({"kind": "bytes"}, "'identity' is missing"),
    ):
        write(tmp_path, addnorm_tokenizer__json=card)
        with pytest.raises(TokenizerError, match=rf"addnorm_tokenizer\.json: {said}"):
            Tokenizer.from_pretrained(tmp_path)


def test_a_configuration_that_would_change_the_text(data, tmp_path):
    folder = write(
        tmp_path, tokenizer__json=data, tokenizer_config__json={"add_prefix_space": True}
    )
    with pytest.raises(ValueError, match="a space before every text"):
        Tokenizer.from_pretrained(folder)


def test_added_tokens_in_few_words(data, tmp_path):
    content = changed(data, added_tokens=[{"content": END, "id": 316, "special": True}])
    assert Tokenizer.from_pretrained(write(tmp_path, tokenizer__json=content)).eos_id == 316
    content = changed(data, added_tokens=[{"content": END}])
    with pytest.raises(ValueError, match=r"the id of '.*' is -1, not a number from 0"):
        Tokenizer.from_pretrained(write(tmp_path, tokenizer__json=content))


def test_added_tokens_that_would_get_other_ids(data, tmp_path):
    content = changed(data, added_tokens=[*data["added_tokens"], added("<x>", 400)])
    with pytest.raises(ValueError, match="'<x>' has id 400, but 317 is the next"):
        Tokenizer.from_pretrained(write(tmp_path, tokenizer__json=content))


def test_a_vocabulary_with_gaps(data, tmp_path):
    vocab = {**data["model"]["vocab"], END: 316, "theĠcat": 400}
    content = changed(data, model__vocab=vocab)
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, tokenizer__json=content))
    assert len(tokenizer) == 401
    assert tokenizer.decode([400]) == "the cat"
    with pytest.raises(ValueError, match=r"id 399 at position 1 .* 0 to 400 with gaps"):
        tokenizer.decode([0, 399])


@pytest.fixture
def pair(data, tmp_path):
    """A folder with vocab.json and merges.txt, and the lines of the second."""
    lines = ["#version: 0.2", *map(" ".join, data["model"]["merges"]), ""]
    vocab = {**data["model"]["vocab"], END: 316}
    return write(tmp_path / "pair", vocab__json=vocab, merges__txt="\n".join(lines)), lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [*lines[:5], "日 x", *lines[5:]], "line 6: '日 x' needs '日': not in vocab"),
        (lambda lines: [*lines[:5], "q x", *lines[5:]], "line 6: 'q x' needs 'qx'"),
        (lambda lines: [*lines[:5], "a b c", *lines[5:]], "line 6: expected two tokens"),
        (lambda lines: [*lines[:-2], lines[-2][:-1]], "line 61: "),  # in the midst of a line
        (lambda lines: lines[:-9], "52 merges, and 8 tokens of vocab.json come from none"),
        (
            lambda lines: ["version https://git-lfs.github.com/spec/v1", "oid 1"],
            "pointer of Git LFS",
        ),
    ],
)
def test_merges_that_are_damaged(pair, change, said):
    folder, lines = pair
    write(folder, merges__txt="\n".join(change(lines)))
    with pytest.raises(ValueError, match=r"merges\.txt") as error:
        Tokenizer.from_pretrained(folder)
    assert said in str(error.value)


def test_tokens_made_by_hand_need_no_merge(pair):
    folder, _ = pair
    vocab = json.loads((folder / "vocab.json").read_text())
    write(folder, vocab__json={**vocab, "<s>": 317, "[PAD]": 318, "stop": 319})
    with pytest.raises(
        ValueError, match=r"1 tokens of vocab\.json come from none of them \('stop'"
    ):
        Tokenizer.from_pretrained(folder)
    write(folder, special_tokens_map__json={"eos_token": "stop"})
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.special == {END: 316, "stop": 319}
    assert tokenizer.eos_id == 319


def test_old_files_with_added_tokens(pair):
    folder, _ = pair
    write(folder, added_tokens__json={END: 316})  # nothing that is not known
    assert len(Tokenizer.from_pretrained(folder)) == 317
    write(folder, added_tokens__json={END: 316, "<x>": 317})
    with pytest.raises(ValueError, match=r"added_tokens\.json has tokens .*<x>"):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1, "b"', "is not valid JSON: .* 12 characters. It is damaged or cut short: copy"),
        (b"", "is empty: copy or download it again"),
        (b"[1]", "holds a list, expected a JSON object"),
        (b"[" * 100_000, "has lists or objects more than 100 deep"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1", "is only a pointer of Git LFS"),
    ],
)
def test_files_that_are_no_json(pair, name, content, said):
    folder, _ = pair
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {said}"):
        Tokenizer.from_pretrained(folder)


@KINDS
def test_saved_files_that_are_damaged(everything, kind, tmp_path):
    everything[kind].save(tmp_path)
    path = tmp_path / everything[kind]._kind.file
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=f"{path.name} is not valid JSON"):
        Tokenizer.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(TokenizerError, match=rf"cannot read .*{path.name}|no tokenizer in"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"characters": "aba"}, "'a' more than once"),
        ({"characters": [1]}, "'characters' is a list, expected a text"),
        ({"characters": 7}, "'characters' is the number 7, expected a text"),
        ({"characters": ""}, "there is no character in it"),
        ({"characters": "a\ud800"}, "character 1 of the text, .* is half of a surrogate pair"),
        ({}, "'characters' is missing"),
    ],
)
def test_characters_that_are_none(tmp_path, content, said):
    card = {"kind": "characters", "identity": ""}
    write(tmp_path, characters__json=content, addnorm_tokenizer__json=card)
    with pytest.raises(ValueError, match=rf"characters\.json: {said}"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_kind_from_the_future(tmp_path):
    write(tmp_path, addnorm_tokenizer__json={"kind": "unigram", "identity": ""})
    with pytest.raises(
        ValueError, match="unknown kind 'unigram'; there are bpe, wordpiece, characters, bytes"
    ):
        Tokenizer.from_pretrained(tmp_path)


def test_folders_without_a_tokenizer(tmp_path, pair):
    folder, _ = pair
    (folder / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"has vocab\.json, but not merges\.txt"):
        Tokenizer.from_pretrained(folder)
    write(folder, merges__txt="")
    (folder / "vocab.json").unlink()
    with pytest.raises(TokenizerError, match=r"has merges\.txt, but not vocab\.json"):
        Tokenizer.from_pretrained(folder)

    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match=r"no tokenizer in .* The folder is empty"):
        Tokenizer.from_pretrained(tmp_path / "empty")
    folder = write(tmp_path / "other", config__json={}, tokenizer__model="", **{"z z": ""})
    with pytest.raises(TokenizerError) as error:
        Tokenizer.from_pretrained(folder)
    assert "expected tokenizer.json, or vocab.json and merges.txt" in str(error.value)
    assert "There is: config.json, tokenizer.model, z z (tokenizer.model is SentencePiece" in str(
        error.value
    )
    with pytest.raises(TokenizerError, match="give the folder that it is in"):
        Tokenizer.from_pretrained(folder / "config.json")


# --- the hub --------------------------------------------------------------------------------------


def test_a_name_is_asked_from_the_hub(small, tmp_path, monkeypatch):
    import huggingface_hub

    small.save(tmp_path)
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert Tokenizer.from_pretrained("some-org/a_model.1").identity == small.identity
    ((name, patterns),) = asked
    assert name == "some-org/a_model.1"
    assert {path.name for path in tmp_path.iterdir()} <= {*patterns}
    assert {"vocab.json", "merges.txt", "special_tokens_map.json"} <= {*patterns}


@pytest.mark.parametrize(
    "path",
    ["a/b/c", "./here", "../there", "/no/such", "~/x", "a/", "a b", Path("gpt2"), "C:\\x"],
)
def test_what_is_a_path_is_not_asked_from_the_hub(path):
    with pytest.raises(TokenizerError, match="no folder"):
        Tokenizer.from_pretrained(path)


def test_without_a_network(small, data, tmp_path):
    """The true hub client, told to be offline: what is in its cache is found, and nothing else."""
    folder = tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    small.save(folder / "snapshots" / ("0" * 40))
    code = (
        "import sys; from addnorm.data.tokenizer import Tokenizer\n"
        "assert not {'torch', 'huggingface_hub', 'transformers'} & {*sys.modules}\n"
        "print(Tokenizer.from_pretrained('some/model').identity)\n"
        "Tokenizer.from_pretrained('gpt2')\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == small.identity + "\n", done.stderr
    assert (
        "TokenizerError: there is no folder 'gpt2' here, and it could not be downloaded"
        in done.stderr
    )
    assert "hf download gpt2 vocab.json merges.txt --local-dir FOLDER" in done.stderr
