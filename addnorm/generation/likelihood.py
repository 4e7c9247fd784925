"""How probable a model finds a text: log-probabilities, perplexity, bits per byte.

The rule of the sliding window. Of the tokens x_0, x_1, ..., x_n every one but x_0 is scored exactly
once. Windows of ``context`` tokens begin at 0, stride, 2 * stride, ...; the first scores all that
it predicts, each other one the last ``stride``, which the one before did not reach:

    log p(x_j | x_b, ..., x_{j-1})   with b = stride * max(0, ceil((j - context) / stride))

So a token sees everything while there are no more than ``context`` before it, and at least
``context - stride + 1`` later. ``stride = 1`` gives each the most there is and costs one forward
per token; ``stride = context`` is cheapest and begins every window without any past, which makes
perplexities larger. Compare only what was computed with the same two numbers.

x_0 is the tokenizer's end-of-text token where it has one, so that all of the text is scored; where
it has none, x_0 is the first token of the text, which then is not scored.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from addnorm.errors import Mendable
from addnorm.generation.decode import LanguageModel
from addnorm.generation.text import TokenizerLike, check_tokenizer
from addnorm.ops.reference import accumulate_dtype
from addnorm.temporary import evaluation_mode
from addnorm.words import figure, plural


@final
@dataclass(frozen=True)
class Likelihood:
    """How probable a text is, and by what rule that was measured.

    ``nats``: -log p of all tokens that were scored; ``tokens``: how many these are; ``bytes``: how
    many bytes of UTF-8. ``words``: how many the text has, as ``str.split`` counts them.
    ``context``, ``stride``: of the windows.
    ``start``: the id before each text; None: its first token was not scored.
    """

    nats: float
    tokens: int
    words: int
    bytes: int
    context: int
    stride: int
    start: int | None

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens): depends on the tokenizer."""
        return _exp(self.nats / self.tokens)

    @property
    def word_perplexity(self) -> float:
        """exp(nats / words): comparable between tokenizers."""
        return _exp(self.nats / self.words) if self.words else math.nan

    @property
    def byte_perplexity(self) -> float:
        """exp(nats / bytes): comparable between tokenizers."""
        return _exp(self.nats / self.bytes) if self.bytes else math.nan

    @property
    def bits_per_byte(self) -> float:
        """log2 of ``byte_perplexity``."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def to_json(self) -> dict[str, float | int | None]:
        """All figures, those that follow from others too."""
        derived = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def __str__(self) -> str:
        if self.start is None:
            start = "the first token of each text is not scored"
        else:
            start = f"each text is scored as following the end-of-text token (id {self.start})"
        return (
            f"perplexity {figure(self.perplexity)} per token ({plural(self.tokens, 'token')}), "
            f"{figure(self.word_perplexity)} per word ({plural(self.words, 'word')}), "
            f"{self.bits_per_byte:.4f} bits per byte ({plural(self.bytes, 'byte')})\n"
            f"context {self.context}, stride {self.stride}; {start}"
        )


def perplexity(
    model: LanguageModel,
    texts: str | Sequence[str],
    *,
    tokenizer: TokenizerLike,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Likelihood:
    """The likelihood of a text, or of several, each for itself and all summed up.

    ``context``: the model's own unless given; ``stride``: half of it. ``batch_size``: how many
    windows go through the model at once. ``progress``: called with how many tokens are scored, and
    of how many.
    """
    check_tokenizer(model, tokenizer)
    context, stride = _window(model, context, stride)
    start = tokenizer.eos_id
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = [([] if start is None else [start]) + tokenizer.encode(text) for text in texts]
    tokens = sum(max(len(ids) - 1, 0) for ids in rows)
    if not tokens:
        raise Mendable("there is no token to score: the text is empty or a single token")
    nats, scored = 0.0, 0
    for ids in rows:
        for part in _scores(model, ids, context, stride, batch_size):
            nats -= part.sum().item()
            scored += len(part)
            if progress is not None:
                progress(scored, tokens)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(tokenizer.token_bytes(id)) for ids in rows for id in ids[1:])
    return Likelihood(nats, tokens, words, size, context, stride, start)


def token_logprobs(
    model: LanguageModel,
    ids: Sequence[int],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
) -> Tensor:
    """The log-probability of each token but the first, (n - 1,) in float64 on the CPU, by sliding
    windows of ``context`` tokens, the model's own unless given, each ``stride`` further, half of
    that unless given. ``batch_size``: how many windows go through the model at once."""
    context, stride = _window(model, context, stride)
    scores = list(_scores(model, ids, context, stride, batch_size))
    return torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64)


def _scores(
    model: LanguageModel, ids: Sequence[int], context: int, stride: int, batch_size: int
) -> Iterator[Tensor]:
    """Log-probabilities of all tokens but the first in their order, in float64 on the CPU, (rows *
    scored,) for each batch of windows. ``context`` and ``stride`` as ``_window`` gives them.
    ``FloatingPointError`` if one is not finite."""
    if batch_size < 1:
        raise Mendable(f"batch_size must be at least 1, got {batch_size}")
    x = torch.tensor(ids, dtype=torch.long, device=next(model.parameters()).device)
    for windows in _batches(len(ids), context, stride, batch_size):
        length, scored = windows[0][1:]
        inputs = torch.stack([x[b : b + length] for b, _, _ in windows])
        with evaluation_mode(model.modules()), torch.inference_mode():
            logits = model(inputs, last=scored)[:, -scored:]  # (B, scored, V)
            logits = logits.to(accumulate_dtype(logits))
            targets = torch.stack(
                [x[b + length - scored + 1 : b + length + 1] for b, _, _ in windows]
            )
            nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        if not nll.isfinite().all():
            row, place = divmod(int((~nll.isfinite()).nonzero()[0]), scored)
            place += windows[row][0] + length - scored + 1
            raise FloatingPointError(f"the likelihood is not finite at token {place}")
        yield -nll.cpu().double()  # not every accelerator has float64


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf  # beyond that it is no float64, and an error


def _window(model: LanguageModel, context: int | None, stride: int | None) -> tuple[int, int]:
    """(context, stride), a ``Mendable`` where they make no sense; None: the model's context, and
    half of it."""
    context = model.config.context_length if context is None else context
    stride = max(context // 2, 1) if stride is None else stride
    if context < 1:
        raise Mendable(f"context must be at least 1, got {context}")
    if not 1 <= stride <= context:
        raise Mendable(
            f"stride must be between 1 and the context of {context}, so that no token is left out, "
            f"got {stride}"
        )
    return context, stride


def _batches(
    n: int, context: int, stride: int, batch_size: int
) -> Iterator[list[tuple[int, int, int]]]:
    """The windows of a text of ``n`` tokens in their order, in batches of one shape: of each the
    (first token, length, how many are scored, which are its last), and at most ``batch_size``
    together. The token behind a window is the target of its last."""
    windows = []
    begin = last = 0  # tokens 1 to last are scored
    while last < n - 1:
        end = min(begin + context, n - 1)
        windows.append((begin, end - begin, end - last))
        last, begin = end, begin + stride
    for _, alike in groupby(windows, key=lambda window: window[1:]):
        group = list(alike)
        for i in range(0, len(group), batch_size):
            yield group[i : i + batch_size]
