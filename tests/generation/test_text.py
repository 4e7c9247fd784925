"""Text after text: options reach the distribution, streamed as at once, and errors."""

import copy
from collections.abc import Iterator
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from addnorm.errors import Mendable
from addnorm.generation import (
    Limits,
    Writing,
    generate,
    generate_ids,
    lay_out_for_decoding,
    stream_text,
)
from addnorm.generation.sampling import Sampling, distribution
from addnorm.generation.text import WritingOptions
from addnorm.models.gpt import GPT
from tests.generation.hosts import (
    BYTES,
    PAIRS,
    PROMPTS,
    Bigrams,
    Scripted,
    prompt,
    tiny,
    without_cache,
)

# --- the options reach the distribution -----------------------------------------------------------


def test_penalties_count_prompt_and_output_as_documented() -> None:
    """Equal logits, greedy: a penalty moves on to the next id; only repetition sees the prompt."""
    flat = Bigrams(0, scale=0.0)
    with torch.no_grad():
        flat.table.fill_(1.0)
        flat.table[:, 10:] = 0.0
    options: dict[str, Any] = {"tokenizer": BYTES, "temperature": 0, "max_new_tokens": 5}
    prompt = "\x00\x01\x04"
    assert generate(flat, prompt, **options).ids == [0] * 5
    assert generate(flat, prompt, repetition_penalty=2.0, **options).ids == [2, 3, 5, 6, 7]
    assert generate(flat, prompt, presence_penalty=0.5, **options).ids == [0, 1, 2, 3, 4]
    assert generate(flat, prompt, frequency_penalty=0.1, **options).ids == [0, 1, 2, 3, 4]
    options["max_new_tokens"] = 22
    ids = generate(flat, prompt, presence_penalty=0.5, **options).ids
    assert ids == [*range(10), *[0] * 12]
    ids = generate(flat, prompt, frequency_penalty=0.1, **options).ids
    assert ids == [*range(10), *range(10), 0, 1]


