"""Tokens after tokens: a batch of rows, a cache, one step at a time. Knows nothing of text.

Rows of different lengths stand flush right with padding before them, which the mask leaves out;
what a row gets does not depend on the rows beside it, apart from rounding.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from addnorm.context import Cache
from addnorm.errors import Mendable
from addnorm.generation.beyond_context import Beyond, window_start
from addnorm.generation.cache import StaticCache
from addnorm.generation.sampling import Sampling, Uniforms, choose, masked, penalized
from addnorm.ops.reference import accumulate_dtype
from addnorm.temporary import evaluation_mode

SEEDS = range(-(2**63), 2**64)  # what torch's generators take


class Shape(Protocol):
    """What is to be known of a model's configuration."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...


class LanguageModel(Protocol):
    """What can generate: logits (B, T, vocab_size) for ids (B, T), as ``GPT.forward`` says."""

    @property
    def config(self) -> Shape: ...

    def __call__(
        self,
        ids: Tensor,
        valid: Tensor | None = None,
        *,
        cache: Cache | None = None,
        last: int | None = None,
    ) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...


class IdWriter(ABC):
    """A language model's ``generate``, which is the same for all."""

    @abstractmethod
    def forward(
        self,
        ids: Tensor,
        valid: Tensor | None = None,
        *,
        cache: Any = None,
        last: int | None = None,
    ) -> Tensor:
        """The logits (B, T, vocab_size), as ``LanguageModel`` says."""

    def generate(
        self: LanguageModel,
        ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The ids (B, T) and ``max_new_tokens`` that follow; for text ``addnorm.generate``.

        ``temperature`` 0 is greedy; row i draws from a generator of its own with ``seed + i``.
        ``valid`` (B, T) is True for real tokens. Beyond the context the window slides.
        """
        return generate_ids(
            self,
            ids,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            valid=valid,
        )


def lay_out_for_decoding(model: LanguageModel) -> None:
    """Store wide float32 matrices column by column, in place: names, shapes and values stay.

    A step of one row is a matrix times a vector, which CPUs compute faster if the matrix is laid
    out by its inputs (docs/log.md has the measurement; in bfloat16 nothing is gained). For models
    that only generate: training and data parallelism prefer the usual layout.
    """
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        rows, columns = module.weight.shape
        if rows >= columns and module.weight.dtype == torch.float32:
            module.weight.data = module.weight.data.t().contiguous().t()


@final
class Decoder:
    """Adds a token to every row at each ``step``.

    ``model``: what gives the logits; ``prompts``: the ids that each row begins with.
    ``sampling``: how a token is chosen; ``seeds``: one for each row.
    ``beyond``: what happens at the end of the context.

    ``ids`` are the tokens of each row, prompt included; ``rows`` the numbers of those that are
    still computed, in the order of what ``step`` takes and returns.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Iterable[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        beyond: Beyond = "slide",
    ) -> None:
        self.model, self.sampling = model, sampling
        self.ids = [list(prompt) for prompt in prompts]
        self.rows = list(range(len(self.ids)))
        self.limit = None if beyond == "extend" else model.config.context_length
        self.logits = torch.empty(0)  # of the last step, as the model gave them: (rows, V)
        self._modules = list(model.modules())
        self._device = next(model.parameters()).device
        self._unheeded: set[int] = set()  # rows that were dropped, still computed or not
        self._steps = 0
        # Sums of probabilities are taken in float64, which Apple's accelerator does not have.
        self._choosing = torch.device("cpu") if self._device.type == "mps" else self._device
        self._uniforms = Uniforms(seeds, self._choosing) if sampling.temperature > 0 else None
        self._cache: StaticCache | None = None
        self._last = torch.empty(0)  # (rows, 1), the tokens that the cache lacks
        self._valid: Tensor | None = None  # (rows, capacity)
        self._present: Tensor | None = None  # (rows, V), which ids came, prompt included ...
        self._counts: Tensor | None = None  # ... and how often, without the prompt
        if sampling.penalizes:
            shape = (len(self.ids), model.config.vocab_size)
            self._present = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._counts = torch.zeros(shape, device=self._device)
            for row, ids in enumerate(self.ids):
                self._present[row, torch.tensor(ids, device=self._device)] = True

    @torch.inference_mode()
    def step(self, candidates: Tensor | None = None) -> list[int]:
        """One more id for each of ``rows``; ``candidates`` (rows, V) or (V,) is True for those that
        it may be.

        FloatingPointError if a row's logits are not finite.
        """
        with evaluation_mode(self._modules):
            cache, new, logits = self._forward()
        scores = penalized(logits, self.sampling, self._present, self._counts)
        uniform = None if self._uniforms is None else self._uniforms.now()
        x = masked(scores, candidates).to(self._choosing)
        choice = choose(x, self.sampling, uniform).to(self._device)
        finite = scores.isfinite().all(-1)
        ids: list[int] = torch.where(finite, choice, -1).tolist()  # the one wait for the device
        if min(ids) < 0:
            ids, choice = self._without_the_broken(ids, scores)
        # From here on the step is done: had it been interrupted before, it could be taken again.
        self._cache, self.logits, self._last = cache, logits, choice[:, None]
        if self._present is not None and self._counts is not None:
            self._present.scatter_(1, self._last, True)
            self._counts.scatter_add_(1, self._last, torch.ones_like(self._last, dtype=torch.float))
        cache.advance(new)
        if self._uniforms is not None:
            self._uniforms.advance()
        self._steps += 1
        for row, id in zip(self.rows, ids, strict=True):
            self.ids[row].append(id)
        return ids

    @torch.inference_mode()
    def drop(self, rows: Collection[int]) -> None:
        """Compute these rows no longer; or go on and ignore them, where a compiler made code for
        this size of batch."""
        self._unheeded.update(rows)
        if self._cache is None or self._cache.traced:
            return
        places = [i for i, row in enumerate(self.rows) if row not in self._unheeded]
        if not places:
            return
        index = torch.tensor(places, device=self._device)
        self._cache.keep(index)
        self.rows = [self.rows[i] for i in places]
        self._last = self._last[index]
        for name in ("_valid", "_present", "_counts"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[index])
        if self._uniforms is not None:
            self._uniforms.keep(places)

    @torch.inference_mode()
    def logprobs(self, top: int) -> list[tuple[float, list[tuple[int, float]]]]:
        """For the last step, row by row as it was computed: the log-probability of the id that was
        chosen, in the model's own distribution, and the ``top`` most probable ids with theirs."""
        logits = self.logits.to(accumulate_dtype(self.logits))
        whole = logits.logsumexp(-1, keepdim=True)
        of_choice: list[float] = (logits.gather(-1, self._last) - whole)[:, 0].tolist()
        if not top:
            return [(logprob, []) for logprob in of_choice]
        best = logits.topk(top)
        ids, values = best.indices.tolist(), (best.values - whole).tolist()
        return [
            (logprob, list(zip(i, v, strict=True)))
            for logprob, i, v in zip(of_choice, ids, values, strict=True)
        ]

    def _forward(self) -> tuple[StaticCache, int, Tensor]:
        """(cache, how many tokens were read into it, the next token's logits (rows, V)). Neither
        the decoder nor the cache has changed for good: ``step`` makes it so, once all went well."""
        cache = self._cache
        if cache is None or cache.filled == self.limit:
            return self._read_anew()
        cache.reserve(1)
        if self._valid is not None and self._valid.shape[1] < cache.capacity:
            more = cache.capacity - self._valid.shape[1]
            self._valid = nn.functional.pad(self._valid, (0, more), value=True)
        return cache, 1, self.model(self._last, self._valid, cache=cache, last=1)[:, -1]

    def _read_anew(self) -> tuple[StaticCache, int, Tensor]:
        """``_forward`` into a new cache: at the beginning, and when the context is full, where each
        row begins again with what ``window_start`` leaves of it."""
        windows = [self.ids[row] for row in self.rows]
        if self.limit is not None:
            windows = [ids[window_start(len(ids), self.limit) :] for ids in windows]
        longest = max(map(len, windows))
        padded = [[0] * (longest - len(ids)) + ids for ids in windows]
        cache = StaticCache(self.limit)
        cache.reserve(longest)
        self._valid = None
        if any(len(ids) < longest for ids in windows):
            shape = (len(windows), cache.capacity)  # of tokens to come all are real
            valid = torch.ones(shape, dtype=torch.bool)
            for i, ids in enumerate(windows):
                valid[i, : longest - len(ids)] = False
            self._valid = valid.to(self._device)
        x = torch.tensor(padded, device=self._device)
        return cache, longest, self.model(x, self._valid, cache=cache, last=1)[:, -1]

    def _without_the_broken(self, ids: list[int], scores: Tensor) -> tuple[list[int], Tensor]:
        """(ids, the same as a tensor), where an id of -1 says that a row's logits are not finite: 0
        instead for rows that nobody reads any more; of another row it is a FloatingPointError, for
        which ``scores`` are the logits."""
        cause = "The weights or the activations hold NaN or overflow"
        if self.sampling.penalizes:
            cause += ", or a penalty takes them beyond what a float32 holds"
        for i, (row, id) in enumerate(zip(self.rows, ids, strict=True)):
            if id < 0 and row not in self._unheeded:
                broken = scores[i][~scores[i].isfinite()]
                raise FloatingPointError(
                    f"the logits are not finite at step {self._steps} of row {row}: "
                    f"{broken.numel()} of {scores.shape[-1]}, the first {broken[0].item()}. {cause}"
                )
        ids = [max(id, 0) for id in ids]
        return ids, torch.tensor(ids, device=self._device)


# --- checks ---------------------------------------------------------------------------------------


def check_beyond(beyond: str, model: LanguageModel, longest: int, max_new_tokens: int) -> None:
    """Raise a ``Mendable`` if ``beyond`` is no way to go on, or the context is too short where that
    is to be an error; ``longest`` is the length of the longest prompt in tokens,
    ``max_new_tokens`` what may come after each."""
    if beyond not in get_args(Beyond):
        raise Mendable(f"beyond must be one of {', '.join(get_args(Beyond))}, got {beyond!r}")
    context = model.config.context_length
    if beyond == "error" and max_new_tokens and longest + max_new_tokens - 1 > context:
        raise Mendable(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the context of "
            f"{context}; beyond='slide' lets the window slide"
        )


def check_max_new_tokens(value: int) -> None:
    """Raise a ``Mendable`` unless it is a whole number of 0 or more."""
    if not whole(value) or value < 0:
        raise Mendable(f"max_new_tokens must be a whole number of at least 0, got {value!r}")


def row_seeds(seed: int | Sequence[int] | None, rows: int, sampling: Sampling) -> list[int]:
    """One seed for each of ``rows`` rows: those given, or ``seed``, seed + 1, ...; None: torch's
    global generator draws the first, unless ``sampling`` needs no random numbers. A ``Mendable``
    where they are too few, or no seeds."""
    if seed is None:
        # below SEEDS' end by far, so that there is one for every row behind it
        seed = int(torch.randint(2**62, ())) if sampling.temperature > 0 else 0
    seeds = list(seed) if isinstance(seed, Sequence) else [seed]
    for one in seeds:
        if not whole(one):
            raise Mendable(f"a seed must be a whole number, got {one!r}")
    seeds = [int(one) for one in seeds]
    if not isinstance(seed, Sequence):
        seeds = [seeds[0] + row for row in range(rows)]
    if len(seeds) != rows:
        raise Mendable(f"{len(seeds)} seeds for {rows} prompts")
    for row, one in enumerate(seeds):
        if one not in SEEDS:
            raise Mendable(f"the seed of row {row} is {one}: give one from -2**63 to 2**64 - 1")
    return seeds


def whole(value: object) -> bool:
    """Whether it is a whole number; NumPy's count too."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


# --- ids to ids -----------------------------------------------------------------------------------


def generate_ids(
    model: LanguageModel,
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """(B, T) -> (B, T + max_new_tokens): the ids and what follows them, on their device. Nothing
    ends a row early; beyond the model's context a window slides.

    ``valid`` (B, T) is True for real tokens, wherever the padding is. Row i draws from a generator
    of its own with seed ``seed + i``; ``temperature`` 0 is greedy.
    """
    check_max_new_tokens(max_new_tokens)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
        raise Mendable(
            "ids must be whole numbers of shape (B, T) in int64 or int32, got "
            f"{tuple(ids.shape)} in {ids.dtype}"
        )
    if valid is not None and (valid.shape != ids.shape or valid.dtype != torch.bool):
        raise Mendable(
            f"valid must be boolean, True = real token, of the shape of ids {tuple(ids.shape)}, "
            f"got {valid.dtype} of shape {tuple(valid.shape)}"
        )
    rows = range(len(ids))
    prompts = [(ids[i] if valid is None else ids[i][valid[i]]).tolist() for i in rows]
    if not all(prompts):
        raise Mendable(f"row {prompts.index([])} has no token to start from")
    if not prompts or not max_new_tokens:
        return torch.cat((ids, ids.new_empty(len(ids), max_new_tokens)), 1)  # of nothing
    decoder = Decoder(model, prompts, sampling, row_seeds(seed, len(prompts), sampling))
    new = [decoder.step() for _ in range(max_new_tokens)]
    return torch.cat((ids, torch.tensor(new, dtype=ids.dtype, device=ids.device).T), 1)
