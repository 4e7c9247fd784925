"""Generation: with a cache as without, in a batch as alone, streamed as at once, and its end."""

import copy
import dataclasses
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from addnorm import schemes
from addnorm.context import Context, Memory
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.generation import (
    Limits,
    RegexError,
    StaticCache,
    Writing,
    generate,
    generate_ids,
    lay_out_for_decoding,
    stream_text,
)
from addnorm.generation import automaton as automata
from addnorm.generation.automaton import both, regex, without
from addnorm.generation.constraint import Constraint
from addnorm.generation.decode import Decoder, window_start
from addnorm.generation.sampling import Sampling, distribution
from addnorm.generation.stopping import StopStrings, looped
from addnorm.generation.text import WritingOptions
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import POSITIONS, GPTConfig
from tests.nets import DECODER_OF_BOTH, TIME, build, inputs, stir

BYTES = Tokenizer.bytes()
CHARACTERS = Tokenizer.characters("abcxyz .")  # no end of text, and not every byte
TEXT = "the cat and the café: 12, 123, 1234 naïve 日本語日本 the end of the theme " * 20
PAIRS = Tokenizer.train(TEXT, vocab_size=300)  # merges, some of them across characters
TOKENIZERS = {"bytes": BYTES, "characters": CHARACTERS, "pairs": PAIRS}


def tiny(seed: int = 0, **changes: Any) -> GPT:
    """A small model moved away from its init, with a head of its own: one whose head is its token
    table repeats the last token for ever."""
    config = GPTConfig(
        vocab_size=300, context_length=400, dim=16, n_layers=2, n_heads=4, tied=False
    )
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(config, **changes))
    stir(model, seed)
    with torch.no_grad():
        # branches that say something even where nothing else is left; without any norm, less loud:
        # what grows from layer to layer enlarges rounding as much
        loud = 0.5 if model.config.scheme == "no_norm" else 1.0
        for p in model.stack.parameters():
            if p.dim() == 2:
                p.normal_(std=loud * p.shape[1] ** -0.5)
        model.tokens.weight.normal_()
        if model.head is not None:
            model.head.weight.normal_(std=0.3)
    return model.eval()


def prompt(length: int, seed: int = 0, batch: int = 1, vocab: int = 61) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (batch, length), generator=g)


@dataclasses.dataclass(frozen=True)
class Shape:
    vocab_size: int = 300
    context_length: int = 10_000


class Scripted(nn.Module):
    """Says the given ids one after the other, whatever it reads: for one row."""

    def __init__(self, ids: list[int], sharp: float = 50.0, **shape: int) -> None:
        super().__init__()
        self.config = Shape(**shape)
        self.anchor = nn.Parameter(torch.zeros(1))
        self.ids, self.sharp, self.said = ids, sharp, 0

    def forward(self, ids, valid=None, *, cache=None, last=None):
        cache.update(0, torch.zeros(len(ids), 1, ids.shape[1], 1), torch.zeros(1, 1, 1, 1))
        logits = torch.zeros(len(ids), 1, self.config.vocab_size)
        logits[:, :, self.ids[self.said]] = self.sharp
        self.said += 1
        return logits


class Bigrams(nn.Module):
    """The next token depends on the last one only: anything can be said, and quickly."""

    def __init__(self, seed: int, vocab_size: int = 300, scale: float = 3.0) -> None:
        super().__init__()
        self.config = Shape(vocab_size)
        g = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(scale * torch.randn(vocab_size, vocab_size, generator=g))

    def forward(self, ids, valid=None, *, cache=None, last=None):
        k = torch.zeros(len(ids), 1, ids.shape[1], 1)
        cache.update(0, k, k)
        return self.table[ids][:, -last:]


def say(text: str | bytes, tokenizer: Tokenizer = BYTES, prompt: str = "p", **options: Any) -> Any:
    """What ``generate`` makes of a model that says this, and then only spaces."""
    data = text.encode() if isinstance(text, str) else text
    ids = tokenizer.encode_bytes(data)
    model = Scripted(ids + tokenizer.encode(" ") * 200)
    options = {"temperature": 0, "max_new_tokens": len(ids), **options}
    return generate(model, prompt, tokenizer=tokenizer, **options)