@pytest.mark.parametrize(
    "options", [{"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.5}, {"temperature": 0.2}], ids=str
)
def test_filters_act(options: dict[str, Any]) -> None:
    """Every token that was sampled has a place in the distribution that the option leaves."""
    model = Bigrams(1, vocab_size=257)
    result = generate(model, "a", tokenizer=BYTES, seed=0, eos=None, **options)
    last = [97, *result.ids[:-1]]
    p = distribution(model.table.detach()[last], Sampling(**options))
    chosen = p.gather(1, torch.tensor(result.ids)[:, None])
    assert (chosen > (1e-4 if "temperature" in options else 0)).all()


def test_ids_that_the_tokenizer_has_not_are_never_chosen() -> None:
    """A vocabulary padded by 43 ids, each of which the model likes best."""
    model = Bigrams(0)
    with torch.no_grad():
        model.table[:, 257:] += 100
    for temperature in (0, 1):
        result = generate(
            model, "a", tokenizer=BYTES, temperature=temperature, max_new_tokens=50, seed=0
        )
        assert max(result.ids) <= 256
        assert max(result.logprobs) < -50, "what is reported is the model's own distribution"


def test_logprobs_are_the_models_own() -> None:
    """Whatever filters and temperature do to the choice."""
    model = tiny().double()
    result = generate(
        model,
        "the cat",
        tokenizer=PAIRS,
        seed=0,
        temperature=0.5,
        top_k=5,
        repetition_penalty=1.5,
        top_logprobs=3,
        max_new_tokens=30,
        eos=None,
    )
    ids = result.prompt_ids + result.ids
    with torch.no_grad():
        want = model(torch.tensor([ids]))[0, len(result.prompt_ids) - 1 : -1].log_softmax(-1)
    chosen = want.gather(-1, torch.tensor(result.ids)[:, None])[:, 0]
    np.testing.assert_allclose(result.logprobs, chosen, rtol=0, atol=1e-10)
    best = want.topk(3)
    for got, top_ids, values in zip(result.top_logprobs, best.indices, best.values, strict=True):
        assert [i for i, _ in got] == top_ids.tolist()
        np.testing.assert_allclose([v for _, v in got], values, rtol=0, atol=1e-10)
    with pytest.raises(Mendable, match="top_logprobs must be between 0 and the 295 tokens"):
        generate(model, "a", tokenizer=PAIRS, top_logprobs=301)


# --- streaming ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    stops=st.lists(st.text("abcdeé ", min_size=1, max_size=2), max_size=5),
)
def test_what_is_streamed_is_what_is_generated(seed: int, stops: list[str]) -> None:
    model = Bigrams(seed % 5)
    options: dict[str, Any] = {
        "tokenizer": PAIRS,
        "max_new_tokens": 40,
        "seed": seed,
        "stop": stops,
    }
    stream = stream_text(model, PROMPTS, **options)
    texts = ["" for _ in PROMPTS]
    for row, text in stream:
        assert text
        texts[row] += text
    want = generate(model, PROMPTS, **options)
    assert stream.results == want
    assert texts == [r.text for r in want]


def test_a_piece_is_let_out_as_soon_as_it_is_certain() -> None:
    """Whole characters, and what can no longer become a stop string."""
    ids = BYTES.encode("aé\nUse é\nUser:")
    stream = stream_text(
        Scripted(ids), "p", tokenizer=BYTES, temperature=0, stop="\nUser:", max_new_tokens=50
    )
    assert [text for _, text in stream] == ["a", "é", "\nUse ", "é"]
    assert stream.results[0].finish == "stop"


class Interrupted(Bigrams):
    """Ctrl-C in the middle of the forwards with the given numbers."""

    def __init__(self, at: set[int]) -> None:
        super().__init__(0)
        self.at, self.calls = at, 0

    def forward(self, ids, valid=None, *, cache=None, last=None):
        logits = super().forward(ids, valid, cache=cache, last=last)
        self.calls += 1
        if self.calls in self.at:
            raise KeyboardInterrupt
        return logits


def test_an_interrupt_leaves_the_text_so_far_and_can_be_gone_on_from() -> None:
    options: dict[str, Any] = {"tokenizer": BYTES, "max_new_tokens": 30, "seed": 0, "eos": None}
    want = generate(Bigrams(0), ["a", "b"], **options)
    stream = stream_text(Interrupted({1, 12, 13}), ["a", "b"], **options)
    for tokens in (0, 10, 10):
        with pytest.raises(KeyboardInterrupt):
            list(stream)
        for result, whole in zip(stream.results, want, strict=True):
            assert result.ids == whole.ids[:tokens]
            assert whole.text.startswith(result.text.rstrip("\ufffd"))
            assert result.finish is None
    for _ in stream:
        pass
    assert stream.results == want


def test_what_is_held_back_when_interrupted_is_in_the_result() -> None:
    model = Scripted(BYTES.encode("ab\nUs"))
    stream = stream_text(model, "p", tokenizer=BYTES, temperature=0, stop="\nUser")
    with pytest.raises(IndexError):  # the script is over
        list(stream)
    assert stream.results[0].text == "ab\nUs"
    assert stream.results[0].finish is None


def test_a_stream_that_is_left_can_be_gone_on_with() -> None:
    def first(stream: Iterator[Any]) -> Any:
        return next(iter(stream))

    options: dict[str, Any] = {"tokenizer": BYTES, "max_new_tokens": 20, "seed": 0, "eos": None}
    stream = stream_text(Bigrams(0), "a", **options)
    text = first(stream).text + first(stream).text
    text += "".join(piece.text for piece in stream)
    assert text == generate(Bigrams(0), "a", **options).text
    assert list(stream) == []


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    """With the step and the row; greedy and sampled."""

    class Broken(Bigrams):
        steps = 0

        def forward(self, ids, valid=None, *, cache=None, last=None):
            logits = super().forward(ids, valid, cache=cache, last=last).clone()
            if self.steps == 3:
                logits[1, 0, 7] = bad
            self.steps += 1
            return logits

    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match=r"at step 3 of row 1: 1 of 300, the first"):
            generate_ids(Broken(0), prompt(4, batch=3), 9, temperature=temperature)


