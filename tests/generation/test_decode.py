"""Token after token: with a cache as without, in a batch as alone, beyond the context."""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from addnorm import schemes
from addnorm.context import Context, Memory
from addnorm.errors import Mendable
from addnorm.generation import (
    StaticCache,
    generate,
    generate_ids,
)
from addnorm.generation.beyond_context import window_start
from addnorm.generation.decode import Decoder
from addnorm.generation.sampling import Sampling
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import POSITIONS
from tests.generation.hosts import BYTES, PAIRS, PROMPTS, Bigrams, prompt, tiny, without_cache
from tests.nets import DECODER_OF_BOTH, TIME, build, inputs, stir

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