# --- with a cache as without ----------------------------------------------------------------------

DESIGNS: list[dict[str, Any]] = [
    *({"scheme": name} for name in schemes.names()),
    {"scheme": "parallel(pre_norm)"},
    {"scheme": "with_layer_scale(drop_path(mix_ln, 0.5), 0.5)"},
    *({"position": name} for name in POSITIONS if name != "learned"),
    *({"position": name, "n_kv_heads": 2} for name in POSITIONS),
    {"n_kv_heads": 1, "window": 7},
    {"position": "rope", "window": 300, "qk_norm": "rms"},
    {"position": "alibi", "window": 5, "attention_softcap": 5.0},
    {"mlp": "gated", "norm": "rms", "softcap": 30.0, "vocab_multiple": 64},
    {"tied": True},
]


def with_cache(model: GPT, ids: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Greedy: all ids (B, T + steps), and the logits of every step (B, steps, V)."""
    decoder = Decoder(model, ids.tolist(), Sampling(temperature=0), [0] * len(ids))
    logits = []
    for _ in range(steps):
        decoder.step()
        logits.append(decoder.logits)
    return torch.tensor(decoder.ids), torch.stack(logits, 1)


@torch.no_grad()
def without_cache(model: GPT, ids: Any) -> Tensor:
    """The logits of a row's second token, of its third, ..., by one forward: (n - 1, V)."""
    return model(torch.as_tensor(ids)[None, :-1])[0]


@pytest.mark.parametrize("changes", DESIGNS, ids=str)
def test_with_cache_as_without(changes: dict[str, Any]) -> None:
    """256 tokens in float32: the same ids, logits within 1e-4.

    A forward without a cache over all that was written gives, at each place, the logits that a
    forward over what came before it gives: the stack is causal. So equal ids here are, by
    induction, the ids of greedy generation without a cache.
    """
    model = tiny(**changes)
    ids, logits = with_cache(model, prompt(9, batch=4), 256)
    with torch.no_grad():
        want = model(ids[:, :-1])[:, 8:]
    assert torch.equal(want.argmax(-1), ids[:, 9:])
    assert (logits - want).abs().max() <= 1e-4
    if not model.config.tied:
        assert len(ids[:, 9:].unique()) > 2, "a model that says one thing only proves little"


@pytest.mark.slow
@pytest.mark.parametrize("changes", DESIGNS, ids=str)
def test_with_cache_as_without_step_by_step(changes: dict[str, Any]) -> None:
    """The same without the induction: every step without a cache, on a deeper and wider model."""
    model = tiny(dim=64, n_layers=5, **changes)
    ids, logits = with_cache(model, prompt(9, batch=2), 256)
    x = prompt(9, batch=2)
    with torch.no_grad():
        for step in range(256):
            want = model(x)[:, -1]
            assert (logits[:, step] - want).abs().max() <= 1e-4
            x = torch.cat((x, want.argmax(-1, keepdim=True)), 1)
    assert torch.equal(x, ids)


@pytest.mark.parametrize("name", schemes.names())
def test_the_static_cache_in_a_stack(name: str) -> None:
    """In chunks, with memory from an encoder, and with rows taken out on the way; float64."""
    torch.manual_seed(0)
    stack = stir(build(name, DECODER_OF_BOTH).double()).eval()
    x, ctx = inputs(DECODER_OF_BOTH)
    want = stack(x, ctx)
    cache = StaticCache()
    ctx = ctx._replace(cache=cache)
    got = []
    for part in x.split([3, 1, TIME - 4], 1):
        cache.reserve(part.shape[1])
        got.append(stack(part, ctx))
        cache.advance(part.shape[1])
    torch.testing.assert_close(torch.cat(got, 1), want, rtol=1e-12, atol=1e-12)
    more = torch.cat((x, x[:, :2]), 1)[[2, 0]]
    cache.keep(torch.tensor([2, 0]))
    cache.reserve(2)
    memory = Memory(ctx.memory.x[[2, 0]])
    got_more = stack(more[:, TIME:], ctx._replace(memory=memory))
    want_more = stack(more, Context(memory=memory))[:, TIME:]
    torch.testing.assert_close(got_more, want_more, rtol=1e-12, atol=1e-12)


def test_the_cache_counts_where_its_tensors_are() -> None:
    """Beside them, so that a compiled graph reads the count without a copy between devices."""
    cache = StaticCache()
    cache.reserve(2)
    cache.update("a", *torch.empty(2, 1, 2, 2, 4, device="meta"))
    cache.advance(2)
    assert cache._slot is not None
    assert cache._slot.device.type == "meta"


def test_a_cache_with_room_keeps_its_buffers() -> None:
    cache = StaticCache()
    cache.reserve(2)
    cache.update("a", *torch.randn(2, 1, 2, 2, 4))
    cache.advance(2)
    before = cache._own["a"][0]
    cache.reserve(cache.capacity - 2)
    assert cache._own["a"][0] is before
    cache.reserve(cache.capacity - 1)
    assert cache._own["a"][0] is not before


def test_the_cache_grows_in_buckets() -> None:
    cache = StaticCache()
    sizes = []
    k = torch.randn(2, 3, 1, 4)
    for _ in range(300):
        cache.reserve(1)
        sizes.append(cache.capacity)
        all_k, _ = cache.update("a", k, k)
        cache.advance(1)
    assert sorted(set(sizes)) == [256, 1024]
    assert torch.equal(all_k, (k.expand(2, 3, 300, 4)))
    limited = StaticCache(limit=300)
    limited.reserve(257)
    assert limited.capacity == 300
    with pytest.raises(ValueError, match="301 tokens do not fit into a cache limited to 300"):
        limited.reserve(301)


@pytest.mark.parametrize(
    "changes",
    [{}, {"position": "alibi", "window": 20}, {"position": "rope", "n_kv_heads": 2}],
    ids=str,
)
@pytest.mark.parametrize("padded", [False, True])
def test_a_compiler_sees_few_shapes(changes: dict[str, Any], padded: bool) -> None:
    """One compilation for the prompt and one for each of the two capacities that 260 tokens need;
    a new length of prompt is one more. Ids and logits are those of each row alone, without a
    cache, as in ``test_with_cache_as_without``."""
    model = tiny(n_layers=1, **changes)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, :4] = not padded
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=False)
    rows = [ids[real].tolist() for ids, real in zip(prompt(9, batch=2), valid, strict=True)]
    decoder = Decoder(compiled, rows, Sampling(temperature=0), [0, 0])
    steps = []
    for _ in range(256):
        decoder.step()
        steps.append(decoder.logits)
    assert counter.frame_count <= 3
    for ids, logits in zip(decoder.ids, torch.stack(steps, 1), strict=True):
        want = without_cache(model, ids)[-256:]
        assert ids[-256:] == want.argmax(-1).tolist()
        assert (logits - want).abs().max() <= 1e-4
    generate_ids(compiled, prompt(9, batch=2), 100, temperature=0, valid=valid)
    assert counter.frame_count <= 3