@pytest.mark.parametrize("tied", [False, True])
def test_the_layout_for_decoding_changes_nothing_else(tied: bool, tmp_path: Any) -> None:
    """Logits to rounding, names, shapes and values to the bit, and the folder that is written."""
    model = tiny(tied=tied)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    want = model(prompt(9, batch=2))
    ids = generate_ids(model, prompt(9, batch=2), 30, temperature=0)
    lay_out_for_decoding(model)
    assert not model.tokens.weight.is_contiguous()
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    torch.testing.assert_close(model(prompt(9, batch=2)), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(generate_ids(model, prompt(9, batch=2), 30, temperature=0), ids)
    model.save_pretrained(tmp_path / "m")
    again = GPT.from_pretrained(tmp_path / "m")
    for name, t in again.state_dict().items():
        assert torch.equal(t, before[name])


def test_dropout_is_off_and_every_module_is_left_as_it_was() -> None:
    model = tiny(dropout=0.5)
    want = model.generate(prompt(4), 20, temperature=0)
    model.train()
    model.stack.subs[1].eval()  # frozen by somebody
    modes = [module.training for module in model.modules()]
    assert torch.equal(model.generate(prompt(4), 20, temperature=0), want)
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters())


def test_a_bfloat16_model_generates() -> None:
    """What float64 makes of the same weights.

    A bfloat16 rounds at 2^-9. In each of two layers some eight roundings follow one another, and
    one at each end: 18 * 2^-9 of the largest logit, were they all in one direction.
    """
    model = tiny().bfloat16()
    results = generate(model, PROMPTS, tokenizer=PAIRS, temperature=0, max_new_tokens=20, eos=None)
    exact = copy.deepcopy(model).double()
    for result in results:
        want = without_cache(exact, result.prompt_ids + result.ids)[len(result.prompt_ids) - 1 :]
        rounding = 18 * 2**-9 * float(want.abs().max())
        chosen = want.gather(-1, torch.tensor(result.ids)[:, None])[:, 0]
        assert (chosen >= want[:, : PAIRS.vocab_size].amax(-1) - 2 * rounding).all()
        logprobs = chosen - want.logsumexp(-1)
        np.testing.assert_allclose(result.logprobs, logprobs, rtol=0, atol=2 * rounding)
        assert want.std(-1).min() > 4 * rounding, "any token would do"


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(Mendable, match="the tokenizer has 295 tokens and the model 294"):
        generate(Bigrams(0, vocab_size=294), "a", tokenizer=PAIRS)
    model = tiny()
    model.tokenizer_identity = PAIRS.identity
    generate(model, "a", tokenizer=PAIRS, max_new_tokens=1)
    with pytest.raises(Mendable, match=f"saved with the tokenizer {PAIRS.identity}, this one is"):
        generate(model, "a", tokenizer=BYTES)


def test_an_option_has_its_default_in_one_place() -> None:
    """What the type checker reads is what the classes hold that have the defaults."""
    listed = {kind: get_type_hints(kind) for kind in (WritingOptions, Sampling, Limits)}
    others = get_type_hints(Writing.__init__)
    others = {name: others[name] for name in ("seed", "top_logprobs")}
    assert listed[WritingOptions] == listed[Sampling] | listed[Limits] | others


