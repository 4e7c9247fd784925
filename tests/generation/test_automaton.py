"""Regular expressions: the texts that Python's re matches, and no others."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.generation import (
    RegexError,
    generate,
)
from addnorm.generation import automaton as automata
from addnorm.generation.automaton import regex
from tests.generation.hosts import BYTES, CHARACTERS, TOKENIZERS, Bigrams

PATTERNS = [
    "",
    "a",
    r"(yes|no|perhaps)\.?",
    r"[0-9]{3}-[0-9]{2,4}",
    r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
    r"[a-c]*b[ab]{2}",
    r"(a|b)*abb",
    r'\{"name": "[A-Z][a-z]{0,8}", "age": [0-9]{1,3}\}',
    r"[^\W\d_]+ é+ [日本語]{2}",
    r".{0,4}\n\s",
    r"(?:x+y?|z){2,3}(?P<end>!)$",
    r"^a{,3}b{2}(c{2,}?|d*?)",
    r"(((a?)b?)c?)*[]\-^]",
    r"\D\S\w{1,3}[\x41-\u0043]\U0001F600",
    r"[^a]|é[^\n]",
    r"a{0}b{1}",
    r"(x{,}){2}|\{a\}|z{}|y{1",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_automaton_accepts_what_re_matches(pattern: str) -> None:
    """Random texts over a small alphabet, and what is one change away from a text that matches."""
    automaton = regex(pattern)
    compiled = re.compile(pattern)
    rng = np.random.default_rng(0)
    letters = list('aabbccxyzéö日本1234567890-. !]^{}\n"_AB😀')
    texts = ["".join(rng.choice(letters, rng.integers(0, 7))) for _ in range(150)]
    for _ in range(40):  # along the automaton, at random
        data, state = b"", 0
        for _ in range(30):
            if automaton.accepting[state] and rng.random() < 0.3:
                break
            following = np.flatnonzero(automaton.table[state] >= 0)
            if not following.size:
                break
            byte = int(rng.choice(following))
            data, state = data + bytes((byte,)), int(automaton.table[state, byte])
        text = data.decode(errors="ignore")  # the walk may have stopped inside a character
        at = int(rng.integers(0, len(text) + 1))
        texts += [
            text,
            text[:at] + text[at + 1 :],
            text[:at] + str(rng.choice(letters)) + text[at:],
        ]
    assert any(compiled.fullmatch(t) for t in texts)
    for text in texts:
        assert automaton.matches(text) == bool(compiled.fullmatch(text)), text


@pytest.mark.parametrize(
    "pattern", [r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", ".", "[^é-日]", r"[\w-]", r"[^\s\w]"]
)
def test_classes_are_res_over_all_of_unicode(pattern: str) -> None:
    """Every seventh character, all that have one byte, and the borders of the lengths."""
    automaton, compiled = regex(pattern), re.compile(pattern)
    codes = {*range(0x80), *range(0, 0x110000, 7), 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10FFFF}
    wrong = [
        code
        for code in codes
        if not 0xD800 <= code < 0xE000
        and automaton.matches(chr(code)) != bool(compiled.fullmatch(chr(code)))
    ]
    assert not wrong


@settings(deadline=None, max_examples=120)
@given(
    pattern=st.sampled_from(PATTERNS),
    seed=st.integers(0, 1000),
    budget=st.integers(40, 60),
    tokenizer=st.sampled_from(["bytes", "pairs"]),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_what_is_generated_matches(
    pattern: str, seed: int, budget: int, tokenizer: str, temperature: float
) -> None:
    """However it ends: the tokens suffice for the shortest match, so the match is finished."""
    result = generate(
        Bigrams(seed % 5),
        "p",
        tokenizer=TOKENIZERS[tokenizer],
        regex=pattern,
        max_new_tokens=budget,
        seed=seed,
        temperature=temperature,
    )
    assert re.fullmatch(pattern, result.text), result


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_match_is_finished_in_time(tokenizer: Tokenizer) -> None:
    """With exactly as many tokens as there must be."""
    pattern = "(a|b)*(ax|bxxyx)"
    for seed in range(20):
        for budget in (2, 3, 5, 8):
            result = generate(
                Bigrams(seed),
                "a",
                tokenizer=tokenizer,
                regex=pattern,
                max_new_tokens=budget,
                seed=seed,
            )
            assert re.fullmatch(pattern, result.text)
    cut_off = generate(Bigrams(0), "a", tokenizer=tokenizer, regex="a{9}b", max_new_tokens=4)
    assert (cut_off.text, cut_off.finish) == ("aaaa", "length")


def test_a_regex_ends_the_text() -> None:
    """At EOS where more could follow, at once where nothing can; EOS nowhere else."""
    model = Bigrams(0)
    eos = BYTES.eos_id
    with torch.no_grad():
        model.table[:, eos] = 100.0
    options: dict[str, Any] = {"tokenizer": BYTES, "temperature": 0}
    result = generate(model, "p", regex="(ab)+", **options)
    assert (result.text, result.finish, result.ids[-1]) == ("ab", "eos", eos)
    result = generate(model, "p", regex="ab", **options)
    assert (result.text, result.finish, result.ids) == ("ab", "stop", [97, 98])
    result = generate(model, "p", regex="", **options)
    assert (result.text, result.finish, result.ids) == ("", "stop", [])
    result = generate(model, "p", regex="(ab)+", max_new_tokens=7, eos=None, **options)
    assert (result.text, result.finish) == ("ababab", "length")
    result = generate(model, "p", regex="(ab){3}", max_new_tokens=6, **options)
    assert (result.text, result.finish) == ("ababab", "stop")
    with pytest.raises(Mendable, match="either regex or stop"):
        generate(model, "p", regex="a+", stop=["b"], **options)


def test_a_regex_needs_tokens_that_spell_it() -> None:
    model = Bigrams(0)
    options: dict[str, Any] = {"tokenizer": CHARACTERS, "seed": 0, "max_new_tokens": 20}
    for seed in range(5):
        options["seed"] = seed
        assert generate(model, "a", regex="[éa]x|b(é|y)", **options).text in ("ax", "by")
    with pytest.raises(RegexError, match=r"regex 'é\+': the tokenizer has no tokens for any text"):
        generate(model, "a", regex="é+", **options)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a", "missing ., unterminated subpattern at position 0"),
        ("a(?=b)", "look-ahead at position 1 is not supported"),
        ("a(?!b)", "look-ahead"),
        ("(?<=b)a", "look-behind"),
        ("(?<!b)a", "look-behind"),
        (r"(a)\1", "a back-reference or an octal number at position 3"),
        ("(?P<x>a)(?P=x)", "a back-reference"),
        (r"\bword", "a word boundary at position 0"),
        ("(?i)a", "a flag at position 0"),
        ("(?i:a)", "a flag"),
        ("(?>a)b", "an atomic group"),
        ("a*+b", "possessive repetition at position 2"),
        ("(a)(?(1)b|c)", "a condition"),
        ("a(?#why)b", "a comment"),
        ("a^b", r"\^ anywhere but at the start at position 1"),
        ("(a$)b", r"\$ anywhere but at the end at position 2"),
        (r"a\Z", r"\\Z .leave it out."),
        (r"\N{EM DASH}", "a character's name at position 0"),
        (r"[^\w\W]", "no text satisfies it"),
        (r"(\w{100}){100}", "it needs more than 10000 states"),
        (r"\w{1,200}", "it needs more than 10000 states"),
        ("((((a{9}){9}){9}){9}){9}", "it needs more than 10000 states"),
        ("a{99999999999}", "a number of repetitions in it is too large"),
        (f"a{{{'9' * 5000}}}", "a number of repetitions in it is too large"),
        ("a" * 9000 + "(", rf"regex '{'a' * 80}'\.\.\.: missing \), unterminated"),
    ],
)
def test_what_an_automaton_cannot_do_is_refused_by_name(pattern: str, message: str) -> None:
    with pytest.raises(RegexError, match=message):
        regex(pattern)


@pytest.mark.parametrize("depth", [51, 300, 10_000])
@pytest.mark.parametrize("after", ["", "*", "{2}", "+?"])
def test_groups_that_are_nested_too_deep_are_refused(depth: int, after: str) -> None:
    """Also where the parentheses are not balanced, or many have closed before."""
    for pattern in ("(" * depth + "a" + f"){after}" * depth, "()" * 60 + "(a|" * depth):
        with pytest.raises(RegexError, match=f"^regex .* nested {depth} deep, and at most 50 are"):
            regex(pattern)


def test_what_only_looks_nested_is_read() -> None:
    """Fifty groups, with what repeats them; parentheses one after the other, quoted, in sets."""
    for after, few, many in (("", 1, 1), ("?", 0, 1), ("*", 0, 9), ("+", 1, 9), ("{1}", 1, 1)):
        automaton = regex("(?:" * 25 + "(" * 25 + "a" + f"){after}" * 50)
        for n in range(10):
            assert automaton.matches("a" * n) == (few <= n <= many)
    brackets = "(" * 60
    for pattern, text in (
        ("(a)" * 60, "a" * 60),
        (r"\(" * 60, brackets),
        (f"[{brackets}]", "("),
        (f"[]{brackets}]", "]"),
        (f"[^]{brackets}]", "a"),
        (rf"[\]{brackets}]", "]"),
        (rf"\[[{brackets}]\]", "[(]"),
        (f"[[{brackets}]" * 3, "[(["),
    ):
        assert regex(pattern).matches(text)
        assert not regex(pattern).matches("b(")


HEAVY = [
    "(a?){9999}",
    "(a?){3000}a{3000}",
    "(a*b*c*d*){200}",
    "(.?){400}",
    f"[{'ab' * 5000}]{{99}}",
]
ORDINARY = [
    ("[a-z]{1,9000}", "a" * 9000),
    ("[a-z]{1,200}", "a" * 200),
    (r"([a-z]*,?){300}", "a,b," * 99),
    (r"(.{1,80}\n){1,3}", "日本\n" * 3),
    (r"(\w+\s?){1,5}", "one two 三 vier"),
    (r'\{(\s*"\w+"\s*:\s*("[^"]*"|-?[0-9]+(\.[0-9]+)?|true|null)\s*,?)*\}', '{"a": 1, "b": null}'),
]


@pytest.mark.parametrize("pattern", HEAVY, ids=lambda p: p[:20])
def test_the_work_of_an_expression_is_bounded(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the places that are looked at, of which one step of the search adds those there are."""
    monkeypatch.setattr(automata, "MOST_WORK", 100_000)
    parser = automata._Parser(pattern)
    with pytest.raises(RegexError, match=r"too much work\. .* write a\{,1000\} rather than"):
        parser.parse().determined()
    assert parser.nfa.work <= 100_000 + len(parser.nfa.edges)
    assert len(parser.nfa.edges) <= 20 * automata.MOST_STATES


@pytest.mark.parametrize(("pattern", "text"), ORDINARY, ids=lambda p: p[:20])
def test_ordinary_expressions_are_far_from_the_bound(pattern: str, text: str) -> None:
    parser = automata._Parser(pattern)
    automaton = parser.parse().determined()
    assert automaton.matches(text)
    assert not automaton.matches(text + "?")
    assert 2 * parser.nfa.work <= automata.MOST_WORK


def test_a_small_expression_of_much_work_is_refused_by_generate() -> None:
    with pytest.raises(RegexError, match=r"^regex '\(a\?\)\{1000\}': it takes too much work"):
        generate(Bigrams(0), "p", tokenizer=BYTES, regex="(a?){1000}")
    generate(Bigrams(0), "p", tokenizer=BYTES, regex="a{,1000}", max_new_tokens=1)