def test_a_compiled_batch_keeps_its_shape() -> None:
    """Rows that are done stay in a compiled batch, unheeded, and the answers do not change."""
    model = tiny(n_layers=1)
    prompts = ["a", "some longer prompt", "b"]
    options: dict[str, Any] = {"seed": 0, "max_new_tokens": 40, "stop": [["\x00"], ["e"], []]}
    want = generate(model, prompts, tokenizer=PAIRS, **options)
    torch._dynamo.reset()
    counter = CompileCounter()
    model.compile(backend=counter, dynamic=False)
    got = generate(model, prompts, tokenizer=PAIRS, **options)
    assert [r.ids for r in got] == [r.ids for r in want]
    assert len({len(r.ids) for r in got}) > 1
    assert counter.frame_count == 2


# --- beyond the context ---------------------------------------------------------------------------


def by_definition(model: GPT, ids: list[int], steps: int, limit: int | None) -> list[int]:
    """Greedy, without a cache, each step on the window that the rule gives."""
    ids = list(ids)
    for _ in range(steps):
        start = 0 if limit is None else window_start(len(ids), limit)
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids[start:]]))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("length", [5, 12, 13, 40])
def test_beyond_the_context_the_window_slides(position: str, length: int) -> None:
    """Prompts shorter than the context of 12, as long, and longer; by three times the context."""
    model = tiny(position=position, context_length=12).double()
    x = prompt(length)
    got = generate_ids(model, x, 36, temperature=0)[0].tolist()
    assert got == by_definition(model, x[0].tolist(), 36, 12)