def test_wrong_arguments_are_named() -> None:
    model = tiny()
    with pytest.raises(TypeError, match=r"unknown option 'temprature'; did you mean temperature\?"):
        generate(model, "a", tokenizer=PAIRS, temprature=0.5)
    with pytest.raises(TypeError, match="prompt 1 must be a str or a list of ids, got 7"):
        generate(model, ["a", 7], tokenizer=PAIRS)
    with pytest.raises(TypeError, match="a stop string must be a str, got 3"):
        generate(model, "a", tokenizer=PAIRS, stop=[[3]])
    for wrong in (999, -1, 2.5):
        with pytest.raises(Mendable, match="eos must be one of the 300 ids or None"):
            generate(model, "a", tokenizer=PAIRS, eos=wrong, regex="[ab]*")
    for wrong in (2.5, "1", True):
        with pytest.raises(Mendable, match="a seed must be a whole number"):
            generate(model, "a", tokenizer=PAIRS, seed=wrong)
    with pytest.raises(Mendable, match="top_logprobs must be between 0 and"):
        generate(model, "a", tokenizer=PAIRS, top_logprobs=2.5)
    for options in ({"regex": 5}, {"banned_words": [5]}):
        with pytest.raises(TypeError, match="a banned word or regex must be a str, got 5"):
            generate(model, "a", tokenizer=PAIRS, **options)
    with pytest.raises(TypeError, match="stop must be a str or a list"):
        generate(model, "a", tokenizer=PAIRS, stop=None)
    for wrong in (-1, 2.5, True):
        with pytest.raises(Mendable, match="max_new_tokens must be a whole number of at least 0"):
            generate(model, "a", tokenizer=PAIRS, max_new_tokens=wrong)
        with pytest.raises(Mendable, match="max_new_tokens must be a whole number of at least 0"):
            model.generate(prompt(3), wrong)
    with pytest.raises(Mendable, match=r"ids must be whole numbers of shape \(B, T\)"):
        model.generate(torch.zeros(3), 5)
    for dtype in (torch.uint8, torch.bool, torch.int16):
        with pytest.raises(Mendable, match=rf"in int64 or int32, got \(1, 3\) in {dtype}"):
            model.generate(prompt(3).to(dtype), 5)
    nothing = torch.tensor([[True, True], [False, False]])
    with pytest.raises(Mendable, match="row 1 has no token to start from"):
        model.generate(prompt(2, batch=2), 5, valid=nothing)
    with pytest.raises(Mendable, match="valid must be boolean, True = real token, of the shape"):
        model.generate(prompt(2), 5, valid=torch.ones(1, 3, dtype=torch.bool))


def test_a_prompt_of_ids_is_the_prompt_of_its_text() -> None:
    """Apart from ids that no text has."""
    model, options = tiny(), {"tokenizer": BYTES, "max_new_tokens": 8}
    text, ids = generate(model, ["abc", [97, 98, 99]], seed=[3, 3], **options)
    assert (text.text, text.ids, text.prompt_ids) == (ids.text, ids.ids, ids.prompt_ids)
    assert (text.prompt, ids.prompt) == ("abc", "")
    assert generate(model, [[256, 97]], temperature=0, **options)[0].prompt_ids == [256, 97]
    for wrong in ([], [-1], [999]):
        with pytest.raises(Mendable, match="prompt 0 must have at least one id, each of the 300"):
            generate(model, [wrong], **options)


def test_ids_in_ids_out() -> None:
    got = tiny().generate(prompt(3, batch=4).int(), 5, seed=0)
    assert got.shape == (4, 8)
    assert got.dtype == torch.int
    assert torch.equal(got[:, :3], prompt(3, batch=4).int())


def test_no_rows_are_as_long_as_others() -> None:
    got = tiny().generate(prompt(3)[:0].int(), 5)
    assert (got.shape, got.dtype) == ((0, 8), torch.int)


def test_a_penalty_that_leaves_float32_is_named() -> None:
    """From logits of 1e35, which are finite: the penalty's factor makes them infinite."""
    model = Bigrams(0, scale=1e35)
    with pytest.raises(FloatingPointError, match=r"of row 0: .*, or a penalty takes them"):
        generate(model, "a", tokenizer=BYTES, repetition_penalty=1e-5)
