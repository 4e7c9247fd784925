"""How probable a text is: by the definition, token by token, and what is made of it."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.generation import Likelihood, perplexity, token_logprobs
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from tests.nets import stir

BYTES = Tokenizer.bytes()
TEXT = (
    "The cat sat on the mat, and the café was closed; naïve cats sat on the other mat.\n"
    "日本語の文章 and 12, 123, 1234 other things — the end of the theme. 🙂 The cat sat down.\n"
)
CHARACTERS = Tokenizer.characters(TEXT)  # no end of text
PAIRS = Tokenizer.train(TEXT * 5, vocab_size=300)  # merges, some of them across characters
TOKENIZERS = {"bytes": BYTES, "characters": CHARACTERS, "pairs": PAIRS}


def definition(model: Any, ids: Sequence[int], context: int, stride: int) -> list[float]:
    """log p(x_j | x_b, ..., x_{j-1}) for j = 1, 2, ...: each from a run of the model on these."""
    scores = []
    for j in range(1, len(ids)):
        b = stride * max(0, math.ceil((j - context) / stride))
        with torch.no_grad():
            logits = model(torch.tensor([ids[b:j]]))[0, -1]
        scores.append(float(logits.double().log_softmax(-1)[ids[j]]))
    return scores


@dataclasses.dataclass(frozen=True)
class Shape:
    vocab_size: int
    context_length: int


class Hashed(nn.Module):
    """Logits that depend on how many ids are seen and on their sum: another window gives others.

    They are looked up, so that they are the same to the bit in any batch.
    """

    def __init__(self, vocab_size: int = 7, context_length: int = 8, scale: float = 2.0) -> None:
        super().__init__()
        self.config = Shape(vocab_size, context_length)
        g = torch.Generator().manual_seed(0)
        table = scale * torch.randn(1009, vocab_size, generator=g, dtype=torch.float64)
        self.table = nn.Parameter(table)
        self.read: list[tuple[int, int]] = []  # the shapes of what was read

    def forward(
        self, ids: Tensor, valid: Any = None, *, cache: Any = None, last: int | None = None
    ) -> Tensor:
        self.read.append((ids.shape[0], ids.shape[1]))
        seen = 101 * torch.arange(1, ids.shape[1] + 1) + 13 * ids.cumsum(1)
        logits = self.table[seen % len(self.table)]
        return logits if last is None else logits[:, -last:]


def tiny(**changes: Any) -> GPT:
    """Every parameter away from its init, and logits that spread."""
    config = GPTConfig(vocab_size=40, context_length=4, dim=16, n_layers=2, n_heads=4, tied=False)
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(config, **changes))
    stir(model)
    with torch.no_grad():
        model.tokens.weight.normal_()
        for p in (*model.stack.parameters(), model.head.weight):
            if p.dim() == 2:
                p.normal_(std=1.5 * p.shape[1] ** -0.5)
    return model.eval()


def random_ids(n: int, vocab_size: int = 7, seed: int = 0) -> list[int]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (n,), generator=g).tolist()


def close(got: Tensor, want: Sequence[float], tolerance: float) -> None:
    """Both (n - 1,), the first in float64, and apart by at most ``tolerance``."""
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), np.array(want), rtol=0, atol=tolerance)


# --- token by token -------------------------------------------------------------------------------

# Logits are equal to the bit, at most 10, and log_softmax of 7 makes some 10 roundings of numbers
# of that size: 10 * 10 * 1.1e-16.
EXACT = 2e-14


@pytest.mark.parametrize("context", [1, 2, 5, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_tokens_by_the_definition(context: int, batch_size: int) -> None:
    """Every stride, and every length up to a third window and beyond."""
    model = Hashed()
    for stride in range(1, context + 1):
        for n in range(1, 3 * context + 4):
            ids = random_ids(n, seed=n)
            got = token_logprobs(model, ids, context=context, stride=stride, batch_size=batch_size)
            close(got, definition(model, ids, context, stride), EXACT)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), n=st.integers(1, 60), batch_size=st.integers(1, 9))
def test_any_window(data: st.DataObject, n: int, batch_size: int) -> None:
    """The values, and what they cost: never more than ``context`` tokens and ``batch_size`` rows in
    a forward, and as many windows as the text needs."""
    context = data.draw(st.integers(1, 70))
    stride = data.draw(st.integers(1, context))
    ids = data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    model = Hashed()
    got = token_logprobs(model, ids, context=context, stride=stride, batch_size=batch_size)
    read = model.read.copy()
    close(got, definition(model, ids, context, stride), EXACT)
    assert all(rows <= batch_size and tokens <= context for rows, tokens in read)
    more = max(0, math.ceil((n - 1 - context) / stride))  # begin at stride, 2 * stride, ...
    assert sum(rows for rows, _ in read) == (n > 1) + more
    # First and last window may be of shapes of their own; the others go together.
    assert len(read) <= math.ceil(max(more - 1, 0) / batch_size) + 2


def test_the_context_is_the_models_and_the_stride_half_of_it() -> None:
    ids = random_ids(30)
    for context, stride in ((1, 1), (2, 1), (7, 3), (8, 4)):
        model = Hashed(context_length=context)
        assert torch.equal(
            token_logprobs(model, ids),
            token_logprobs(model, ids, context=context, stride=stride),
        )
    model = Hashed(context_length=8)  # half of the context that is given, not of the model's
    assert torch.equal(
        token_logprobs(model, ids, context=4), token_logprobs(model, ids, context=4, stride=2)
    )


def test_too_few_tokens() -> None:
    model = Hashed()
    for ids in ([], [3]):
        got = token_logprobs(model, ids)
        assert (got.shape, got.dtype, model.read) == ((0,), torch.float64, [])


# --- models ---------------------------------------------------------------------------------------

# Float64: some 1e4 operations of 1.1e-16 feed a logit, and the condition of these nets is below
# 1e2. Float32: 6.0e-8 an operation; the roundings are independent, so that 1e4 of them add up to
# 1e2 of one, and logits are below 10. bfloat16: 3.9e-3, and what is rounded so is what stands
# between operations, some 50 times: 7 of one, of logits below 6.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.2}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("position", ["learned", "rope", "alibi"])
def test_a_gpt_by_the_definition(position: str, dtype: torch.dtype) -> None:
    model = tiny(position=position).to(dtype)
    context = model.config.context_length
    least = definition(model, random_ids(14, 40), context, context)
    most = definition(model, random_ids(14, 40), context, 1)
    assert np.abs(np.subtract(least, most)).max() > 5 * TOLERANCES[dtype], "windows are told apart"
    for stride, n, batch_size in (
        *((1, 14, 3), (2, 14, 100), (3, 14, 2), (4, 14, 1)),
        *((2, 2, 1), (2, context - 1, 1), (2, context, 3), (2, context + 1, 3)),
    ):
        ids = random_ids(n, 40, seed=n)
        got = token_logprobs(model, ids, stride=stride, batch_size=batch_size)
        close(got, definition(model, ids, context, stride), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_probabilities_are_in_float32(dtype: torch.dtype) -> None:
    """Of logits in any dtype: log_softmax of 500 in float32, some 30 roundings of numbers below 16
    at 6.0e-8 each. In bfloat16 itself it would be off by 0.03, in float16 by 0.004."""
    model = Hashed(vocab_size=500).to(dtype)
    ids = random_ids(100, 500)
    close(token_logprobs(model, ids, stride=3), definition(model, ids, 8, 3), 3e-5)


def test_dropout_is_off_and_every_module_is_left_as_it_was() -> None:
    model = tiny(dropout=0.5)
    ids = random_ids(20, 40)
    want = token_logprobs(model, ids)
    model.train()
    model.stack.subs[1].eval()  # frozen by somebody
    modes = [module.training for module in model.modules()]
    got = token_logprobs(model, ids)
    assert torch.equal(got, want)
    assert not got.requires_grad
    assert [module.training for module in model.modules()] == modes
    model.tokens.weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        token_logprobs(model, ids)
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_is_not_finite_is_an_error_that_names_the_token(bad: float, batch_size: int) -> None:
    """Id 6 comes once, just before a token, and what follows it is broken."""

    class Broken(Hashed):
        def forward(self, ids: Tensor, *args: Any, last: int | None = None, **kw: Any) -> Tensor:
            logits = super().forward(ids).clone()
            logits[ids == 6] = bad
            return logits if last is None else logits[:, -last:]

    model = Broken()
    whole = random_ids(30, 6)
    assert token_logprobs(model, whole).isfinite().all()
    for place in range(1, 30):
        ids = [*whole[: place - 1], 6, *whole[place:]]
        with pytest.raises(FloatingPointError, match=rf"not finite .*token {place}\b"):
            token_logprobs(model, ids, context=8, stride=3, batch_size=batch_size)


# --- texts ----------------------------------------------------------------------------------------


def by_definition(
    model: Any, texts: Sequence[str], tokenizer: Tokenizer, context: int, stride: int
) -> Likelihood:
    """Every count from the text itself where the text says it."""
    nats, tokens, words, size = 0.0, 0, 0, 0
    for text in texts:
        ids = tokenizer.encode(text)
        if tokenizer.eos_id is not None:
            scores = definition(model, [tokenizer.eos_id, *ids], context, stride)
            size += len(text.encode())
        else:  # the first token, here always a character, is not scored
            scores = definition(model, ids, context, stride)
            size += len(text[1:].encode())
        nats -= math.fsum(scores)
        tokens += len(scores)
        words += len(text.split())
    return Likelihood(nats, tokens, words, size, context, stride, tokenizer.eos_id)


def same(got: Likelihood, want: Likelihood, tolerance: float = 1e-12) -> None:
    """All counts equal; nats relative: float64 rounds a sum of 1e3 terms at 1e3 * 1.1e-16."""
    assert got.nats == pytest.approx(want.nats, rel=tolerance)
    assert dataclasses.replace(got, nats=want.nats) == want


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("context", "stride"), [(None, None), (5, 5), (7, 2), (400, 1)])
def test_perplexity_by_the_definition(name: str, context: int | None, stride: int | None) -> None:
    tokenizer = TOKENIZERS[name]
    model = Hashed(vocab_size=300, context_length=12)
    got = perplexity(model, TEXT, tokenizer=tokenizer, context=context, stride=stride, batch_size=4)
    want = by_definition(model, [TEXT], tokenizer, context or 12, stride or 6)
    same(got, want)
    assert got.words == len(TEXT.split())
    nats = want.nats
    first = 0 if tokenizer.eos_id is not None else len(TEXT[0].encode())
    assert got.bytes == len(TEXT.encode()) - first
    rel = 1e-10  # of exp(x), that of x times x, and x is below 60
    assert got.perplexity == pytest.approx(math.exp(nats / got.tokens), rel=rel)
    assert got.word_perplexity == pytest.approx(math.exp(nats / got.words), rel=rel)
    assert got.byte_perplexity == pytest.approx(math.exp(nats / got.bytes), rel=rel)
    assert got.bits_per_byte == pytest.approx(nats / got.bytes / math.log(2), rel=rel)
    assert 2**got.bits_per_byte == pytest.approx(got.byte_perplexity, rel=rel)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_gpt_on_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    model = tiny(vocab_size=300, context_length=24).double()
    text = TEXT.splitlines()[1]
    got = perplexity(model, text, tokenizer=tokenizer, stride=7, batch_size=5)
    same(got, by_definition(model, [text], tokenizer, 24, 7), 1e-10)  # as token by token


@pytest.mark.parametrize("name", TOKENIZERS)
def test_several_texts_are_each_for_itself(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    model = Hashed(vocab_size=300)
    texts = [TEXT, "", "The café", "t", "日本 日本", "   "]
    got = perplexity(model, texts, tokenizer=tokenizer, batch_size=3)
    same(got, by_definition(model, texts, tokenizer, 8, 4))
    again = perplexity(model, texts[::-1], tokenizer=tokenizer)
    same(again, got)
    parts = [perplexity(model, t, tokenizer=tokenizer) for t in (TEXT, "The café", "日本 日本")]
    together = perplexity(model, [TEXT, "The café", "日本 日本"], tokenizer=tokenizer)
    assert together.nats == pytest.approx(sum(p.nats for p in parts), rel=1e-12)
    joined = perplexity(model, TEXT + "The café" + "日本 日本", tokenizer=tokenizer)
    assert joined.nats != pytest.approx(together.nats, rel=1e-6)


def test_the_first_token_is_scored_after_the_end_of_text() -> None:
    model = Hashed(vocab_size=300)
    for tokenizer in (BYTES, PAIRS):
        got = perplexity(model, "t", tokenizer=tokenizer)
        logits = model(torch.tensor([[tokenizer.eos_id]]))[0, 0]
        assert got.nats == pytest.approx(-logits.log_softmax(-1)[tokenizer.encode("t")[0]].item())
        assert (got.tokens, got.words, got.bytes, got.start) == (1, 1, 1, tokenizer.eos_id)
    got = perplexity(model, "th", tokenizer=CHARACTERS)
    first, second = CHARACTERS.encode("th")
    logits = model(torch.tensor([[first]]))[0, 0]
    assert got.nats == pytest.approx(-logits.log_softmax(-1)[second].item())
    assert (got.tokens, got.words, got.bytes, got.start) == (1, 1, 1, None)
    # The name of a special token in a text is text.
    assert perplexity(model, "<|endoftext|>", tokenizer=BYTES).tokens == len("<|endoftext|>")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large(
    name: str, dtype: torch.dtype
) -> None:
    """Tolerance: one rounding of log 300 = 5.7 is 5.7 roundings of its exp; doubled."""
    model = Hashed(vocab_size=300, scale=0.0).to(dtype)
    rounding = 1.2e-16 if dtype == torch.float64 else 6.0e-8
    for text in (TEXT, "The end"):
        got = perplexity(model, text, tokenizer=TOKENIZERS[name])
        assert got.perplexity == pytest.approx(300, rel=12 * rounding + 1e-14)
        if name == "bytes":
            assert got.byte_perplexity == got.perplexity
            assert got.bits_per_byte == pytest.approx(math.log2(300), rel=12 * rounding + 1e-14)


def test_a_text_that_is_known_by_heart() -> None:
    """The largest logit is always the next byte's: nothing is left to be surprised by."""

    class Knowing(Hashed):
        def forward(self, ids: Tensor, *args: Any, last: int | None = None, **kw: Any) -> Tensor:
            logits = torch.zeros(*ids.shape, 257)
            logits.scatter_(2, (ids[..., None] + 1) % 257, 1000.0)
            return logits if last is None else logits[:, -last:]

    got = perplexity(Knowing(257), "".join(map(chr, range(128))), tokenizer=BYTES)
    assert (got.nats, got.perplexity, got.bits_per_byte) == (0.0, 1.0, 0.0)


