"""When a text ends, and which texts there may be."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from addnorm.errors import Mendable
from addnorm.generation import (
    generate,
    stream_text,
)
from addnorm.generation.stopping import StopStrings, looped
from tests.generation.hosts import (
    BYTES,
    CHARACTERS,
    PAIRS,
    TOKENIZERS,
    Bigrams,
    Scripted,
    prompt,
    say,
    tiny,
)


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """By definition: the stop that ends first counts, the longest of those that end together."""
    for end in range(len(text) + 1):
        ending = [s for s in stops if text[:end].endswith(s)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


few = st.text("abé", max_size=30)
stop_lists = st.lists(st.text("abé", min_size=1, max_size=4), max_size=4)


@settings(deadline=None, max_examples=300)
@given(text=few, stops=stop_lists, cuts=st.lists(st.integers(1, 5)))
def test_stop_strings_by_definition(text: str, stops: list[str], cuts: list[int]) -> None:
    """However the text comes in parts, and no part of a stop string is let out."""
    watch = StopStrings(stops).watch()
    want, which = cut(text, stops)
    out, at = "", 0
    for size in [*cuts, *[1] * len(text)]:
        if watch.hit is None:
            out += watch.push(text[at : at + size])
            assert want.startswith(out)
        at += size
    out += "" if watch.hit else watch.tail
    assert (out, watch.hit) == (want, which)
    if len(stops) == 1:
        place = text.find(stops[0])
        assert out == (text if place < 0 else text[:place])


@settings(deadline=None, max_examples=60)
@given(text=few, stops=stop_lists, tokenizer=st.sampled_from(["bytes", "pairs"]))
def test_stop_strings_across_tokens(text: str, stops: list[str], tokenizer: str) -> None:
    result = say(text, TOKENIZERS[tokenizer], stop=stops)
    assert (result.text, result.stop) == cut(text, stops)
    assert result.finish == ("length" if result.stop is None else "stop")


def test_stop_strings_that_others_miss() -> None:
    """Stops that overlap themselves, [1, 1, 2] in 1 1 1 2, and a token that goes on after one."""
    assert say("xaaab..", stop=["aab"]).text == "xa"
    assert say("abab abac..", stop="abac").text == "abab "
    the = PAIRS.encode(" the")
    assert len(the) == 1
    result = say(" the", PAIRS, stop=[" t"])
    assert (result.text, result.finish, result.ids) == ("", "stop", the)
    result = say("ab\nUser:", stop=["\nUser:", "\nBot:"])
    assert (result.text, result.stop, result.finish) == ("ab", "\nUser:", "stop")
    assert say("ab\nUse", stop=["\nUser:"]).text == "ab\nUse"  # it never came
    assert say("stop", prompt="stop", stop="pst").text == "stop"  # the prompt is not searched


def test_every_row_has_its_own_end() -> None:
    model = Bigrams(3)
    prompts = ["a", "b", "c", "d"]
    stops = [["q"], ["e", "r"], [], ["\x00"]]
    options: dict[str, Any] = {"tokenizer": BYTES, "max_new_tokens": 200}
    together = generate(model, prompts, stop=stops, seed=0, **options)
    for i, (text, stop, row) in enumerate(zip(prompts, stops, together, strict=True)):
        assert generate(model, text, stop=stop, seed=i, **options) == row
    assert {row.finish for row in together} == {"stop", "length", "eos"}
    with pytest.raises(Mendable, match="1 lists of stop strings for 4 prompts"):
        generate(model, prompts, stop=[["q"]], **options)
    with pytest.raises(Mendable, match="empty stop string"):
        generate(model, "a", stop=[""], **options)


def test_the_end_of_text() -> None:
    eos = BYTES.eos_id
    model = Scripted([104, 105, eos, 106, 107])
    result = generate(model, "p", tokenizer=BYTES, temperature=0, max_new_tokens=5)
    assert (result.text, result.ids, result.finish) == ("hi", [104, 105, eos], "eos")
    model.said = 0
    result = generate(model, "p", tokenizer=BYTES, temperature=0, max_new_tokens=5, eos=None)
    assert (result.text, result.finish) == ("hi<|endoftext|>jk", "length")
    model.said = 0
    result = generate(model, "p", tokenizer=BYTES, temperature=0, max_new_tokens=5, eos=105)
    assert (result.text, result.finish) == ("h", "eos")
    model.said = 0  # what was held back for a stop string is text when nothing follows
    result = generate(model, "p", tokenizer=BYTES, temperature=0, max_new_tokens=5, stop="i!")
    assert (result.text, result.finish) == ("hi", "eos")


def test_an_incomplete_character_is_replaced_at_the_end_only() -> None:
    data = "é日".encode()
    pieces = []
    for n in range(1, len(data) + 1):
        pieces.append(say(data[:n]).text)
    assert pieces == ["\ufffd", "é", "é\ufffd", "é\ufffd", "é日"]


def test_nothing_to_write() -> None:
    model = tiny()
    result = generate(model, "the cat", tokenizer=PAIRS, max_new_tokens=0)
    assert (result.text, result.ids, result.finish) == ("", [], "length")
    assert generate(model, [], tokenizer=PAIRS) == []
    assert torch.equal(model.generate(prompt(4), 0), prompt(4))
    assert list(stream_text(model, ["a", "b"], tokenizer=PAIRS, max_new_tokens=0)) == []


def test_an_empty_prompt_starts_from_the_end_of_text() -> None:
    model = Bigrams(0)
    result = generate(model, ["", "a"], tokenizer=BYTES, temperature=0, max_new_tokens=1)[0]
    assert result.prompt_ids == [256]
    assert result.ids == [int(model.table[256, :257].argmax())]
    with pytest.raises(Mendable, match="prompt 1 is empty, and the tokenizer has no token that"):
        generate(model, ["a", ""], tokenizer=CHARACTERS)


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([1] * 24, True),
        ([1] * 23, False),
        ([5, 6, 7] * 8, True),
        ([9, 9, 9, *[5, 6, 7] * 8], True),
        ([5, 6, 7] * 8 + [9], False),
        ([6, 7, *[5, 6, 7] * 8], True),
        (list(range(10)) * 3, True),
        (list(range(10)) * 2 + list(range(9)), False),
        (list(range(100)), False),
        ([], False),
    ],
    ids=str,
)
def test_a_loop_is_a_piece_three_times_over_24_tokens(ids: list[int], loops: bool) -> None:
    assert looped(ids) is loops


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 1), max_size=40))
def test_loops_by_definition(ids: list[int]) -> None:
    found = any(
        3 * period <= length
        and all(ids[-i] == ids[-i - period] for i in range(1, length - period + 1))
        for length in range(24, len(ids) + 1)
        for period in range(1, length)
    )
    assert looped(ids) is found


def test_a_greedy_model_says_that_it_loops() -> None:
    """After at most 300 tokens a model that looks one token back repeats itself."""
    model = Bigrams(0)
    options: dict[str, Any] = {"tokenizer": BYTES, "eos": None, "max_new_tokens": 1000}
    assert generate(model, "a", temperature=0, **options).looped
    assert not generate(model, "a", temperature=1, seed=0, **options).looped
