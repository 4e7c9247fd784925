"""Banned words, with regular expressions and without."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from addnorm.errors import Mendable
from addnorm.generation import (
    RegexError,
    generate,
)
from addnorm.generation.automaton import both, regex, without
from addnorm.generation.constraint import Constraint
from tests.generation.hosts import (
    BYTES,
    PAIRS,
    TOKENIZERS,
    Bigrams,
)


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(st.text("abé", min_size=1, max_size=3), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    tokenizer=st.sampled_from(["bytes", "pairs"]),
)
def test_banned_words_do_not_occur(words: list[str], seed: int, tokenizer: str) -> None:
    """From a model that says nothing but the letters that they are made of."""
    model = Bigrams(seed % 7)
    letters = [i for i in range(256) if PAIRS.token_bytes(i) in (b"a", b"b", b"\xc3", b"\xa9")]
    with torch.no_grad():
        model.table[:, letters + list("abé".encode())] += 20
    options: dict[str, Any] = {"tokenizer": TOKENIZERS[tokenizer], "seed": seed}
    text = generate(model, "p", banned_words=words, max_new_tokens=60, eos=None, **options).text
    assert text
    assert not [word for word in words if word in text]


def test_banned_words_and_a_regex_together() -> None:
    """A way that a banned word closes is not entered."""
    for seed in range(10):
        options: dict[str, Any] = {"tokenizer": BYTES, "seed": seed, "regex": "(foo|bar|baz){2}!"}
        text = generate(Bigrams(seed), "p", banned_words=["oo", "rb"], **options).text
        assert re.fullmatch("(bar|baz){2}!", text)
        assert "rb" not in text
    with pytest.raises(RegexError, match=r"regex 'ab\|b' and banned words 'b': no text satisf"):
        generate(Bigrams(0), "p", tokenizer=BYTES, regex="ab|b", banned_words=["b"])
    with pytest.raises(Mendable, match="an empty word is in every text"):
        generate(Bigrams(0), "p", tokenizer=BYTES, banned_words=[""])
    with pytest.raises(Mendable, match="holds half of a character, which is in no text"):
        generate(Bigrams(0), "p", tokenizer=BYTES, banned_words=["a\udcff"])
    with pytest.raises(TypeError, match="put a single one in a list"):
        generate(Bigrams(0), "p", tokenizer=BYTES, banned_words="b")


@settings(deadline=None, max_examples=100)
@given(text=st.text("ab!", max_size=12), words=st.lists(st.text("ab", min_size=1, max_size=3)))
def test_the_intersection(text: str, words: list[str]) -> None:
    rule = both(regex(r"[ab]*!"), without(words))
    want = re.fullmatch(r"[ab]*!", text) and not any(word in text for word in words)
    assert rule.matches(text) == bool(want)


def test_the_tokens_of_a_state_are_found_by_walking() -> None:
    """Against stepping through the bytes of every token."""
    for pattern in (r"[a-z ]+", r".*é", "日本(語日)?"):
        rule = Constraint(regex(pattern), PAIRS)
        for state in range(len(rule.dfa.table)):
            allowed = rule.candidates(state, 10**6)
            for id in range(PAIRS.vocab_size):
                leads = id != PAIRS.eos_id and rule.dfa.step(state, PAIRS.token_bytes(id)) >= 0
                assert bool(allowed[id]) == leads