def test_figures_beyond_a_float_are_infinite() -> None:
    """A language without spaces is one long word: its perplexity is no number, its bits are."""
    got = perplexity(Hashed(vocab_size=300), "日本" * 100, tokenizer=BYTES)
    assert (got.words, got.tokens, got.bytes) == (1, 600, 600)
    assert got.word_perplexity == math.inf
    assert "inf per word (1 word)" in str(got)
    assert Likelihood(1e6, 10, 10, 10, 8, 4, None).perplexity == math.inf
    assert Likelihood(1e6, 10, 10, 10, 8, 4, None).byte_perplexity == math.inf


def test_a_text_without_words() -> None:
    got = perplexity(Hashed(vocab_size=300), " \n", tokenizer=BYTES)
    assert (got.words, got.tokens) == (0, 2)
    assert math.isnan(got.word_perplexity)
    assert math.isfinite(got.bits_per_byte)
    assert "nan per word (0 words)" in str(got)


def test_what_it_prints_can_be_done_again() -> None:
    """All four figures with their counts, and what one must know to compare them."""
    likelihood = Likelihood(
        nats=200.0, tokens=50, words=20, bytes=100, context=64, stride=32, start=256
    )
    assert str(likelihood) == (
        "perplexity 54.5982 per token (50 tokens), 22,026 per word (20 words), "
        "2.8854 bits per byte (100 bytes)\n"
        "context 64, stride 32; each text is scored as following the end-of-text token (id 256)"
    )
    without = dataclasses.replace(likelihood, start=None)
    assert str(without).endswith("stride 32; the first token of each text is not scored")
    got = str(perplexity(Hashed(vocab_size=300), TEXT, tokenizer=CHARACTERS, stride=3))
    assert f"per token ({len(TEXT) - 1} tokens)" in got
    assert got.endswith("context 8, stride 3; the first token of each text is not scored")