def test_the_window() -> None:
    """It never exceeds the context, keeps half of it, moves seldom, and depends on n alone."""
    for context in (1, 2, 3, 12, 13):
        starts = [window_start(n, context) for n in range(1, 200)]
        for n, start in enumerate(starts, 1):
            assert 1 <= n - start <= context
            if n > context:
                assert n - start >= max(context // 2, 1)
        moves = [b - a for a, b in pairwise(starts) if b != a]
        assert set(moves) == {context + 1 - max(context // 2, 1)}


def test_going_on_is_the_same_as_not_stopping() -> None:
    model = tiny(context_length=12).double()
    at_once = generate_ids(model, prompt(5), 50, temperature=0)
    half = generate_ids(model, prompt(5), 23, temperature=0)
    assert torch.equal(generate_ids(model, half, 27, temperature=0), at_once)


@pytest.mark.parametrize("position", ["rope", "alibi", "sinusoidal", "none"])
def test_beyond_the_context_a_row_may_grow_on(position: str) -> None:
    model = tiny(position=position, context_length=12).double()
    got = generate(
        model, "abcdef", tokenizer=PAIRS, max_new_tokens=30, temperature=0, beyond="extend"
    )
    ids = PAIRS.encode("abcdef")
    eos = PAIRS.eos_id
    want = by_definition(model, ids, 30, None)[len(ids) :]
    assert got.ids == (want[: want.index(eos) + 1] if eos in want else want)


def test_beyond_the_context_is_an_error_only_if_asked() -> None:
    model = tiny(context_length=12)
    options: dict[str, Any] = {"tokenizer": BYTES, "eos": None, "max_new_tokens": 8}
    assert len(generate(model, "abcde", beyond="error", **options).ids) == 8  # 5 + 8 - 1 = 12
    with pytest.raises(Mendable, match="6 tokens and 8 new ones exceed the context of 12"):
        generate(model, ["a", "abcdef"], beyond="error", **options)
    with pytest.raises(Mendable, match="13 tokens is longer than the context of 12"):
        generate(model, "abcdef", beyond="extend", **options)
    with pytest.raises(Mendable, match="beyond must be one of slide, extend, error, got 'stop'"):
        generate(model, "a", beyond="stop", **options)


# --- in a batch as alone --------------------------------------------------------------------------

PROMPTS = ["a", "The cat", "12, 123, 1234, 12345", "日本", "the café and the theme of the end "]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_is_the_row_alone(position: str, temperature: float) -> None:
    """Lengths of 1 to 20 tokens, a context of 24 that they reach at different times, ends at
    different times. Float64, so that no rounding decides between two tokens."""
    model = tiny(position=position, context_length=24).double()
    options: dict[str, Any] = {
        "tokenizer": PAIRS,
        "max_new_tokens": 60,
        "temperature": temperature,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.1,
        "stop": ["th", "é", "8", " c"],
    }
    together = generate(model, PROMPTS, seed=10, **options)
    for i, (text, row) in enumerate(zip(PROMPTS, together, strict=True)):
        alone = generate(model, text, seed=10 + i, **options)
        assert row.ids == alone.ids
        np.testing.assert_allclose(row.logprobs, alone.logprobs, rtol=0, atol=1e-9)
        assert dataclasses.replace(row, logprobs=[]) == dataclasses.replace(alone, logprobs=[])
    if temperature:
        assert len({len(row.ids) for row in together}) > 2


@pytest.mark.parametrize("position", POSITIONS)
def test_a_row_is_the_row_alone_where_the_cache_grows(position: str) -> None:
    """Prompts of 250, 3 and 249 tokens, and twelve more: the room of 256 is too small on the way.

    Against a forward of each row alone without a cache. In float64, which rounds at 1e-16, sums of
    up to 262 terms of at most 10 in a few layers: 1e-11.
    """
    model = tiny(position=position, n_layers=1).double()
    rows = [prompt(n, seed=n)[0].tolist() for n in (250, 3, 249)]
    decoder = Decoder(model, rows, Sampling(temperature=0), [0, 0, 0])
    steps = []
    for _ in range(12):
        decoder.step()
        steps.append(decoder.logits)
    for row, ids, logits in zip(rows, decoder.ids, torch.stack(steps, 1), strict=True):
        want = without_cache(model, ids)[len(row) - 1 :]
        torch.testing.assert_close(logits, want, rtol=0, atol=1e-11)
        assert ids[len(row) :] == want.argmax(-1).tolist()


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_padding_wherever_it_is(side: str, temperature: float) -> None:
    model = tiny(context_length=24).double()
    rows = [prompt(n, seed=n)[0] for n in (9, 4, 1)]
    ids, valid = torch.full((3, 9), 299), torch.zeros(3, 9, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = {"left": 9 - len(row), "right": 0, "both": (9 - len(row)) // 2}[side]
        ids[i, start : start + len(row)] = row
        valid[i, start : start + len(row)] = True
    options: dict[str, Any] = {"temperature": temperature, "top_k": 20, "top_p": 0.95}
    got = model.generate(ids, 30, seed=4, valid=valid, **options)
    assert got.shape == (3, 39)
    assert torch.equal(got[:, :9], ids)
    for i, row in enumerate(rows):
        alone = model.generate(row[None], 30, seed=4 + i, **options)
        assert torch.equal(got[i, 9:], alone[0, len(row) :])


def test_rows_that_have_ended_are_computed_no_longer() -> None:
    model, sizes = tiny(), []
    model.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    options: dict[str, Any] = {"tokenizer": PAIRS, "temperature": 1.0, "stop": ["e", "t"]}
    found = generate(model, PROMPTS, seed=10, max_new_tokens=30, **options)
    ends = sorted(len(row.ids) for row in found)
    assert ends[0] < ends[-1]
    assert sizes[0] == len(PROMPTS)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < len(PROMPTS)


def test_seeds() -> None:
    model = tiny()
    options: dict[str, Any] = {"tokenizer": PAIRS, "max_new_tokens": 20}
    same = ["the", "the"]
    a, b = generate(model, same, seed=1, **options)
    assert a.ids != b.ids
    assert (a.seed, b.seed) == (1, 2)
    b2, a2 = generate(model, same, seed=[2, 1], **options)
    assert (a2.ids, b2.ids) == (a.ids, b.ids)
    torch.manual_seed(7)
    free = generate(model, same, **options)
    torch.manual_seed(7)
    assert generate(model, same, **options) == free
    assert generate(model, "the", seed=free[1].seed, **options).ids == free[1].ids
    assert generate(model, same, **options) != free
    state = torch.random.get_rng_state()
    assert generate(model, "the", temperature=0, **options).seed is None
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(Mendable, match="1 seeds for 2 prompts"):
        generate(model, same, seed=[1], **options)


def test_seeds_may_be_as_large_as_generators_take() -> None:
    model = Bigrams(0)
    options: dict[str, Any] = {"tokenizer": BYTES, "max_new_tokens": 5, "eos": None}
    last = 2**64 - 1
    a, b = generate(model, ["a", "a"], seed=last - 1, **options)
    assert (a.seed, b.seed) == (last - 1, last)
    assert generate(model, "a", seed=last, **options).ids == b.ids
    assert generate(model, "a", seed=-(2**63), **options).seed == -(2**63)
    for seed, row in ((99999999999999999999, 0), (last, 1), ([0, -(2**63) - 1], 1)):
        with pytest.raises(Mendable, match=f"the seed of row {row} is .*: give one from -2..63 to"):
            generate(model, ["a", "a"], seed=seed, **options)
    for seed in (np.int64(7), np.uint64(7), np.array([7])[0], [np.int32(7)]):
        result = generate(model, "a", seed=seed, **{**options, "max_new_tokens": np.int64(5)})
        assert result == generate(model, "a", seed=7, **options)
        assert type(result.seed) is int  # which JSON can say
    with pytest.raises(Mendable, match="a seed must be a whole number, got None"):
        generate(model, ["a", "a"], seed=[7, None], **options)


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


# --- when it ends ---------------------------------------------------------------------------------


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


# --- regular expressions --------------------------------------------------------------------------

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


# --- banned words ---------------------------------------------------------------------------------


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
    with pytest.raises(TypeError, match="prompt 1 must be a str, got 7"):
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