def test_as_json() -> None:
    """Every field and every figure that follows from them, under its name."""
    got = perplexity(Hashed(vocab_size=300), TEXT, tokenizer=PAIRS)
    told = json.loads(json.dumps(got.to_json()))
    fields = {field.name for field in dataclasses.fields(got)}
    derived = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert told.keys() == fields | derived
    assert all(told[name] == getattr(got, name) for name in told)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_progress_counts_scored_tokens(name: str) -> None:
    calls: list[tuple[int, int]] = []
    texts = [TEXT, "", "The end"]
    model = Hashed(vocab_size=300)
    got = perplexity(model, texts, tokenizer=TOKENIZERS[name], progress=lambda *n: calls.append(n))
    assert len(calls) == len(model.read), "once for each forward"
    assert all(whole == got.tokens for _, whole in calls)
    done = [n for n, _ in calls]
    assert sorted(set(done)) == done
    assert done[-1] == got.tokens
    assert got == perplexity(model, texts, tokenizer=TOKENIZERS[name])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        ("", "bytes"),
        ("", "pairs"),
        ("", "characters"),
        ("t", "characters"),
        ([], "bytes"),
        (["", ""], "pairs"),
        (["t", "", "h"], "characters"),
    ],
)
def test_nothing_to_score_is_an_error(texts: str | list[str], name: str) -> None:
    with pytest.raises(Mendable, match="there is no token to score"):
        perplexity(Hashed(vocab_size=300), texts, tokenizer=TOKENIZERS[name])


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(Mendable, match="the tokenizer has 257 tokens and the model 256"):
        perplexity(Hashed(vocab_size=256), "a", tokenizer=BYTES)
    model = tiny(vocab_size=300)
    model.tokenizer_identity = PAIRS.identity
    assert perplexity(model, "a", tokenizer=PAIRS).tokens == 1
    with pytest.raises(Mendable, match=f"saved with the tokenizer {PAIRS.identity}, this one is"):
        perplexity(model, "a", tokenizer=BYTES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"context": -3}, "context must be at least 1, got -3"),
        ({"stride": 0}, "stride must be between 1 and the context of 8, .* got 0"),
        ({"stride": 9}, "stride must be between 1 and the context of 8, .* got 9"),
        ({"context": 4, "stride": 5}, "stride must be between 1 and the context of 4, .* got 5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
    ],
)
def test_wrong_numbers_are_named(options: dict[str, int], message: str) -> None:
    model = Hashed(vocab_size=300)
    with pytest.raises(Mendable, match=message):
        token_logprobs(model, [1, 2, 3], **options)
    with pytest.raises(Mendable, match=message):
        perplexity(model, "abc", tokenizer=BYTES, **options)


def test_a_context_beyond_the_models() -> None:
    """An error of the model where its positions end; where they do not, it is read on."""
    ids = random_ids(20, 40)
    with pytest.raises(Mendable, match="longer than the context of 4"):
        token_logprobs(tiny(), ids, context=5)
    assert len(token_logprobs(tiny(), ids[:5], context=100)) == 4  # four are enough for five
    model = tiny(position="alibi").double()
    close(token_logprobs(model, ids, context=15), definition(model, ids, 15, 7), 1e-10)
